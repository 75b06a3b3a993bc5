"""A run folder: the files of a run, written in an order that survives a kill at any moment.

::

    config.json     settings that determine the result; written first, never changed
    metrics.jsonl   a line after every chunk: step, train_loss, eval_loss, … of every seed; eval_loss@L is at length L
    checkpoints/    training states, by orbax, which shows a checkpoint only when it is complete
    summary.json    how the run ended; it exists only when the run has ended
    curve.png       learning curve
    timing.jsonl    wall-clock times, a line for each of metrics.jsonl; the one file that differs when a run is repeated
    tensorboard/    TensorBoard events, if asked for
    run.lock        locked by the process that trains; the operating system unlocks it when that process ends

A line of metrics is on disk before the checkpoint of its step begins. So after any interruption every line up to the
last complete checkpoint is there. Resuming cuts off the lines after it, even an incomplete one, and repeats those
steps. If several processes train together, only the first writes the logs; all of them write the checkpoints.
"""

import enum
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import filelock
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.config import Train
from experiments.events import Events
from experiments.training import State
from gru_jax import output

CONFIG, METRICS, TIMING, SUMMARY, CURVE, CHECKPOINTS, EVENTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "timing.jsonl",
    "summary.json",
    "curve.png",
    "checkpoints",
    "tensorboard",
    "run.lock",
)


class Status(enum.StrEnum):
    """How a run stands. All but `UNFINISHED` are written to summary.json."""

    SOLVED = "solved"
    SPENT = "budget spent"
    DIVERGED = "diverged"
    UNFINISHED = "unfinished"


