"""The output of `list`: all tasks, or one task with a sample."""

import dataclasses
import textwrap
from typing import Annotated

import jax
import tyro

from experiments import models, tasks
from experiments.config import PROGRAM
from experiments.report.measures import Measure, published_text

COLUMNS = 100
# The length of a sample that fits on a line.
SAMPLE_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class Listing:
    """Show the tasks: source, trivial baseline, criterion, published results."""

    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[TASK]", help_behavior_hint="(optional)")] = ""
    """this task alone, with a sample"""

    def check(self) -> None:
        """Raises ValueError if there is no such task; the message suggests the nearest name."""
        if self.task:
            tasks.get(self.task)


def text(name: str = "") -> str:
    """All tasks, cells and initialisations; or one task, with a sample and the command that trains on it.

    Raises:
      ValueError: if there is no task of this name.

    >>> print(text("adding"))
    adding: add the two marked numbers of a sequence, one in each half
      paper      Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016, arXiv:1511.06464, section 5.1
      baseline   mean squared error 0.1667 at T = 100
      solved     evaluation mean squared error < 0.001
      published  mean squared error 5.3e-5 at T = 600 (GRU, Bai et al. 2018, arXiv:1803.01271, table 1
                 (marks anywhere))
      train      python -m experiments train adding
    <BLANKLINE>
    value   0.84  0.18  0.23  0.12  0.19  0.72  0.77  0.15  0.95  0.03  0.10  0.55
    mark       .     .     1     .     .     .     .     .     .     1     .     .
    target                                                                    0.26
    """
    if not name:
        blocks = [_block(task) for task in tasks.TASKS.values()]
        return "\n\n".join([*blocks, *_models()])
    task = tasks.get(name)
    length = max(task.min_length, min(SAMPLE_LENGTH, task.recipe.length))
    command = f"\n  {'train':<11}{PROGRAM} train {task.name}"
    return f"{_block(task)}{command}\n\n{task.show(task.sample(jax.random.key(0), 1, length))}"


def _block(task: tasks.Task) -> str:
    length, loss = task.recipe.length, Measure(task, "loss")
    rows = [
        ("paper", task.paper),
        ("baseline", f"{loss.title} {loss.text(task.baseline(length))} at T = {length}"),
        ("solved", task.criterion.text),
    ]
    published = [f"{published_text(task, reference)} ({reference.source})" for reference in task.references]
    for place, line in enumerate(published or ["none that is certain"]):
        rows.append(("published" if place == 0 else "", line))
    return "\n".join([_wrap(f"{task.name}: ", task.summary), *(_wrap(f"  {label:<11}", line) for label, line in rows)])


def _models() -> list[str]:
    """The names that --cell and --init take."""
    return [
        _wrap("cells: ", ", ".join(models.CELLS)),
        _wrap("inits: ", ", ".join(models.INITS)),
    ]


def _wrap(start: str, line: str) -> str:
    hang = " " * (len(start) if start.startswith(" ") else 4)
    return textwrap.fill(line, COLUMNS, initial_indent=start, subsequent_indent=hang, break_on_hyphens=False)
