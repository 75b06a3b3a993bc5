"""The training step of `python -m experiments train`, with our GRU and with `flax.nnx.RNN(GRUCell)` in its place."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax
from experiments import config, training
from experiments.bench import peers, timing
from experiments.bench.peers import in_jax
from experiments.bench.timing import Timing
from experiments.config import Config

TASKS = ("adding", "copy")
MODELS = ("gru_jax", peers.REFERENCE)
STEPS = 10
"""Optimizer steps in a timed call."""
SMALL: dict[str, Any] = {"length": 20, "hidden": 16, "batch": 8}

Apply = Callable[[Any, jax.Array], jax.Array]
"""Parameters and inputs (S, B, D) to outputs (S, B, K)."""


class TrainingStep(NamedTuple):
    """The cost of a training step with one model.

    Attributes:
      config: the settings of the run.
      model: one of `MODELS`.
      timing: of a step.
      speedup: over the reference, the median over rounds.
      difference: of the loss of the first step from ours, as a share of ours.
    """

    config: Config
    model: str
    timing: Timing
    speedup: float
    difference: float


def configs(quick: bool) -> list[Config]:
    """The default settings of the tasks; small ones if quick."""
    defaults = [config.defaults(task).config for task in TASKS]
    return [dataclasses.replace(one, **SMALL) for one in defaults] if quick else defaults


def measure(runs: Iterable[Config], rounds: int, sample_seconds: float) -> list[TrainingStep]:
    """Times the training step of each configuration with each model, in turn."""
    rows = []
    for run in runs:
        state = jax.jit(training.init_one, static_argnums=0)(run, run.seed)
        programs = {MODELS[0]: _program(run, run.model.apply, state), MODELS[1]: _program(run, *_flax(run, state))}
        first = {model: float(program()[0]) for model, program in programs.items()}
        timings = timing.interleave(programs, rounds, sample_seconds)
        for model, taken in timings.items():
            step = Timing(taken.repetitions, tuple(seconds / STEPS for seconds in taken.seconds))
            speedup = timing.ratio(timings[peers.REFERENCE], taken)
            difference = abs(first[model] - first[MODELS[0]]) / abs(first[MODELS[0]])
            rows.append(TrainingStep(run, model, step, speedup, difference))
    return rows


def _program(run: Config, apply: Apply, state: training.State) -> Callable[[], np.ndarray]:
    """A call that takes `STEPS` steps and returns their losses."""

    @functools.partial(jax.jit, static_argnums=0)
    def steps(run: Config, state: training.State) -> jax.Array:
        return jax.lax.scan(lambda state, _: training.train_step(run, apply, state, run.length), state, length=STEPS)[1]

    return lambda: np.asarray(steps(run, state))


def _flax(run: Config, state: training.State) -> tuple[Apply, training.State]:
    """The model with `nnx.RNN(nnx.GRUCell)`, which has no recurrent bias, and its state before the first step."""
    from flax import nnx

    ours: gru_jax.Params = state.params.cell
    layer = nnx.RNN(nnx.GRUCell(ours.in_features, ours.features, rngs=nnx.Rngs(0)), time_major=True, rngs=nnx.Rngs(0))
    parts: Any = nnx.split(layer, nnx.Param, ...)
    graph, weights, rest = parts
    in_jax.put_into_flax(weights["cell"], ours)

    def apply(params, inputs):
        weights, kernel, bias = params
        carry = jnp.zeros((inputs.shape[1], ours.features), inputs.dtype)
        return nnx.merge(graph, weights, rest)(inputs, initial_carry=carry) @ kernel + bias

    params = (weights, state.params.kernel, state.params.bias)
    opt_state = training.optimizer(run).init(params)
    return apply, state._replace(params=params, opt_state=opt_state)
