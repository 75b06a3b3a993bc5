"""The options of `report`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a page on finished and unfinished runs: tables, learning curves, commands, published results."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS")]
    """a run folder, or a folder that holds run folders at any depth"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: RUNS/report)")] = None
    """folder for index.html, the figures as PNG and table.md"""

    def check(self) -> None:
        """Raises ValueError that names the option as on the command line, if a value makes no sense."""
        if not self.runs.is_dir():
            raise ValueError(f"RUNS: there is no folder {self.runs}")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out: {self.out} is a file; name a folder")
