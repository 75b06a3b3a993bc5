"""Training as pure functions: a state, a compiled chunk of steps, an evaluation. Nothing here touches a file.

The data of step s is drawn from fold_in(key, s), so a run that goes on from a saved state sees what it would have seen.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments import models, tasks
from experiments.config import Config


class State(NamedTuple):
    """All that the next step depends on.

    Attributes:
      params: of the model.
      opt_state: of the optimizer.
      key: the PRNG key that all training data is drawn from; it stays the same.
      step: () int32, the steps done.
    """

    params: Any
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


def optimizer(learning_rate: float, clip: float) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped (Pascanu, Mikolov & Bengio, ICML 2013)."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate))


@functools.partial(jax.jit, static_argnums=0)
def init(config: Config) -> State:
    """The state before the first step; one compiled call."""
    task = tasks.get(config.task)
    key_params, key_data, _ = _keys(config)
    params = models.init(key_params, task.in_features, config.hidden, task.out_features, task.steps(config.length))
    opt_state = optimizer(config.learning_rate, config.clip).init(params)
    return State(params, opt_state, key_data, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 2))
def train_chunk(config: Config, state: State, steps: int) -> tuple[State, jax.Array]:
    """`steps` optimizer steps in one `lax.scan`, data generated inside.

    Returns:
      The state after them, and their mean loss, () float32.
    """
    state, losses = jax.lax.scan(lambda state, _: train_step(config, models.apply, state), state, length=steps)
    return state, losses.mean()


def train_step(config: Config, apply: Callable[[Any, jax.Array], jax.Array], state: State) -> tuple[State, jax.Array]:
    """One optimizer step of a model, inputs (S, B, D) to outputs (S, B, K); its loss, () float32."""
    task, adam = tasks.get(config.task), optimizer(config.learning_rate, config.clip)
    batch = task.sample(jax.random.fold_in(state.key, state.step), config.batch, config.length)
    loss, gradient = jax.value_and_grad(lambda params: task.loss(apply(params, batch.inputs), batch))(state.params)
    updates, opt_state = adam.update(gradient, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, state.key, state.step + 1), loss


@functools.partial(jax.jit, static_argnums=0)
def evaluate(config: Config, params: models.Params, step: jax.Array, draw: int) -> tasks.Metrics:
    """Metrics on fresh data: never trained on, and other data at every step and for every draw.

    Args:
      config: says how much data.
      params: of the model.
      step: () int32, the steps done.
      draw: the number of this evaluation at this step; with the step it says which data.

    Returns:
      The task's metrics, the mean over batches of the training size.
    """
    task = tasks.get(config.task)
    _, _, key = _keys(config)

    def one(key: jax.Array) -> tasks.Metrics:
        batch = task.sample(key, config.batch, config.length)
        return task.metrics(models.apply(params, batch.inputs), batch)

    batches = -(-config.evaluation // config.batch)
    key = jax.random.fold_in(jax.random.fold_in(key, step), draw)
    metrics = jax.lax.map(one, jax.random.split(key, batches))
    return jax.tree.map(jnp.mean, metrics)


def _keys(config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the parameters, the training data and the evaluation data."""
    key_params, key_data, key_evaluation = jax.random.split(jax.random.key(config.seed), 3)
    return key_params, key_data, key_evaluation
