"""One call of `train`: chunks of steps from where the run folder stands until the run ends."""

import math
import sys
import time
from typing import Any

import jax

from experiments import runs, tasks, training
from experiments.config import Train
from experiments.progress import Progress
from experiments.summary import text
from experiments.training import State

SOLVED, SPENT, DIVERGED = "solved", "budget spent", "diverged"
# Draws of evaluation data whose mean must confirm that a task is solved, after a first draw has said so.
CONFIRMATIONS = 8


class DivergedError(Exception):
    """The loss is no longer finite."""


def train(run: runs.Run, options: Train, started: float) -> int:
    """Trains until the task is solved or the budget is spent, and prints a summary.

    Args:
      run: the run folder, opened for these options.
      options: what to train; they have been checked.
      started: `time.perf_counter()` when the process began, for the time to the first step.

    Returns:
      The exit status: 0 if the run ended, 1 if it diverged, 130 if it was interrupted by Ctrl-C.
    """
    result = run.result()
    if result is None:
        try:
            result = _Session(run, options, started).go()
        except KeyboardInterrupt:
            step = run.metrics[-1]["step"] if run.metrics else 0
            print(f"\nInterrupted at step {step}. Go on with:\n  {options.command()} --resume", file=sys.stderr)
            return 130
    print(text(options, run, result))
    return 1 if result["status"] == DIVERGED else 0


class _Session:
    """The state of one call while it runs."""

    def __init__(self, run: runs.Run, options: Train, started: float):
        self.run, self.options, self.config = run, options, options.config
        self.task = tasks.get(self.config.task)
        self.started = self.last_line = started
        self.last_save = time.perf_counter()
        self.has_begun = False

    def go(self) -> dict[str, Any]:
        """From the last checkpoint, or from the start, to the end of the run; returns how it ended."""
        state = self.run.restore(jax.eval_shape(lambda: training.init(self.config)))
        state = training.init(self.config) if state is None else state
        try:
            state, status, reason = self._steps(state)
        finally:
            self.run.close()
        return self._finish(state, status, reason)

    def _steps(self, state: State) -> tuple[State, str, str]:
        """Chunks until the end: the last good state, the status and, if it diverged, what happened."""
        config, step = self.config, int(state.step)
        title = f"{config.task} T={config.length} seed={config.seed}"
        try:
            with Progress(title, step, config.steps, self.task.baseline(config.length)) as progress:
                while (status := self._status()) is None:
                    state = self._chunk(state)
                    line = self.run.metrics[-1]
                    progress.update(line["step"], line["train_loss"])
                    if time.perf_counter() - self.last_save >= self.options.checkpoint_seconds:
                        self.run.save(state)
                        self.last_save = time.perf_counter()
            return state, status, ""
        except KeyboardInterrupt:
            if self._is_recorded(state):
                self.run.save(state)
            raise
        except DivergedError as reason:
            return state, DIVERGED, str(reason)

    def _chunk(self, state: State) -> State:
        """One chunk and its evaluation, recorded."""
        begin = int(state.step)
        new, loss = training.train_chunk(self.config, state, min(self.config.chunk, self.config.steps - begin))
        timing = {}
        if not self.has_begun:
            # The call returned when the chunk was compiled and had begun to run.
            self.has_begun, timing = True, {"first_step_seconds": time.perf_counter() - self.started}
        evaluated = self._evaluate(new)
        line: dict[str, Any] = {"step": int(new.step), "train_loss": float(loss)}
        line |= {f"eval_{name}": value for name, value in sorted(evaluated.items())}
        for name, value in line.items():
            if not math.isfinite(value):
                raise DivergedError(f"{name} became {value} between steps {begin} and {line['step']}")
        now = time.perf_counter()
        self.run.record(line, {"step": line["step"], "seconds": now - self.last_line} | timing)
        self.last_line = now
        return new

    def _evaluate(self, state: State) -> dict[str, float]:
        """Metrics on fresh data; on more of it if they would end the run, so that no lucky draw does."""

        def on(draws: range) -> dict[str, float]:
            metrics = [training.evaluate(self.config, state.params, state.step, draw) for draw in draws]
            return {name: float(sum(float(each[name]) for each in metrics) / len(draws)) for name in metrics[0]}

        metrics = on(range(1))
        return on(range(1, 1 + CONFIRMATIONS)) if self.task.solved(metrics) else metrics

    def _status(self) -> str | None:
        """How the run has ended, judged by its last recorded line; None if it has not."""
        if not self.run.metrics:
            return None
        line = self.run.metrics[-1]
        evaluated = {name.removeprefix("eval_"): value for name, value in line.items() if name.startswith("eval_")}
        if self.task.solved(evaluated):
            return SOLVED
        return SPENT if line["step"] >= self.config.steps else None

    def _is_recorded(self, state: State) -> bool:
        return int(state.step) in (line["step"] for line in self.run.metrics)

    def _finish(self, state: State, status: str, reason: str) -> dict[str, Any]:
        """Writes the last checkpoint, the curve and summary.json; returns what is in the latter."""
        if self._is_recorded(state):
            self.run.save(state)
        if self.run.metrics:
            from experiments.plots import learning_curve

            learning_curve(self.run.folder / runs.CURVE, self.config, self.run.metrics)
        last = self.run.metrics[-1] if self.run.metrics else {"step": 0}
        result = {"status": status, "baseline": self.task.baseline(self.config.length), **last}
        if status == DIVERGED:
            checkpoint = self.run.checkpoint
            result |= {"reason": reason, "last_good_checkpoint": None if checkpoint is None else checkpoint.name}
        self.run.finish(result)
        return result
