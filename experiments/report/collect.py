"""Reads run folders, finished or not; a folder that cannot be read is named, with the reason."""

import collections
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import runs, tasks
from experiments.runs import Status

# Settings that change what is recorded, not how a seed is trained.
OBSERVING = ("seeds", "chunk", "evaluation", "beyond")


class Line(NamedTuple):
    """A line of metrics.jsonl: the step, and for each metric the values of all seeds; NaN stands for a missing one."""

    step: int
    values: Mapping[str, tuple[float, ...]]


class Broken(NamedTuple):
    """A folder that should hold a run but cannot be read."""

    folder: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: one configuration, several seeds.

    Attributes:
      folder: its path, relative to the folder of the report.
      task: the task.
      config: the settings, as in config.json.
      command: the command line of the run.
      made_with: versions and platform, as in config.json.
      lines: of metrics.jsonl.
      seconds: wall time so far; None if it was not recorded.
      summary: how it ended, as in summary.json; None if it has not ended.
      note: the settings that distinguish it from other runs of the same cell, initialisation and length; "" if it is
        the only one.
    """

    folder: str
    task: tasks.Task
    config: Mapping[str, Any]
    command: str
    made_with: Mapping[str, Any]
    lines: tuple[Line, ...]
    seconds: float | None
    summary: Mapping[str, Any] | None
    note: str = ""

    @property
    def length(self) -> int:
        """The task's length."""
        return self.config["length"]

    @property
    def variant(self) -> str:
        """Cell and initialisation."""
        return f"{self.config['cell']}, {self.config['init']}"

    @property
    def label(self) -> str:
        """Cell, initialisation and note."""
        return f"{self.variant}, {self.note}" if self.note else self.variant

    @property
    def status(self) -> Status:
        """How it stands."""
        return Status.UNFINISHED if self.summary is None else Status(self.summary["status"])

    @property
    def step(self) -> int:
        """The last recorded optimizer step."""
        return self.lines[-1].step if self.lines else 0

    @property
    def budget(self) -> int:
        """The number of optimizer steps after which an unsolved run ends."""
        return self.step if self.status == Status.SPENT else self.config["steps"]

    @property
    def solved_at(self) -> tuple[int | None, ...] | None:
        """For each seed the step at which it solved the task, or None; None for an unfinished run."""
        return None if self.summary is None else tuple(self.summary["solved_at"])

    def last(self, metric: str) -> tuple[float, ...] | None:
        """The last evaluation, by seed; None if there is none. "loss@400" is the loss at length 400."""
        return self.lines[-1].values.get(f"eval_{metric}") if self.lines else None

    def beyond(self, metric: str) -> list[tuple[int, tuple[float, ...]]]:
        """The last evaluation at each length beyond the trained one."""
        start = f"eval_{metric}@"
        names = [name for name in (self.lines[-1].values if self.lines else ()) if name.startswith(start)]
        return sorted((int(name.removeprefix(start)), self.lines[-1].values[name]) for name in names)


