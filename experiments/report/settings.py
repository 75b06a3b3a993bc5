"""What the command line of `report` can say."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a page on finished and unfinished runs: tables, learning curves, commands, published results."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS")]
    """folder that holds run folders, at any depth, or is one"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUNS/report)")] = None
    """where to put index.html, the figures as PNG and table.md"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        if not self.runs.is_dir():
            raise ValueError(f"RUNS: there is no folder {self.runs}")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out: {self.out} is a file; name a folder")
