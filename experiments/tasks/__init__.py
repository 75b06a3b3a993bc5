"""Tasks by name: what `python -m experiments train NAME` trains on. One file a family."""

from experiments.names import lookup
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
    """
    return lookup("task", TASKS, name)
