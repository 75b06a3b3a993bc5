"""Tasks by name: what `python -m experiments train NAME` trains on. One file a family."""

import difflib

from experiments.tasks.adding import Adding, Adding1997, AddingAnywhere, Multiplication
from experiments.tasks.base import Batch, Metrics, Recipe, Reference, Task
from experiments.tasks.copy import Copy, CopyVariable, Denoise
from experiments.tasks.sequence_classes import Latch, TemporalOrder, TemporalOrder3

__all__ = ["TASKS", "Batch", "Metrics", "Recipe", "Reference", "Task", "get"]

_ALL: tuple[Task, ...] = (
    *(Adding(), AddingAnywhere(), Adding1997(), Multiplication()),
    *(Copy(), CopyVariable(), Denoise()),
    *(Latch(), TemporalOrder(), TemporalOrder3()),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get(name: str) -> Task:
    """The task of this name.

    Raises:
      ValueError: if there is none; the message suggests the nearest name.

    >>> get("adding").baseline(100)
    0.16666666666666666
    >>> get("addng")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: unknown task 'addng'; did you mean 'adding'? Tasks: adding, ...
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown task {name!r}{hint} Tasks: {', '.join(TASKS)}")
