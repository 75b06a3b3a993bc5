"""Settings of a training run: `Config`, which determines its result, and `Train`, which adds where and how to run."""

import dataclasses
import functools
import importlib.util
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import jax
import tyro

from experiments import models, tasks
from experiments.names import lookup
from experiments.optimizers import SCHEDULES

PROGRAM = "python -m experiments"


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that determine the result of a run, bit for bit on one machine; written to config.json."""

    task: tyro.conf.Suppress[str]
    """name of the task"""
    length: int
    """the task's length T, in time steps"""
    steps: int
    """budget, in optimizer steps; the run ends earlier if the task is solved"""
    hidden: int
    """units of the cell"""
    batch: int
    """sequences in an optimizer step"""
    learning_rate: float
    """Adam's step size; with a schedule, its peak"""
    schedule: str = "constant"
    """of the learning rate: constant, or cosine or linear, which end at 0"""
    warmup: int = 0
    """optimizer steps over which the learning rate rises to its peak"""
    clip: float = 1.0
    """largest global norm of a gradient; larger ones are scaled down to it"""
    cell: str = "gru"
    """the recurrent cell: see `list`; or one of your own, path/to/file.py:MyCell"""
    init: str = "chrono"
    """how the cell's weights are initialised; see `list`"""
    match_params: int = 0
    """number of parameters to match as nearly as possible by the number of units; 0: --hidden counts"""
    seed: int = 0
    """the first seed, of parameters and data"""
    seeds: int = 1
    """how many seeds, from --seed on, to train side by side in one program"""
    chunk: int = 100
    """optimizer steps in one compiled call, between two evaluations"""
    evaluation: int = 1024
    """sequences in an evaluation, rounded up to whole batches"""
    beyond: tuple[int, ...] = ()
    """longer lengths to evaluate at, too"""
    curriculum: tuple[int, ...] = ()
    """lengths to train at before --length, each for --curriculum-steps"""
    curriculum_steps: int = 0
    """optimizer steps at each length of the curriculum"""
    target_loss: float = 0.0
    """evaluation loss that a solved task must reach, too; 0: the task's criterion alone"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        task = tasks.get(self.task)
        sizes = ("steps", "hidden", "batch", "chunk", "evaluation", "seeds")
        none = ("seed", "warmup", "match_params", "curriculum_steps")
        self._check_lengths(task)
        least = dict.fromkeys(sizes, 1) | dict.fromkeys(none, 0)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{_option(name)} must be at least {bound}, got {getattr(self, name)}")
        if self.seed + self.seeds > 2**32:
            raise ValueError(f"--seed must be below 2**32 − --seeds, got {self.seed}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{_option(name)} must be a positive number, got {value}")
        if not (self.target_loss >= 0 and math.isfinite(self.target_loss)):
            raise ValueError(f"--target-loss must be a number, 0 or more, got {self.target_loss}")
        models.cell(self.cell)
        for kind, table, name in (
            ("init", models.INITS, self.init),
            ("schedule", SCHEDULES, self.schedule),
        ):
            lookup(kind, table, name)
        self._check_stages()
        try:
            self.model.count(task.in_features, self.hidden, task.out_features)
        except ValueError as error:
            message = f"--init {self.init} does not go with --cell {self.cell}, but --init default does: {error}"
            raise ValueError(message) from error
        _ = self.units  # raises if --match-params is too few

    def _check_lengths(self, task: tasks.Task) -> None:
        for name, lengths in (("length", (self.length,)), ("beyond", self.beyond), ("curriculum", self.curriculum)):
            for length in lengths:
                if length < task.min_length:
                    raise ValueError(f"{_option(name)} must be at least {task.min_length}, got {length}")
                if task.max_length is not None and length > task.max_length:
                    raise ValueError(f"{_option(name)} must be at most {task.max_length}, got {length}")

    def _check_stages(self) -> None:
        if self.warmup >= self.steps:
            raise ValueError(f"--warmup must be less than --steps = {self.steps}, got {self.warmup}")
        if bool(self.curriculum) != bool(self.curriculum_steps):
            raise ValueError("--curriculum and --curriculum-steps must be given together")
        if len(self.curriculum) * self.curriculum_steps >= self.steps:
            taken = f"{len(self.curriculum)} × --curriculum-steps {self.curriculum_steps}"
            raise ValueError(f"--curriculum takes {taken}, which must be less than --steps = {self.steps}")

    @property
    def model(self) -> models.Model:
        """The model to train."""
        return models.Model(self.cell, self.init if models.accepts_init(self.cell, self.init) else "default")

    @functools.cached_property
    def units(self) -> int:
        """Units of the cell: --hidden, or what comes nearest to --match-params.

        Raises:
          ValueError: if --match-params is too few.
        """
        if not self.match_params:
            return self.hidden
        task = tasks.get(self.task)
        return self.model.fit(self.match_params, task.in_features, task.out_features)

    def stage(self, step: int) -> tuple[int, int]:
        """The length of the data at a step, and the first step at which the length is another, or else `steps`.

        >>> config = dataclasses.replace(defaults("adding").config, curriculum=(10, 30), curriculum_steps=50)
        >>> config.stage(0), config.stage(49), config.stage(50), config.stage(100)
        ((10, 50), (10, 50), (30, 100), (100, 5000))
        """
        if step < len(self.curriculum) * self.curriculum_steps:
            number = step // self.curriculum_steps
            return self.curriculum[number], (number + 1) * self.curriculum_steps
        return self.length, self.steps

    def solved(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metrics of one seed meet the criterion; those at a longer length L are called "name@L"."""
        task = tasks.get(self.task)
        here = {name: value for name, value in metrics.items() if "@" not in name}
        there = [{name: metrics[f"{name}@{length}"] for name in here} for length in self.beyond if task.generalises]
        on_target = not self.target_loss or here["loss"] <= self.target_loss
        return on_target and all(task.solved(each) for each in (here, *there))

    def as_dict(self) -> dict[str, Any]:
        """As written to config.json."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As read from config.json."""
        read: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**read)


