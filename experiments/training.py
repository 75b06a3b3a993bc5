"""Training as pure functions: the training state, a compiled chunk of steps, an evaluation.

All seeds of a run are trained side by side by `vmap`: the arrays of a state have the seeds as their first axis. The
data of a step is drawn from the key of the seed and the number of the step. So a run that is resumed sees the same data
as one that was not interrupted, and a seed sees the same data alone and among others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import optimizers, tasks
from experiments.config import Config

TRAINING, EVALUATION = 0, 1
"""The streams of data that are folded into a key."""

over_seeds = jax.vmap
"""Turns a function of the arrays of one seed into a function of those of all seeds."""


class State(NamedTuple):
    """The training state, of one seed or of all.

    Attributes:
      params: of the model.
      opt_state: of the optimizer.
      key: the PRNG key of all data; it never changes.
      step: () int32, the number of steps done.
    """

    params: Any
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer of a configuration."""
    rates = optimizers.schedule(config.schedule, config.learning_rate, config.warmup, config.steps)
    return optimizers.adam(rates, config.clip)


def devices_mesh(devices: int) -> Mesh | None:
    """The mesh over which a batch is sharded; None for one device."""
    if devices == 1:
        return None
    return jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(config: Config, mesh: Mesh | None = None) -> State:
    """The state of all seeds before the first step; a single compiled call."""
    seeds = jnp.arange(config.seed, config.seed + config.seeds, dtype=jnp.uint32)
    return _constrain(over_seeds(lambda seed: init_one(config, seed))(seeds), mesh)


def init_one(config: Config, seed: jax.Array) -> State:
    """The state of one seed, () uint32, before the first step."""
    task = tasks.get(config.task)
    key_params, key_data = jax.random.split(jax.random.key(seed))
    memory = task.steps(config.length)
    params = config.model.init(key_params, task.in_features, config.units, task.out_features, memory)
    return State(params, optimizer(config).init(params), key_data, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def train_chunk(
    config: Config, state: State, steps: int, length: int, mesh: Mesh | None = None
) -> tuple[State, jax.Array]:
    """Takes `steps` optimizer steps of every seed in the state, on data of this length, which is drawn inside.

    Returns:
      The new state, and the mean loss of the steps, (seeds,) float32.
    """

    def step(state: State) -> tuple[State, jax.Array]:
        return train_step(config, config.model.apply, state, length, mesh)

    state, losses = jax.lax.scan(lambda state, _: over_seeds(step)(state), state, length=steps)
    return _constrain((state, losses.mean(axis=0)), mesh)


def train_step(
    config: Config, apply: Callable[[Any, jax.Array], jax.Array], state: State, length: int, mesh: Mesh | None = None
) -> tuple[State, jax.Array]:
    """Takes one optimizer step of one seed.

    Args:
      config: the settings.
      apply: the model: parameters and inputs (S, B, D) to outputs (S, B, K).
      state: of the seed.
      length: of the data.
      mesh: over which the batch is sharded; None for one device.

    Returns:
      The new state, and the loss, () float32.
    """
    task = tasks.get(config.task)
    key = jax.random.fold_in(jax.random.fold_in(state.key, TRAINING), state.step)
    batch = _constrain(task.sample(key, config.batch, length), mesh, None, "data")
    loss, gradient = jax.value_and_grad(lambda params: task.loss(apply(params, batch.inputs), batch))(state.params)
    updates, opt_state = optimizer(config).update(gradient, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, state.key, state.step + 1), loss


@functools.partial(jax.jit, static_argnums=(0, 2, 4))
def evaluate(config: Config, state: State, length: int, draw: int, mesh: Mesh | None = None) -> tasks.Metrics:
    """Metrics on data that is never trained on, and different at every step and for every draw.

    Args:
      config: the settings; they give the amount of data.
      state: of the seeds to evaluate.
      length: of the sequences.
      draw: the number of this evaluation at this step; step and draw determine the data.
      mesh: over which a batch is sharded; None for one device.

    Returns:
      The task's metrics, each (seeds,): means over batches of the training size.
    """
    task = tasks.get(config.task)
    batches = -(-config.evaluation // config.batch)

    def one_seed(state: State) -> tasks.Metrics:
        key = jax.random.fold_in(jax.random.fold_in(state.key, EVALUATION), state.step)
        keys = jax.random.split(jax.random.fold_in(key, draw), batches)

        def one_batch(key_and_first: tuple[jax.Array, jax.Array]) -> tasks.Metrics:
            batch = _constrain(task.test(key_and_first[0], config.batch, length, key_and_first[1]), mesh, None, "data")
            return task.metrics(config.model.apply(state.params, batch.inputs), batch)

        firsts = config.batch * jnp.arange(batches, dtype=jnp.int32)
        return jax.tree.map(jnp.mean, jax.lax.map(one_batch, (keys, firsts)))

    return _constrain(over_seeds(one_seed)(state), mesh)


def _constrain(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Arrays whose leading axes are sharded over these axes of the mesh; without axes they are replicated."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))
