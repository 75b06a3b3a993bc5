"""What is seen while a run goes on."""

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

QUIET_SECONDS = 10.0


class Progress:
    """A bar on a terminal; elsewhere, as in a log file, a line every ten seconds.

    Shows steps per second, the mean loss of the last chunk, and that over the trivial baseline.
    """

    def __init__(self, title: str, step: int, steps: int, baseline: float, file: TextIO | None = None):
        self._title, self._step, self._steps, self._baseline = title, step, steps, baseline
        self._file = sys.stderr if file is None else file
        self._bar: Any = None
        self._printed = self._begun = time.perf_counter()
        self._first = step

    def __enter__(self) -> Self:
        if self._file.isatty():
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

    def update(self, step: int, loss: float) -> None:
        """Shows that `step` steps are done and the last of them had this mean loss."""
        done, self._step = step - self._step, step
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3g}, {loss / self._baseline:.3g} of baseline", refresh=False)
            self._bar.update(done)
            return
        now = time.perf_counter()
        if now - self._printed >= QUIET_SECONDS:
            self._printed = now
            rate = (step - self._first) / (now - self._begun)
            print(
                f"{self._title}: step {step}/{self._steps}, {rate:.3g} steps/s, "
                f"loss {loss:.3g}, {loss / self._baseline:.3g} of baseline",
                file=self._file,
                flush=True,
            )
