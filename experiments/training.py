"""Training as pure functions: a state, a compiled chunk of steps, an evaluation. Nothing here touches a file.

All seeds of a run are trained side by side by `vmap`; arrays of a state have them as their first axis. The data of a
step is drawn from the seed's key and the number of the step: a run that goes on from a saved state sees what it would
have seen, and a seed sees the same in whatever company it is trained.
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
"""Streams of data."""

over_seeds = jax.vmap
"""Makes a function of one seed's arrays one of all seeds'."""


class State(NamedTuple):
    """All that the next step depends on; of all seeds, or of one.

    Attributes:
      params: of the model.
      opt_state: of the optimizer.
      key: the PRNG key that all data is drawn from; it stays the same.
      step: () int32, the steps done.
    """

    params: Any
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array


def optimizer(config: Config) -> optax.GradientTransformation:
    """As the configuration says."""
    rates = optimizers.schedule(config.schedule, config.learning_rate, config.warmup, config.steps)
    return optimizers.adam(rates, config.clip)


def devices_mesh(devices: int) -> Mesh | None:
    """The mesh over which a batch is shared out; None for one device."""
    if devices == 1:
        return None
    return jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(config: Config, mesh: Mesh | None = None) -> State:
    """The state before the first step, of all seeds; one compiled call."""
    seeds = jnp.arange(config.seed, config.seed + config.seeds, dtype=jnp.uint32)
    return _constrain(over_seeds(lambda seed: init_one(config, seed))(seeds), mesh)


def init_one(config: Config, seed: jax.Array) -> State:
    """The state before the first step, of one seed, () uint32."""
    task = tasks.get(config.task)
    key_params, key_data = jax.random.split(jax.random.key(seed))
    memory = task.steps(config.length)
    params = config.model.init(key_params, task.in_features, config.units, task.out_features, memory)
    return State(params, optimizer(config).init(params), key_data, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def train_chunk(
    config: Config, state: State, steps: int, length: int, mesh: Mesh | None = None
) -> tuple[State, jax.Array]:
    """`steps` optimizer steps of every seed in the state, data of this length generated inside.

    Returns:
      The state after them, and their mean loss, (seeds,) float32.
    """

    def step(state: State) -> tuple[State, jax.Array]:
        return train_step(config, config.model.apply, state, length, mesh)

    state, losses = jax.lax.scan(lambda state, _: over_seeds(step)(state), state, length=steps)
    return _constrain((state, losses.mean(axis=0)), mesh)


def train_step(
    config: Config, apply: Callable[[Any, jax.Array], jax.Array], state: State, length: int, mesh: Mesh | None = None
) -> tuple[State, jax.Array]:
    """One optimizer step of one seed's model, inputs (S, B, D) to outputs (S, B, K); its loss, () float32."""
    task = tasks.get(config.task)
    key = jax.random.fold_in(jax.random.fold_in(state.key, TRAINING), state.step)
    batch = _constrain(task.sample(key, config.batch, length), mesh, None, "data")
    loss, gradient = jax.value_and_grad(lambda params: task.loss(apply(params, batch.inputs), batch))(state.params)
    updates, opt_state = optimizer(config).update(gradient, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state, state.key, state.step + 1), loss


@functools.partial(jax.jit, static_argnums=(0, 2, 4))
def evaluate(config: Config, state: State, length: int, draw: int, mesh: Mesh | None = None) -> tasks.Metrics:
    """Metrics on test data: never trained on, and other data at every step and for every draw.

    Args:
      config: says how much data.
      state: of the seeds to evaluate.
      length: of the sequences.
      draw: the number of this evaluation at this step; with the step it says which data.

    Returns:
      The task's metrics, each (seeds,), the mean over batches of the training size.
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
    """Arrays whose leading axes are shared out over those of the mesh; without axes, the same on every device."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(*axes)))
