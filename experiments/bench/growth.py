"""How cost grows: sweeps over T, B and H, and a check that the time per step does not grow with T."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from experiments.bench import measure, peers, timing
from experiments.bench.measure import PASSES, Result
from experiments.bench.settings import Shape

SHORT, LONG = Shape(1000, 1, 16, 16), Shape(10_000, 1, 16, 16)
LIMIT = 2.0
"""The ratio of the times per step at `LONG` and `SHORT` above which the time counts as growing."""

SWEEPS: dict[str, tuple[Shape, ...]] = {
    "T": tuple(Shape(steps, 1, 16, 16) for steps in (100, 1000, 10_000, 100_000)),
    "B": tuple(Shape(100, batch, 64, 128) for batch in (1, 8, 32, 128, 512)),
    "H": tuple(Shape(100, 32, 64, features) for features in (16, 64, 128, 256, 512, 1024)),
}
QUICK_SWEEPS: dict[str, tuple[Shape, ...]] = {axis: shapes[:3] for axis, shapes in SWEEPS.items()}


class Growth(NamedTuple):
    """How the time per step grows with T.

    Attributes:
      peer: its name.
      which: "forward" or "gradient".
      ratio: of the times per step at T = 10000 and T = 1000.
    """

    peer: str
    which: str
    ratio: float

    @property
    def flat(self) -> bool:
        """Whether the time per step does not grow, as it would if the stacked output were copied at every step."""
        return self.ratio <= LIMIT


def guarded(names: Iterable[str]) -> list[str]:
    """The peers that are checked by default: ours and the reference."""
    return [name for name in names if name == peers.REFERENCE or name.startswith("gru_jax-")]


def guard(names: Iterable[str], rounds: int, sample_seconds: float) -> list[Growth]:
    """The growth of each peer, from two lengths that are timed in the same rounds."""
    by_shape = {shape: measure.build(peers.make_problem(shape), names) for shape in (SHORT, LONG)}
    rows = []
    for which in PASSES:
        functions: dict[Any, Callable[[], Any]] = {
            (name, shape): getattr(program, which).run
            for shape, programs in by_shape.items()
            for name, program in programs.items()
            if getattr(program, which) is not None
        }
        timings = timing.interleave(functions, rounds, sample_seconds)
        for name, shape in timings:
            if shape == LONG:
                ratio = timing.ratio(timings[name, LONG], timings[name, SHORT]) * SHORT.T / LONG.T
                rows.append(Growth(name, which, ratio))
    return rows


def sweep(axis: str, names: Iterable[str], quick: bool, rounds: int, sample_seconds: float) -> Iterator[Result]:
    """Measures along an axis of `SWEEPS`; along T, peers whose time per step has grown are left out from there on."""
    names = list(names)
    shortest: dict[str, float] = {}
    for shape in (QUICK_SWEEPS if quick else SWEEPS)[axis]:
        result = measure.measure(shape, names, rounds, sample_seconds)
        yield result
        for name, seconds in _seconds_per_step(result).items():
            shortest[name] = min(shortest.get(name, math.inf), seconds)
            if axis == "T" and seconds > 2 * LIMIT * shortest[name]:
                names.remove(name)


def _seconds_per_step(result: Result) -> dict[str, float]:
    """The time per step of each peer, both passes together."""
    totals: dict[str, float] = {}
    for costs in result.costs.values():
        for name, cost in costs.items():
            totals[name] = totals.get(name, 0.0) + cost.timing.median / result.shape.T
    return totals
