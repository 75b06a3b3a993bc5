"""Tasks by name: what `python -m experiments train NAME` trains on. One file a family."""

import difflib

from experiments.tasks.adding import Adding
from experiments.tasks.base import Batch, Metrics, Recipe, Reference, Task
from experiments.tasks.copy import Copy

__all__ = ["TASKS", "Adding", "Batch", "Copy", "Metrics", "Recipe", "Reference", "Task", "get"]

TASKS: dict[str, Task] = {task.name: task for task in (Adding(), Copy())}


def get(name: str) -> Task:
    """The task of this name.

    Raises:
      ValueError: if there is none; the message suggests the nearest name.

    >>> get("adding").baseline(100)
    0.16666666666666666
    >>> get("addng")
    Traceback (most recent call last):
    ...
    ValueError: unknown task 'addng'; did you mean 'adding'? Tasks: adding, copy
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown task {name!r}{hint} Tasks: {', '.join(TASKS)}")