def collect(root: Path) -> tuple[list[Run], list[Broken]]:
    """All runs in a folder, at any depth, or the run that the folder is; and the folders that cannot be read.

    Runs are ordered by task, length, cell and initialisation, first seed, and folder.

    Raises:
      ValueError: if there is no such folder, or no run in it.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}")
    found: list[Run] = []
    broken: list[Broken] = []
    for folder in _run_folders(root):
        name = _printable(folder.relative_to(root).as_posix() if folder != root else folder.absolute().name)
        try:
            found.append(_read(folder, name))
        except OSError as error:
            broken.append(Broken(name, f"{error.filename and Path(error.filename).name}: {error.strerror}"))
        except ValueError as error:
            broken.append(Broken(name, _printable(str(error))))
    if not found and not broken:
        raise ValueError(f"{root} holds no runs: there is no {runs.CONFIG} in it or in a folder below it")
    order = list(tasks.TASKS)
    found.sort(key=lambda run: (order.index(run.task.name), run.length, run.variant, run.config["seed"], run.folder))
    return _with_notes(found), broken


def _run_folders(root: Path) -> Iterable[Path]:
    for folder, below, files in os.walk(root):
        below.sort()
        if runs.CONFIG in files:
            below.clear()  # a run's own folders hold no runs
        if runs.CONFIG in files or runs.METRICS in files:
            yield Path(folder)


def _read(folder: Path, name: str) -> Run:
    """Reads a run folder; ValueError or OSError says what is wrong with it."""
    written = _object(_json(folder / runs.CONFIG), runs.CONFIG)
    config = _object(written.get("config"), f"{runs.CONFIG}: config")
    for key in ("length", "steps", "hidden", "seed", "seeds"):
        _of_type(config, key, int, f"{runs.CONFIG}: config")
    for key in ("task", "cell", "init"):
        _of_type(config, key, str, f"{runs.CONFIG}: config")
    task = tasks.get(config["task"])
    for key, least in (("length", task.min_length), ("seeds", 1)):
        if config[key] < least:
            raise ValueError(f"{runs.CONFIG}: {key} must be at least {least}, got {config[key]}")
    lines = tuple(_line(line, config["seeds"]) for line in _log(folder / runs.METRICS))
    timing = [_of_type(line, "seconds", (int, float), runs.TIMING) for line in _log(folder / runs.TIMING)]
    path = folder / runs.SUMMARY
    return Run(
        folder=name,
        task=task,
        config=config,
        command=_printable(_of_type(written, "command", str, runs.CONFIG)),
        made_with=_object(written.get("made_with"), f"{runs.CONFIG}: made_with"),
        lines=lines,
        seconds=sum(timing) if timing else None,
        summary=_summary(_json(path), config["seeds"], bool(lines)) if path.exists() else None,
    )


def _line(line: Any, seeds: int) -> Line:
    step = _of_type(_object(line, runs.METRICS), "step", int, runs.METRICS)
    values = {name: _per_seed(line[name], seeds, runs.METRICS, name) for name in line if name != "step"}
    for name in values:
        if "@" in name and not name.partition("@")[2].isdecimal():
            raise ValueError(f"{runs.METRICS}: {name!r} names no length after @")
    return Line(step, {name: tuple(math.nan if v is None else float(v) for v in each) for name, each in values.items()})


def _summary(value: Any, seeds: int, has_lines: bool) -> dict[str, Any]:
    summary = _object(value, runs.SUMMARY)
    status = _of_type(summary, "status", str, runs.SUMMARY)
    if status not in set(Status) - {Status.UNFINISHED}:
        raise ValueError(f"{runs.SUMMARY}: unknown status {status!r}")
    if status != Status.DIVERGED and not has_lines:
        raise ValueError(f"{runs.SUMMARY} says {status!r}, but {runs.METRICS} holds nothing")
    _of_type(summary, "parameters", int, runs.SUMMARY)
    _of_type(summary, "units", int, runs.SUMMARY)
    _per_seed(summary.get("solved_at"), seeds, runs.SUMMARY, "solved_at")
    return summary


def _per_seed(values: Any, seeds: int, where: str, name: str) -> Sequence[float | None]:
    if isinstance(values, list) and len(values) == seeds and all(_is_number(v) or v is None for v in values):
        return values
    raise ValueError(f"{where}: {name} must be a list of {seeds} numbers, one for each seed")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_type(values: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    if key not in values:
        raise ValueError(f"{where} lacks {key}")
    if not isinstance(values[key], kind) or isinstance(values[key], bool):
        raise ValueError(f"{where}: {key} cannot be {values[key]!r}")
    return values[key]


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is missing or no JSON object")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error


def _log(path: Path) -> list[Any]:
    """The lines of a log, as `runs.read_log`."""
    try:
        return runs.read_log(path)
    except ValueError as error:
        raise ValueError(f"{path.name} holds a line that is no JSON: {error}") from error


def _with_notes(found: Sequence[Run]) -> list[Run]:
    """Runs with their notes; see `Run.note`."""
    groups = collections.defaultdict(list)
    for run in found:
        groups[run.task.name, run.variant].append(run)
    notes = {run.folder: note for group in groups.values() for run, note in zip(group, _notes(group), strict=True)}
    return [dataclasses.replace(run, note=notes[run.folder]) for run in found]


def _notes(group: Sequence[Run]) -> list[str]:
    """The notes of the runs of one task, cell and initialisation; equal notes are numbered."""
    by_length = collections.defaultdict(list)
    for run in group:
        by_length[run.length].append(run)
    differing = [
        key
        for key in dict.fromkeys(key for run in group for key in run.config)
        if key not in OBSERVING
        and any(len({str(run.config.get(key)) for run in alike}) > 1 for alike in by_length.values())
    ]
    notes = [", ".join(f"{key.replace('_', ' ')} {run.config.get(key)}" for key in differing) for run in group]
    seen: collections.Counter[tuple[int, str]] = collections.Counter()
    for place, run in enumerate(group):
        seen[run.length, notes[place]] += 1
        if (again := seen[run.length, notes[place]]) > 1:
            notes[place] = f"{notes[place]} ({again})".strip()
    return notes


def _printable(name: str) -> str:
    """A name that UTF-8 can encode; the names of files may hold any bytes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
