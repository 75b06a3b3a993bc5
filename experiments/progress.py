"""Progress on the terminal."""

import statistics
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

QUIET_SECONDS = 10.0


class Progress:
    """A progress bar on a terminal; elsewhere, as in a log file, a line every ten seconds; nothing if `quiet`.

    Shows steps per second, the evaluation loss (median and range over seeds), the median as a share of the trivial
    baseline, and how many seeds have solved the task. A sweep shows all its runs in one bar, whose title changes from
    run to run.

    Args:
      total: steps of all runs.
      quiet: whether to show nothing.
      file: to write to; standard error by default.
    """

    def __init__(self, total: int, quiet: bool = False, file: TextIO | None = None):
        self._file, self._quiet, self._total = sys.stderr if file is None else file, quiet, total
        self._title, self._baseline, self._before, self._step = "", 1.0, 0, 0
        self._bar: Any = None
        self._printed = self._begun = time.perf_counter()
        self._first = 0

    def __enter__(self) -> Self:
        if self._file.isatty() and not self._quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="step", unit_scale=False, dynamic_ncols=True, file=self._file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, title: str, baseline: float, step: int, before: int = 0) -> None:
        """Begins a run.

        Args:
          title: its name.
          baseline: its trivial loss.
          step: the number of its steps that are done already.
          before: the number of steps of the runs before it.
        """
        self._title, self._baseline, self._before = title, baseline, before
        self._step = self._first = before + step
        self._begun = time.perf_counter()
        if self._bar is not None:
            self._bar.set_description(title, refresh=False)
            self._bar.reset(self._total)
            self._bar.initial = self._step
            self._bar.update(self._step)

    def update(self, step: int, losses: Sequence[float], solved: int) -> None:
        """Shows that `step` steps of the run are done, with the evaluation loss of each seed and the number solved."""
        done, self._step = self._before + step - self._step, self._before + step
        if self._bar is not None:
            self._bar.set_postfix_str(self._measured(losses, solved), refresh=False)
            self._bar.update(done)
            return
        now = time.perf_counter()
        if now - self._printed >= QUIET_SECONDS and not self._quiet:
            self._printed = now
            rate = (self._step - self._first) / (now - self._begun)
            print(
                f"{self._title}: step {self._step}/{self._total}, {rate:.3g} steps/s, {self._measured(losses, solved)}",
                file=self._file,
                flush=True,
            )

    def _measured(self, losses: Sequence[float], solved: int) -> str:
        share = statistics.median(losses) / self._baseline
        text = f"loss {spread(losses)}, {share:.3g} of baseline"
        return text if len(losses) == 1 else f"{text}, {solved}/{len(losses)} solved"


def spread(values: Sequence[float]) -> str:
    """The median; and the range, if there are several values.

    >>> spread([0.25]), spread([0.5, 0.25, 1.0])
    ('0.25', '0.5 [0.25, 1]')
    """
    median = f"{statistics.median(values):.3g}"
    return median if len(values) == 1 else f"{median} [{min(values):.3g}, {max(values):.3g}]"
