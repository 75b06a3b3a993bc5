"""`python -m experiments sweep FILE`: trains the runs of a TOML file, one after the other; finished ones are skipped.

The file gives the settings that its runs share, and those in which they differ. A list of values stands for a run with
each of them, several lists for all combinations::

    [defaults]
    seeds = 5

    [[run]]
    task = ["adding", "multiplication"]
    length = [200, 600]
    cell = ["gru", "lstm"]

Settings are those of `experiments.config.Config`, by default those of the task's recipe. `name` is a prefix for the
names of the runs.
"""

import dataclasses
import itertools
import shlex
import statistics
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import jax
import tyro

from experiments import config, interrupts, runs, session
from experiments.config import Config, Train
from experiments.names import lookup
from experiments.progress import Progress, spread
from experiments.runs import Status
from gru_jax import output

FIELDS: dict[str, Any] = get_type_hints(Config)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train all runs of a file; after an interruption the same command goes on."""

    file: tyro.conf.Positional[Path]
    """TOML file of the runs"""
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/<name of the file>)")
    ] = None
    """folder of the run folders"""
    dry: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """only show the commands of the runs, and which of them have ended"""
    checkpoint_seconds: float = 5.0
    """least time between two checkpoints, in seconds; does not change the result"""

    @property
    def folder(self) -> Path:
        """The folder of the run folders."""
        return self.out or Path("runs") / self.file.stem

    def read(self) -> list[Train]:
        """The runs of the file, checked.

        Raises:
          ValueError: if the file is not TOML, or a run makes no sense; the message says which run.
          OSError: if the file cannot be read.
        """
        try:
            table = tomllib.loads(self.file.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{self.file} is not TOML: {error}") from error
        if unknown := [name for name in table if name not in ("defaults", "run")]:
            raise ValueError(f"{self.file} has a table {unknown[0]!r}; it may have [defaults] and [[run]]")
        named: dict[str, Train] = {}
        for number, entry in enumerate(table.get("run", []), 1):
            try:
                for name, one in _expand(table.get("defaults", {}) | entry):
                    options = Train(one, self.folder / name, True, self.checkpoint_seconds)
                    options.check()
                    if named.setdefault(name, options) is not options:
                        raise ValueError(f"another run is called {name!r}, too; give one of them a name = …")
            except ValueError as error:
                raise ValueError(f"{self.file}, run {number}: {error}") from error
        if not named:
            raise ValueError(f"{self.file} lists no [[run]]")
        return list(named.values())

    def command(self) -> str:
        """The command line that goes on with the sweep."""
        where = [] if self.out is None else ["--out", str(self.out)]
        return shlex.join([*config.PROGRAM.split(), "sweep", str(self.file), *where])


def run(options: Sweep, started: float) -> int:
    """Trains the runs that have not ended, and prints a table of all.

    Returns:
      The exit status: 0 if all runs have ended, 1 if one of them has diverged, 130 after Ctrl-C.
    """
    listed = options.read()
    if options.dry:
        for one in listed:
            done = (one.folder / runs.SUMMARY).exists()
            print(f"{'done' if done else 'to do'}  {dataclasses.replace(one, resume=False).command()}")
        return 0
    for one in listed:
        # Reports a folder that cannot be used before anything is computed. Each is locked only while it is trained.
        with runs.open_run(one):
            pass
    opened, results, before = [], [], 0
    interrupted = f"Interrupted. Go on with:\n  {options.command()}"
    try:
        with (
            interrupts.on_leaving(say=lambda: interrupted),
            Progress(sum(one.config.steps for one in listed)) as progress,
        ):
            for one in listed:
                with runs.open_run(one) as folder:
                    results.append(session.finish(folder, one, started, progress, before))
                opened.append(folder)
                before += one.config.steps
                # The compiled programs are not needed again, and there may be hundreds of runs.
                jax.clear_caches()
                started = time.perf_counter()
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    print(_table(listed, opened, results))
    print(f"\n{config.PROGRAM} report {shlex.quote(str(options.folder))} makes a page of it.")
    return 1 if any(result["status"] == Status.DIVERGED for result in results) else 0


def _table(listed: list[Train], opened: list[runs.Run], results: list[dict[str, Any]]) -> str:
    """A line for each run: how many seeds solved the task, at which step, and the evaluation loss."""
    rows = [("run", "solved", "median step", "loss, median [range]", "minutes")]
    for one, folder, result in zip(listed, opened, results, strict=True):
        solved = [at for at in result["solved_at"] if at is not None]
        losses = result.get("eval_loss", [])
        rows.append(
            (
                one.folder.name,
                result["status"] if result["status"] == Status.DIVERGED else f"{len(solved)}/{one.config.seeds}",
                f"{statistics.median(solved):.0f}" if solved else "–",
                spread(losses) if losses else "–",
                f"{sum(line['seconds'] for line in folder.timing) / 60:.1f}",
            )
        )
    return output.table(rows)


def _expand(entry: Mapping[str, Any]) -> Iterator[tuple[str, Config]]:
    """The runs that an entry of a file stands for, with their names."""
    tasks = entry.get("task")
    for task in tasks if isinstance(tasks, list) else [tasks]:
        if not isinstance(task, str):
            raise ValueError(f"task must be the name of a task, or a list of them, got {task!r}")
        yield from _expand_task(task, {name: value for name, value in entry.items() if name != "task"})


def _expand_task(task: str, values: dict[str, Any]) -> Iterator[tuple[str, Config]]:
    """The runs of one task, with their names."""
    prefix = values.pop("name", None)
    recipe = config.defaults(task).config
    varied = {name: options for name, value in values.items() if (options := _options(name, value)) is not None}
    fixed = {name: _checked(name, value) for name, value in values.items() if name not in varied}
    for combination in itertools.product(*varied.values()):
        chosen = dict(zip(varied, combination, strict=True))
        one = dataclasses.replace(recipe, **fixed, **chosen)
        shown = [name for name in chosen if name not in ("length", "cell", "init", "seed", "seeds")]
        words = [f"{name.replace('_', '-')}{_word(chosen[name])}" for name in shown]
        yield "-".join([prefix or "", Train(one).name, *words]).strip("-"), one


def _options(name: str, value: Any) -> list[Any] | None:
    """The values of a setting, if it varies; else None."""
    several = isinstance(value, list) and (not _is_tuple(name) or any(isinstance(item, list) for item in value))
    return [_checked(name, item) for item in value] if several else None


def _checked(name: str, value: Any) -> Any:
    """The value, if it has the type of the setting."""
    lookup("setting", FIELDS, name)
    if _is_tuple(name):
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise ValueError(f"{name} must be a list of integers, got {value!r}")
        return tuple(value)
    kinds = (int, float) if FIELDS[name] is float else (FIELDS[name],)
    if type(value) not in kinds:
        raise ValueError(f"{name} must be of type {FIELDS[name].__name__}, got {value!r}")
    return FIELDS[name](value)


def _is_tuple(name: str) -> bool:
    return lookup("setting", FIELDS, name) == tuple[int, ...]


def _word(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
