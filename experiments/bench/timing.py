"""Wall-clock times of functions that disturb each other as little, and are disturbed as equally, as may be."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

Key = TypeVar("Key")
PATIENCE, FEWEST = 60.0, 3
"""After so many seconds no further round is begun, once there have been so many: on a busy machine a single function,
whose threads wait for each other, may take a thousand times as long as it should."""


class Timing(NamedTuple):
    """Samples of a function's duration.

    Attributes:
      repetitions: calls in one sample.
      seconds: for each round, the duration of a call, averaged over the sample.
    """

    repetitions: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """In seconds a call."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, in seconds a call."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)


def interleave(functions: Mapping[Key, Callable[[], Any]], rounds: int, sample_seconds: float) -> dict[Key, Timing]:
    """Times functions in turn, each round from another one on: A B C, B C A, C A B, …

    Whoever comes first in a round, or after a certain other one, is not always the same: that alone was seen to make a
    tenth.

    Args:
      functions: by a name of any type; each returns when its work is done.
      rounds: samples of each; fewer if that takes longer than `PATIENCE`.
      sample_seconds: least duration of a sample; shorter functions are repeated within it.

    Returns:
      The `Timing` of each function.
    """
    repetitions = {name: _repetitions(function, sample_seconds) for name, function in functions.items()}
    samples: dict[Key, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    with _no_garbage_collection():
        for done in range(rounds):
            if done >= FEWEST and time.perf_counter() - began > PATIENCE:
                break
            first = done % max(1, len(functions))
            for name in [*functions][first:] + [*functions][:first]:
                function = functions[name]
                # Not timed: it brings the function's data back into the caches, and by its end the threads of the
                # function before no longer spin.
                function()
                started = time.perf_counter()
                for _ in range(repetitions[name]):
                    function()
                samples[name].append((time.perf_counter() - started) / repetitions[name])
            gc.collect()
    return {name: Timing(repetitions[name], tuple(samples[name])) for name in functions}


def ratio(one: Timing, other: Timing) -> float:
    """How many times as long as `other` did `one` take: the median over the rounds that they share."""
    return float(np.median(np.array(one.seconds) / np.array(other.seconds)))


def _repetitions(function: Callable[[], Any], sample_seconds: float) -> int:
    """How many calls last as long as a sample must; warms up."""
    function()
    shortest, spent = math.inf, 0.0
    while True:
        started = time.perf_counter()
        function()
        taken = time.perf_counter() - started
        shortest, spent = min(shortest, taken), spent + taken
        if spent >= sample_seconds:
            return max(1, math.ceil(sample_seconds / max(shortest, 1e-9)))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
