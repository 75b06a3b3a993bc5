"""What is seen while a run goes on."""

import statistics
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

QUIET_SECONDS = 10.0


class Progress:
    """A bar on a terminal; elsewhere, as in a log file, a line every ten seconds; nothing if `quiet`.

    Shows steps per second, the evaluation loss (median and range over seeds), the median as a share of the trivial
    baseline, and how many seeds have solved the task.
    """

    def __init__(
        self, title: str, step: int, steps: int, baseline: float, quiet: bool = False, file: TextIO | None = None
    ):
        self._title, self._step, self._steps, self._baseline = title, step, steps, baseline
        self._file, self._quiet = sys.stderr if file is None else file, quiet
        self._bar: Any = None
        self._printed = self._begun = time.perf_counter()
        self._first = step

    def __enter__(self) -> Self:
        if self._file.isatty() and not self._quiet:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._title,
                initial=self._step,
                total=self._steps,
                unit="step",
                unit_scale=False,
                dynamic_ncols=True,
                file=self._file,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, losses: Sequence[float], solved: int) -> None:
        """Shows that `step` steps are done, the evaluation loss of each seed, and how many are solved."""
        done, self._step = step - self._step, step
        if self._bar is not None:
            self._bar.set_postfix_str(self._measured(losses, solved), refresh=False)
            self._bar.update(done)
            return
        now = time.perf_counter()
        if now - self._printed >= QUIET_SECONDS and not self._quiet:
            self._printed = now
            rate = (step - self._first) / (now - self._begun)
            print(
                f"{self._title}: step {step}/{self._steps}, {rate:.3g} steps/s, {self._measured(losses, solved)}",
                file=self._file,
                flush=True,
            )

    def _measured(self, losses: Sequence[float], solved: int) -> str:
        median = statistics.median(losses)
        loss = f"loss {median:.3g}"
        if len(losses) > 1:
            loss += f" [{min(losses):.3g}, {max(losses):.3g}]"
        text = f"{loss}, {median / self._baseline:.3g} of baseline"
        return text if len(losses) == 1 else f"{text}, {solved}/{len(losses)} solved"
