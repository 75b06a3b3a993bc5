"""Settings of a training run: what determines its result, and what does not."""

import dataclasses
import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import tasks

PROGRAM = "python -m experiments"


@dataclasses.dataclass(frozen=True)
class Config:
    """All that determines the result of a run, bit for bit on one machine; goes into config.json."""

    task: tyro.conf.Suppress[str]
    """name of the task"""
    length: int
    """the task's length T, in time steps"""
    steps: int
    """budget, in optimizer steps; the run ends earlier if the task is solved"""
    hidden: int
    """units of the GRU"""
    batch: int
    """sequences in an optimizer step"""
    learning_rate: float
    """Adam's step size"""
    clip: float = 1.0
    """largest global norm of a gradient; longer ones are scaled down"""
    seed: int = 0
    """of the parameters and of all data"""
    chunk: int = 100
    """optimizer steps in one compiled call, between two evaluations"""
    evaluation: int = 1024
    """fresh sequences in an evaluation, rounded up to whole batches"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        task = tasks.get(self.task)
        sizes = ("steps", "hidden", "batch", "chunk", "evaluation")
        least = {"length": task.min_length, "seed": 0, **dict.fromkeys(sizes, 1)}
        for name, bound in least.items():
            value = getattr(self, name)
            if value < bound:
                raise ValueError(f"--{name} must be at least {bound}, got {value}")
        if self.seed >= 2**32:
            raise ValueError(f"--seed must be below 2**32, got {self.seed}")
        for name in ("learning_rate", "clip"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"--{name.replace('_', '-')} must be a positive number, got {value}")

    def as_dict(self) -> dict[str, Any]:
        """As written to config.json."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Train:
    """One call of `train`: a configuration, and where and how to run it."""

    config: tyro.conf.OmitArgPrefixes[Config]
    out: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/<task>-T<length>-s<seed>)")
    ] = None
    """run folder"""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """go on with the run in the folder where it was stopped; with a finished run, show its summary"""
    checkpoint_seconds: float = 5.0
    """least time between two checkpoints, in seconds; does not change the result"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        self.config.check()
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"--checkpoint-seconds must be at least 0, got {self.checkpoint_seconds}")

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.config.task}-T{self.config.length}-s{self.config.seed}"

    def command(self) -> str:
        """The command line that says the same, without --resume.

        >>> options = defaults("adding")
        >>> dataclasses.replace(options, out=Path("my runs")).command()
        "python -m experiments train adding --out 'my runs'"
        """
        usual, words = defaults(self.config.task), []
        for mine, default in ((self.config, usual.config), (self, usual)):
            for field in dataclasses.fields(mine):
                value = getattr(mine, field.name)
                if field.name not in ("config", "resume") and value != getattr(default, field.name):
                    words += [f"--{field.name.replace('_', '-')}", str(value)]
        return shlex.join([*PROGRAM.split(), "train", self.config.task, *words])


def defaults(name: str) -> Train:
    """The defaults of `train` for a task: its recipe."""
    return Train(Config(task=name, **tasks.get(name).recipe._asdict()))