class Run:
    """An open run folder, and a context manager that closes it.

    Attributes:
      folder: its path.
      metrics: the lines of metrics.jsonl.
      timing: the lines of timing.jsonl.
    """

    def __init__(
        self,
        folder: Path,
        open_events: Callable[[int], Events] | None = None,
        lock: filelock.BaseFileLock | None = None,
    ):
        self.folder = folder
        self._lock = lock
        self.metrics: list[dict[str, Any]] = []
        self.timing: list[dict[str, Any]] = []
        self._saved: int | None = None
        self._manager: Any = None
        self._open_events = open_events if self.writes else None
        self._events: Events | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def writes(self) -> bool:
        """Whether this process writes the logs."""
        return _writes()

    def result(self) -> dict[str, Any] | None:
        """How the run ended, as in summary.json, after loading the logs; None if it has not ended."""
        path = self.folder / SUMMARY
        if not path.exists():
            return None
        self.metrics, self.timing = (read_log(self.folder / name) for name in (METRICS, TIMING))
        return json.loads(path.read_text())

    @property
    def checkpoint(self) -> Path | None:
        """The last complete checkpoint, or None."""
        return None if self._saved is None else self.folder / CHECKPOINTS / str(self._saved)

    def restore(self, abstract: State, mesh: Mesh | None) -> State | None:
        """The state of the last checkpoint, after cutting the logs back to it; None if there is no checkpoint.

        Args:
          abstract: the state's shapes and dtypes.
          mesh: of the devices that the state is replicated on; None for one device.

        Raises:
          ValueError: if metrics.jsonl lacks the line of the checkpoint's step.
        """
        self._saved = self._checkpoints().latest_step() if (self.folder / CHECKPOINTS).exists() else None
        done = self._saved or 0
        self.metrics, self.timing = (self._cut(name, done) for name in (METRICS, TIMING))
        self._events = None if self._open_events is None else self._open_events(done)
        if self._saved is None:
            return None
        if not self.metrics or self.metrics[-1]["step"] != done:
            raise ValueError(f"{self.folder / METRICS} lacks the line of step {done}, which has a checkpoint")
        import orbax.checkpoint as ocp

        one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        sharding = one if mesh is None else NamedSharding(mesh, PartitionSpec())
        placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
        return self._checkpoints().restore(done, args=ocp.args.StandardRestore(placed))

    def record(self, metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl and to timing.jsonl."""
        for name, lines, line in ((TIMING, self.timing, timing), (METRICS, self.metrics, metrics)):
            lines.append(line)
            if self.writes:
                with (self.folder / name).open("a") as file:
                    file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._events is not None:
            self._events.write(metrics)

    def save(self, step: int, state: State) -> None:
        """Begins to write a checkpoint, in the background: the state after a step whose metrics are recorded."""
        import orbax.checkpoint as ocp

        if step == self._saved:
            return
        if self.writes:
            with (self.folder / METRICS).open("a") as file:
                os.fsync(file.fileno())
        self._checkpoints().save(step, args=ocp.args.StandardSave(state))
        self._saved = step

    def finish(self, result: dict[str, Any]) -> None:
        """Waits for the last checkpoint and marks the run as ended."""
        self.close()
        if self.writes:
            _write_json(self.folder / SUMMARY, result)

    def close(self) -> None:
        """Waits until the checkpoints are written."""
        if self._events is not None:
            self._events.close()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _checkpoints(self) -> Any:
        # Imported here because it takes a second, which the first training step need not wait for.
        import orbax.checkpoint as ocp

        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager((self.folder / CHECKPOINTS).absolute(), options=options)
        return self._manager

    def _cut(self, name: str, step: int) -> list[dict[str, Any]]:
        """Cuts a log back to the lines up to a step, and returns them."""
        path = self.folder / name
        lines = [line for line in read_log(path) if line["step"] <= step]
        if path.exists() and self.writes:
            output.write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines


def open_run(options: Train) -> Run:
    """The run folder of a call of `train`, locked for this process: a new one, or an existing one with `resume`.

    Raises:
      ValueError: if the folder holds a run and `resume` is not given, if it holds a run with other settings or files
        that are not of a run, or if another process trains in it. Nothing is ever overwritten.
    """
    folder, seed = options.folder, options.config.seed
    lock = _claim(options) if _writes() else None
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("the run folder is there")
    return Run(folder, functools.partial(Events, folder / EVENTS, seed) if options.tensorboard else None, lock)


def _writes() -> bool:
    return jax.process_index() == 0


def _claim(options: Train) -> filelock.BaseFileLock:
    """Locks the folder if it holds nothing but a run, and writes config.json if the run is new."""
    folder = options.folder
    path = folder / CONFIG
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
        raise ValueError(f"{folder} exists and holds no run; choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise ValueError(f"another process trains in {folder}; choose another folder with --out") from None
    try:
        if path.exists():
            _check_existing(options, json.loads(path.read_text())["config"])
        else:
            command = options.command(result_only=True)
            _write_json(path, {"config": options.config.as_dict(), "command": command, "made_with": _versions()})
    except BaseException:
        lock.release()
        raise
    return lock


def _is_foreign(entry: Path) -> bool:
    """Whether this is a file that no run leaves in its folder before it has written config.json."""
    return entry.name != LOCK and not entry.name.endswith(output.PARTIAL)


def _check_existing(options: Train, existing: dict[str, Any]) -> None:
    wanted = options.config.as_dict()
    changed = [name for name in {**existing, **wanted} if existing.get(name) != wanted.get(name)]
    if changed:
        differences = ", ".join(f"{name} {existing.get(name)} (now {wanted.get(name)})" for name in changed)
        raise ValueError(
            f"{options.folder} holds a run with other settings: {differences}; choose another folder with --out"
        )
    if not options.resume:
        raise ValueError(
            f"{options.folder} holds this run already; go on with --resume, or choose another folder with --out"
        )


def read_log(path: Path) -> list[Any]:
    """The lines of a log, a JSON value each, without a last one that has no line break: it was cut off, or is being
    written. A log that does not exist is empty.

    Raises:
      ValueError: if a line is not JSON, or the file is not UTF-8.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _versions() -> dict[str, str]:
    import gru_jax

    return {"gru_jax": gru_jax.__version__, "jax": jax.__version__, "platform": jax.default_backend()}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    output.write_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
