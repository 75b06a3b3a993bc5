"""A run folder: what a run leaves on disk, in an order that survives being killed at any moment.

::

    config.json     settings that determine the result; written first, never changed
    metrics.jsonl   a line after every chunk: step, train_loss, eval_loss, …, of every seed; eval_loss@L at length L
    checkpoints/    training states, by orbax, which makes a checkpoint visible only when it is whole
    summary.json    how the run ended; its presence means that it has
    curve.png       learning curve
    timing.jsonl    wall-clock times, beside metrics.jsonl: all that differs when a run is repeated
    tensorboard/    events, where they were asked for
    run.lock        locked by the process that trains; the system unlocks it however that process ends

A metrics line is on disk before the checkpoint of its step is begun. So whatever was interrupted, every line up to the
last whole checkpoint is there, and resuming cuts off the lines after it, a torn one too, and does those steps again.
Where several processes train together, the first alone writes the logs, and all of them the checkpoints.
"""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import filelock
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments import files
from experiments.config import Train
from experiments.events import Events
from experiments.training import State

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


class Run:
    """An open run folder; as a context manager, closed at the end.

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
        """How the run ended, its logs loaded; or None if it has not."""
        path = self.folder / SUMMARY
        if not path.exists():
            return None
        self.metrics, self.timing = (_lines(self.folder / name) for name in (METRICS, TIMING))
        return json.loads(path.read_text())

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint that is whole, or None."""
        return None if self._saved is None else self.folder / CHECKPOINTS / str(self._saved)

    def restore(self, abstract: State, mesh: Mesh | None) -> State | None:
        """The state of the last checkpoint, after cutting the logs back to it; None if there is no checkpoint.

        Args:
          abstract: the state's shapes and dtypes.
          mesh: on all of whose devices the state is to be; None for one device.

        Raises:
          ValueError: if metrics.jsonl lacks lines that it must have.
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
        """Begins a checkpoint of the state after a step whose metrics are recorded; it is written in the background."""
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
            _write(self.folder / SUMMARY, result)

    def close(self) -> None:
        """Waits until the checkpoints are written."""
        if self._events is not None:
            self._events.close()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _checkpoints(self) -> Any:
        # Imported only where needed: orbax takes a second that the first training step need not wait for.
        import orbax.checkpoint as ocp

        if self._manager is None:
            options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager((self.folder / CHECKPOINTS).absolute(), options=options)
        return self._manager

    def _cut(self, name: str, step: int) -> list[dict[str, Any]]:
        """The lines of a log up to a step, to which the file is cut back."""
        path = self.folder / name
        kept = [line for line in _lines(path) if line["step"] <= step]
        if path.exists() and self.writes:
            files.replace(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return kept


def open_run(options: Train) -> Run:
    """The run folder of a call of `train`: a new one, or with `resume` an existing one; this process alone has it.

    Raises:
      ValueError: if the folder holds a run and `resume` is not given, or a run of another configuration, or anything
        that is no run, or if another process trains there. Nothing is ever overwritten.
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
    """Locks the folder, once that is sure to harm nobody's files, and writes config.json if the run is new."""
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
            _write(path, {"config": options.config.as_dict(), "command": command, "made_with": _versions()})
    except BaseException:
        lock.release()
        raise
    return lock


def _is_foreign(entry: Path) -> bool:
    """Whether this is nothing that a run leaves before its configuration."""
    return entry.name != LOCK and not files.is_partial(entry)


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


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was torn, without its line break, is not among them."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _versions() -> dict[str, str]:
    import gru_jax

    return {"gru_jax": gru_jax.__version__, "jax": jax.__version__, "platform": jax.default_backend()}


def _write(path: Path, value: dict[str, Any]) -> None:
    files.replace(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
