"""Calls of few steps, as a policy makes them in a rollout: in a `lax.scan` of 128 calls, and alone."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

import gru_jax
from experiments.bench import measure, peers, timing
from experiments.bench.measure import TOLERANCE
from experiments.bench.peers import Problem, in_jax
from experiments.bench.settings import Shape
from experiments.bench.timing import Timing

CALLS = 128
SIZES = tuple(itertools.product((32, 64, 128, 256, 512), (1, 4, 16, 64, 256)))
"""Pairs of units and sequences; there are as many input features as units."""
QUICK_SIZES = ((32, 1), (32, 4))
AGAIN = f"{peers.REFERENCE}, again"
"""The reference, timed a second time, which shows how much times differ by chance."""
METHODS = ("auto", "fused", "native")

Call = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Parameters, a state (B, H) and inputs (T, B, D) to the last state and the outputs (T, B, H)."""


class Rollout(NamedTuple):
    """The cost of a call of few steps.

    Attributes:
      shape: of a call.
      calls: their number in one `lax.scan`, or 1 for a call alone.
      name: "gru_jax-" and a method of `unroll` or "step"; the reference, which is Flax' cell; or `AGAIN`.
      timing: of a call.
      speedup: over the reference, the median over rounds.
      difference: the largest difference from the outputs of the reference, as a share of the largest value.
      same: the other ways that are the same program, so that figures which differ from theirs do so by chance.
    """

    shape: Shape
    calls: int
    name: str
    timing: Timing
    speedup: float
    difference: float
    same: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether the outputs equal those of the reference, to rounding."""
        return self.difference <= TOLERANCE


def run(
    sizes: Iterable[tuple[int, int]], steps: int, calls: int, rounds: int, sample_seconds: float
) -> Iterator[list[Rollout]]:
    """Times calls by each method and by Flax' cell, in turn, for each size.

    Args:
      sizes: pairs of units and sequences.
      steps: T of a call.
      calls: their number in a scan; 1 for a call alone.
      rounds, sample_seconds: see `timing.interleave`.

    Yields:
      The rows of one size.
    """
    for features, batch in sizes:
        shape = Shape(steps, batch, features, features)
        programs, texts = {}, {}
        for name, (program, text) in _programs(shape, calls).items():
            programs[name], texts[name] = program, text
        outputs = {name: np.asarray(program()) for name, program in programs.items()}
        expected = outputs[peers.REFERENCE]
        timings = timing.interleave(programs, rounds, sample_seconds)
        yield [
            Rollout(
                shape,
                calls,
                name,
                Timing(taken.repetitions, tuple(seconds / calls for seconds in taken.seconds)),
                timing.ratio(timings[peers.REFERENCE], taken),
                float(abs(outputs[name] - expected).max() / abs(expected).max()),
                tuple(other for other, text in texts.items() if other != name and text == texts[name]),
            )
            for name, taken in timings.items()
        ]


def _programs(shape: Shape, calls: int) -> dict[str, tuple[Callable[[], jax.Array], str]]:
    """The ways by name, each with the text of its program."""
    problem = peers.make_problem(shape)
    xs = jax.random.normal(jax.random.key(1), (calls, *problem.xs.shape), problem.xs.dtype)
    ours = {f"gru_jax-{method}": _unrolled(method) for method in METHODS}
    _, missing = measure.present(["gru_jax-native"])
    programs: dict[str, tuple[Call, Any]] = {
        name: (call, problem.weights) for name, call in ours.items() if name not in missing
    }
    programs["gru_jax-step"] = (_over_time(gru_jax.CUDNN.step), problem.weights)
    programs[peers.REFERENCE] = programs[AGAIN] = _flax(problem)
    return {name: _program(call, params, xs) for name, (call, params) in programs.items()}


def _program(call: Call, params: Any, xs: jax.Array) -> tuple[Callable[[], jax.Array], str]:
    @jax.jit
    def run(params, h_0, xs):
        if xs.shape[0] == 1:
            return call(params, h_0, xs[0])[1]
        return jax.lax.scan(lambda h, xs: call(params, h, xs), h_0, xs)[1]

    params, h_0 = jax.device_put((params, np.zeros(xs.shape[2:], xs.dtype)))  # not copied at every call
    lowered = run.lower(params, h_0, xs)
    compiled = lowered.compile()
    return lambda: jax.block_until_ready(compiled(params, h_0, xs)), lowered.as_text()


def _unrolled(method: str) -> Call:
    return lambda params, h_0, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs, h_0, method=method)


def _over_time(step: Callable[[Any, jax.Array, jax.Array], jax.Array]) -> Call:
    """A call that takes several steps in a loop, and a single step without one."""

    def call(params, h_0, xs):
        def body(h_tm1, x_t):
            h_t = step(params, h_tm1, x_t)
            return h_t, h_t

        if xs.shape[0] > 1:
            return jax.lax.scan(body, h_0, xs)
        h_1, _ = body(h_0, xs[0])
        return h_1, h_1[None]

    return call


def _flax(problem: Problem) -> tuple[Call, Any]:
    """Calls of Flax' cell, which has no recurrent bias, and its parameters."""
    from flax import nnx

    cell = nnx.GRUCell(problem.shape.D, problem.shape.H, rngs=nnx.Rngs(0))
    parts: Any = nnx.split(cell, nnx.Param, ...)
    graph, params, rest = parts
    in_jax.put_into_flax(params, problem.weights)
    return _over_time(lambda params, h_tm1, x_t: nnx.merge(graph, params, rest)(h_tm1, x_t)[0]), params
