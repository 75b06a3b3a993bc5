"""Measures one shape: builds the programs of all peers, compares their results, then times them in turn."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax
from experiments.bench import peers, timing
from experiments.bench.peers import Pass, Problem, Program
from experiments.bench.settings import Shape
from experiments.bench.timing import Timing

PASSES = ("forward", "gradient")
Expected = dict[str, np.ndarray]
"""For each of `PASSES` the expected result: hs (T, B, H), and the gradient with respect to xs, (T, B, D)."""
TOLERANCE = 1e-4
"""For the largest difference from `gru_jax.unroll(method="scan")`, as a share of the largest value."""
GEMM_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a forward or a gradient computation.

    Attributes:
      timing: its `Timing`.
      difference: of the result from ours; see `TOLERANCE`.
      speedup: over the reference, the median over rounds; None if there is no reference.
      gflops: 10⁹ floating-point operations per second, counting matrix products alone.
      gemm_share: the rate as a share of that of a large matrix product, timed in the same rounds.
      compile_seconds: to trace and compile; None if nothing is compiled.
      temporary_bytes: peak temporary memory by XLA's analysis; None if XLA does not run it.
    """

    timing: Timing
    difference: float
    speedup: float | None
    gflops: float
    gemm_share: float
    compile_seconds: float | None
    temporary_bytes: int | None

    @property
    def agrees(self) -> bool:
        """Whether the result equals ours, to rounding."""
        return self.difference <= TOLERANCE


@dataclasses.dataclass(frozen=True)
class Result:
    """All peers at one shape.

    Attributes:
      shape: T, B, D and H.
      costs: the `Cost` by pass and peer, for the peers that have the pass.
      residuals: for each peer with a gradient, the bytes of its residuals per step, sequence and state feature.
      gemm_gflops: the rate of a 1024³ matrix product in the same rounds, in 10⁹ operations per second, by pass.
    """

    shape: Shape
    costs: dict[str, dict[str, Cost]]
    residuals: dict[str, float]
    gemm_gflops: dict[str, float]

    @property
    def disagreeing(self) -> list[str]:
        """Names of the peers whose outputs or gradients differ from ours."""
        return sorted({name for costs in self.costs.values() for name, cost in costs.items() if not cost.agrees})


def measure(shape: Shape, names: Iterable[str], rounds: int, sample_seconds: float) -> Result:
    """Compares and times peers at a shape; see `Result`."""
    problem = peers.make_problem(shape)
    # The first compilation of a process also sets up the compiler, which must not count for the first peer.
    _gemm()()
    programs = build(problem, names)
    expected = {after: _expected(problem, after) for after in {peers.get(name).reset_after for name in programs}}
    costs, rates = {}, {}
    for which in PASSES:
        passes = {name: getattr(program, which) for name, program in programs.items()}
        passes = {name: one for name, one in passes.items() if one is not None}
        differences = _differences(which, passes, expected)
        costs[which], rates[which] = _costs(shape, which, passes, differences, rounds, sample_seconds)
    per_unit = shape.T * shape.B * shape.H
    residuals = {name: p.residual_bytes / per_unit for name, p in programs.items() if p.residual_bytes is not None}
    return Result(shape, costs, residuals, rates)


def present(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The peers that can run, and the reasons why the others cannot. Imports their frameworks."""
    there, skipped = [], {}
    for name in names:
        try:
            peers.get(name).load()
            there.append(name)
        except ModuleNotFoundError as error:
            skipped[name] = f"{error.name} is not installed"
        except (ImportError, peers.UnavailableError) as error:
            skipped[name] = str(error)
    return there, skipped


def build(problem: Problem, names: Iterable[str]) -> dict[str, Program]:
    """The programs of peers, all of which can run."""
    return {name: peers.get(name).make(problem) for name in names}


def reference(names: Iterable[str]) -> str | None:
    """The peer that ratios refer to: flax-nnx, or else the first; None if there is none."""
    present = list(names)
    return peers.REFERENCE if peers.REFERENCE in present else next(iter(present), None)


def products(shape: Shape, which: str) -> int:
    """Floating-point operations of the matrix products: those of x W and h U, and three times as many for the gradient.

    >>> products(Shape(T=10, B=1, D=2, H=3), "forward")
    900
    """
    steps, batch, in_features, features = shape
    forward = 2 * steps * batch * (in_features + features) * 3 * features
    return forward if which == "forward" else 3 * forward


def _costs(
    shape: Shape,
    which: str,
    passes: Mapping[str, Pass],
    differences: Mapping[str, float],
    rounds: int,
    sample_seconds: float,
) -> tuple[dict[str, Cost], float]:
    """The costs of one pass of all peers, and the rate of a matrix product in 10⁹ operations per second."""
    functions: dict[str, Callable[[], Any]] = {name: one.run for name, one in passes.items()}
    timings = timing.interleave({**functions, "gemm": _gemm()}, rounds, sample_seconds)
    work, gemm = products(shape, which), timings.pop("gemm")
    gemm_work = 2 * GEMM_SIZE**3
    base = reference(timings)
    costs = {
        name: Cost(
            taken,
            differences[name],
            None if base is None else timing.ratio(timings[base], taken),
            work / taken.median / 1e9,
            timing.ratio(gemm, taken) * work / gemm_work,
            passes[name].compile_seconds,
            passes[name].temporary_bytes,
        )
        for name, taken in timings.items()
    }
    return costs, gemm_work / gemm.median / 1e9


def _differences(which: str, passes: Mapping[str, Pass], expected: Mapping[bool, Expected]) -> dict[str, float]:
    """The largest difference of each peer's result from that of our plain scan, as a share of the largest value."""
    differences = {}
    for name, one in passes.items():
        ours = expected[peers.get(name).reset_after][which]
        differences[name] = float(abs(one.array(one.run()) - ours).max() / abs(ours).max())
    return differences


def _expected(problem: Problem, reset_after: bool) -> Expected:
    """The results of our plain scan."""
    cell = gru_jax.GRU(reset_after=reset_after)
    weights = problem.weights if reset_after else problem.weights._replace(recurrent_bias=None)

    @jax.jit
    def run(xs, g):
        hs, vjp = jax.vjp(lambda xs: gru_jax.unroll(cell, weights, xs, method="scan")[1], xs)
        return hs, vjp(g)[0]

    return dict(zip(PASSES, map(np.asarray, run(problem.xs, problem.g)), strict=True))


def _gemm() -> Callable[[], Any]:
    matrix = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32)
    product = jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready(product(matrix, matrix))