@dataclasses.dataclass(frozen=True)
class Train:
    """One call of `train`: a configuration, and where and how to run it."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/<task>-T<length>-…)")
    ] = None
    """run folder"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on with an interrupted run in the folder; of a finished one, show the summary"""
    checkpoint_seconds: float = 5.0
    """least time between two checkpoints, in seconds; does not change the result"""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """write TensorBoard events into the run folder, too"""
    devices: int = 1
    """number of devices over which a batch is sharded"""
    coordinator: str | None = None
    """HOST:PORT of process 0, if several processes train together"""
    processes: int = 1
    """how many processes train together; --devices counts the devices of all"""
    process: int = 0
    """the number of this process among them"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        self.config.check()
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"--checkpoint-seconds must be at least 0, got {self.checkpoint_seconds}")
        if self.tensorboard and importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("--tensorboard needs tensorboardX; pip install 'gru_jax[experiments]' brings it")
        if self.devices < 1 or self.config.batch % self.devices:
            raise ValueError(f"--devices must divide --batch = {self.config.batch}, got {self.devices}")
        if self.devices > jax.device_count():
            raise ValueError(f"--devices must be at most the {jax.device_count()} there are, got {self.devices}")

    def check_processes(self) -> None:
        """The same for what must be known before JAX starts."""
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise ValueError(f"--process must lie in [0, --processes), got {self.process} of {self.processes}")
        if (self.coordinator is None) != (self.processes == 1):
            raise ValueError("--coordinator and --processes must be given together")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / self.name

    @property
    def name(self) -> str:
        """What tells this run from others of its task: what differs from the defaults, shortly.

        >>> defaults("adding").name
        'adding-T100-s0'
        """
        config, usual = self.config, defaults(self.config.task).config
        words = [config.task, f"T{config.length}"]
        for name in ("cell", "init"):
            if (value := getattr(config, name)) != getattr(usual, name):
                words.append(value.rpartition(":")[2])
        last = config.seed + config.seeds - 1
        return "-".join([*words, f"s{config.seed}" if config.seeds == 1 else f"s{config.seed}..{last}"])

    def command(self, result_only: bool = False) -> str:
        """The command line of these settings, without --resume; with `result_only` only those that change the result.

        >>> options = defaults("adding")
        >>> dataclasses.replace(options, out=Path("my runs")).command()
        "python -m experiments train adding --out 'my runs'"
        """
        usual = defaults(self.config.task)
        words = changed_options(self.config, usual.config)
        if not result_only:
            words += changed_options(dataclasses.replace(self, config=usual.config, resume=usual.resume), usual)
        return shlex.join([*PROGRAM.split(), "train", self.config.task, *words])


def defaults(name: str) -> Train:
    """The defaults of `train` for a task: its recipe."""
    return Train(Config(task=name, **tasks.get(name).recipe._asdict()))


def changed_options(options: Any, usual: Any) -> list[str]:
    """The words of a command line that set those fields of a dataclass that are not as usual.

    >>> train = defaults("adding")
    >>> changed_options(dataclasses.replace(train, tensorboard=True, devices=2), train)
    ['--tensorboard', '--devices', '2']
    """
    words = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != getattr(usual, field.name):
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [_option(field.name), *map(str, values)]
    return words


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
