"""One call of `train`: chunks of steps, from the last checkpoint of the run folder to the end of the run."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments import interrupts, runs, tasks, training
from experiments.config import Train
from experiments.progress import Progress
from experiments.runs import Status
from experiments.summary import text
from experiments.training import State

# The number of further draws of evaluation data whose mean must confirm that a task is solved.
CONFIRMATIONS = 8

Values = dict[str, list[float]]
"""Metrics by name: a value for each seed."""


class DivergedError(Exception):
    """A loss has become infinite or NaN."""


def train(run: runs.Run, options: Train, started: float) -> int:
    """Trains until every seed has solved the task or the budget is spent, and prints a summary.

    Args:
      run: the run folder, opened for these options.
      options: of the run, already checked.
      started: `time.perf_counter()` at the start of the process, for the time to the first step.

    Returns:
      The exit status: 0 if the run ended, 1 if it diverged, 130 if Ctrl-C interrupted it.
    """

    def interrupted() -> str:
        step = run.metrics[-1]["step"] if run.metrics else 0
        return f"Interrupted at step {step}. Go on with:\n  {options.command()} --resume"

    try:
        with interrupts.on_leaving(say=interrupted), Progress(options.config.steps, quiet=not run.writes) as progress:
            result = finish(run, options, started, progress)
    except KeyboardInterrupt:
        print(f"\n{interrupted()}", file=sys.stderr)
        return 130
    if run.writes:
        print(text(options, run, result))
    return 1 if result["status"] == Status.DIVERGED else 0


def finish(run: runs.Run, options: Train, started: float, progress: Progress, before: int = 0) -> dict[str, Any]:
    """Trains to the end of the run, unless it has ended already.

    Args:
      run, options, started: see `train`.
      progress: shows the steps.
      before: the number of steps that it has shown for runs before this one.

    Returns:
      How the run ended, as in summary.json.
    """
    result = run.result()
    return _Session(run, options, started).train(progress, before) if result is None else result


class _Session:
    """A call of `train` while it runs.

    Attributes:
      state: the training state after the last recorded line of metrics.
    """

    state: State

    def __init__(self, run: runs.Run, options: Train, started: float):
        self.run, self.options, self.config = run, options, options.config
        self.task = tasks.get(self.config.task)
        self.mesh = training.devices_mesh(options.devices)
        self.started = self.last_line = started
        self.last_save = time.perf_counter()
        self.has_begun = False

    def train(self, progress: Progress, before: int) -> dict[str, Any]:
        """Trains from the last checkpoint, or from the start, to the end of the run; returns how it ended."""
        state = self.run.restore(jax.eval_shape(lambda: training.init(self.config)), self.mesh)
        self.state = training.init(self.config, self.mesh) if state is None else state
        progress.begin(self.options.name, self.task.baseline(self.config.length), _step(self.state), before)
        with interrupts.on_leaving(save=self._leave):
            return self._finish(*self._steps(progress))

    def _steps(self, progress: Progress) -> tuple[Status, str]:
        """Trains chunks to the end of the run; returns the status and, if it diverged, the reason."""
        try:
            while (status := self._status()) is None:
                self._chunk()
                line = self.run.metrics[-1]
                progress.update(line["step"], line["eval_loss"], len(self._solved(line)))
                if self._is_due():
                    self._save()
            return status, ""
        except KeyboardInterrupt:
            self._save()
            raise
        except DivergedError as reason:
            return Status.DIVERGED, str(reason)

    def _save(self) -> None:
        """Begins to write a checkpoint of the state, if its step is recorded and has no checkpoint yet."""
        step = _step(self.state)
        if any(line["step"] == step for line in self.run.metrics):
            with interrupts.lock:
                self.run.save(step, self.state)
            self.last_save = time.perf_counter()

    def _leave(self) -> None:
        """Saves the state, and waits until it is written."""
        self._save()
        self.run.close()

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if jax.process_count() > 1:
            return True  # all processes must agree, and their clocks may not
        return time.perf_counter() - self.last_save >= self.options.checkpoint_seconds

    def _chunk(self) -> None:
        """Trains the seeds that have not solved the task for one chunk, evaluates them, and records the metrics."""
        state = self.state
        before = self.run.metrics[-1] if self.run.metrics else None
        solved = self._solved(before) if before else []
        active = [i for i in range(self.config.seeds) if i not in solved]
        begin = before["step"] if before else 0
        length, end = self.config.stage(begin)
        part = _select_seeds(state, active) if len(active) < self.config.seeds else state
        part, loss = training.train_chunk(self.config, part, min(self.config.chunk, end - begin), length, self.mesh)
        timing = {}
        if not self.has_begun:
            # The call has returned: the chunk is compiled and has begun to run.
            self.has_begun, timing = True, {"first_step_seconds": time.perf_counter() - self.started}
        measured = {"train_loss": np.asarray(loss).tolist()} | self._evaluate(part)
        step = _step(part)
        self._check_finite(measured, active, begin, step)
        line = {"step": step} | (_merged(before, measured, active) if before else measured)
        state = _update_seeds(state, part, active) if len(active) < self.config.seeds else part
        now = time.perf_counter()
        with interrupts.lock:
            self.run.record(line, {"step": step, "seconds": now - self.last_line} | timing)
            self.state = state
        self.last_line = now

    def _check_finite(self, measured: Values, active: Sequence[int], begin: int, end: int) -> None:
        for name, values in measured.items():
            for seed, value in zip(active, values, strict=True):
                if not math.isfinite(value):
                    which = f" of seed {self.config.seed + seed}" if self.config.seeds > 1 else ""
                    raise DivergedError(f"{name}{which} became {value} between steps {begin} and {end}")

    def _evaluate(self, state: State) -> Values:
        """Metrics on fresh data. Those of seeds that meet the criterion are the mean over more data, so that no seed
        counts as solved by a lucky draw."""

        def on(draw: int) -> Values:
            metrics: Values = {}
            for length in (self.config.length, *self.config.beyond):
                there = "" if length == self.config.length else f"@{length}"
                evaluated = training.evaluate(self.config, state, length, draw, self.mesh)
                metrics |= {f"eval_{name}{there}": np.asarray(value).tolist() for name, value in evaluated.items()}
            return dict(sorted(metrics.items()))

        first = on(0)
        claimed = self._solved(first)
        if not claimed:
            return first
        draws = [on(draw) for draw in range(1, 1 + CONFIRMATIONS)]
        mean = {name: [float(x) for x in np.mean([each[name] for each in draws], axis=0)] for name in first}
        return {
            name: [mean[name][i] if i in claimed else value for i, value in enumerate(values)]
            for name, values in first.items()
        }

    def _solved(self, line: dict[str, Any]) -> list[int]:
        """The indices of the seeds that have solved the task, by these metrics."""
        names = [name for name in line if name.startswith("eval_")]
        return [
            i
            for i in range(len(line["eval_loss"]))
            if self.config.solved({name.removeprefix("eval_"): line[name][i] for name in names})
        ]

    def _status(self) -> Status | None:
        """How the run has ended, by its last recorded line; None if it has not."""
        if not self.run.metrics:
            return None
        line = self.run.metrics[-1]
        if len(self._solved(line)) == self.config.seeds:
            return Status.SOLVED
        return Status.SPENT if line["step"] >= self.config.steps else None

    def _finish(self, status: Status, reason: str) -> dict[str, Any]:
        """Writes the last checkpoint, the learning curve and summary.json; returns what is in summary.json."""
        self._save()
        if self.run.metrics and self.run.writes:
            from experiments.plots import learning_curve

            learning_curve(self.run.folder / runs.CURVE, self.config, self.run.metrics)
        last = self.run.metrics[-1] if self.run.metrics else {"step": 0}
        task, units = self.task, self.config.units
        result = {
            "status": status,
            "baseline": task.baseline(self.config.length),
            "units": units,
            "parameters": self.config.model.count(task.in_features, units, task.out_features),
            "solved_at": self._solved_at(),
            **last,
        }
        if status == Status.DIVERGED:
            checkpoint = self.run.checkpoint
            result |= {"reason": reason, "last_good_checkpoint": None if checkpoint is None else checkpoint.name}
        with interrupts.lock:
            self.run.finish(result)
        return result

    def _solved_at(self) -> list[int | None]:
        """The step at which each seed solved the task, or None."""
        steps: list[int | None] = [None] * self.config.seeds
        for line in reversed(self.run.metrics):
            for i in self._solved(line):
                steps[i] = line["step"]
        return steps


def _step(state: State) -> int:
    """The number of steps done. NumPy reads it, since the thread of a signal must not start a computation."""
    return int(np.asarray(state.step).max())


def _select_seeds(state: State, seeds: Sequence[int]) -> State:
    """The state of some of the seeds."""
    return jax.tree.map(lambda leaf: leaf[np.array(seeds)], state)


def _update_seeds(state: State, part: State, seeds: Sequence[int]) -> State:
    """The state of all seeds, with `part` as the new state of some of them; keys stay the same."""
    old, new = ((each.params, each.opt_state, each.step) for each in (state, part))
    params, opt_state, step = jax.tree.map(lambda leaf, value: leaf.at[np.array(seeds)].set(value), old, new)
    return State(params, opt_state, state.key, step)


def _merged(before: dict[str, Any], measured: Values, seeds: Sequence[int]) -> Values:
    """The metrics of all seeds: those measured now for `seeds`, and for the others those of the line before."""
    merged = {name: list(before[name]) for name in measured}
    for name, values in measured.items():
        for i, value in zip(seeds, values, strict=True):
            merged[name][i] = value
    return merged
