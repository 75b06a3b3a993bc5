"""Wall-clock times of several functions, interleaved so that disturbances affect all of them alike."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

Key = TypeVar("Key")
PATIENCE, FEWEST = 60.0, 3
"""After PATIENCE seconds no further round begins, if there have been FEWEST: on a busy machine a function whose threads
wait for each other may take a thousand times as long as usual."""


class Timing(NamedTuple):
    """Samples of the duration of a function.

    Attributes:
      repetitions: the number of calls in one sample.
      seconds: for each round, the duration of a call, averaged over the sample.
    """

    repetitions: int
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds per call."""
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in seconds per call."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)


def interleave(functions: Mapping[Key, Callable[[], Any]], rounds: int, sample_seconds: float) -> dict[Key, Timing]:
    """Times functions in turn; each round begins with another one: A B C, B C A, C A B, …

    So no function always comes first, or always after a certain other one, which alone made a difference of a tenth.

    Args:
      functions: by name, of any type; each returns when its work is done.
      rounds: number of samples of each; fewer if they take longer than `PATIENCE`.
      sample_seconds: least duration of a sample; a shorter function is called repeatedly.

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
                # Not timed: it brings the data of the function back into the caches, and lets the threads of the
                # previous function stop spinning.
                function()
                started = time.perf_counter()
                for _ in range(repetitions[name]):
                    function()
                samples[name].append((time.perf_counter() - started) / repetitions[name])
            gc.collect()
    return {name: Timing(repetitions[name], tuple(samples[name])) for name in functions}


def ratio(one: Timing, other: Timing) -> float:
    """The duration of `one` as a multiple of that of `other`: the median of the ratios within rounds."""
    return float(np.median(np.array(one.seconds) / np.array(other.seconds)))


def _repetitions(function: Callable[[], Any], sample_seconds: float) -> int:
    """The number of calls in a sample; also warms the function up."""
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
