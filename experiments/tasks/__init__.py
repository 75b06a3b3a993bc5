"""Tasks by name: what `python -m experiments train NAME` trains on. One file a family."""

import difflib

from experiments.tasks.adding import Adding
from experiments.tasks.association import MQAR, Induction
from experiments.tasks.base import Batch, Metrics, Recipe, Reference, Task
from experiments.tasks.copy import Copy
from experiments.tasks.digits import Digits, PermutedDigits
from experiments.tasks.flip_flop import FlipFlop
from experiments.tasks.mackey_glass import MackeyGlass
from experiments.tasks.regular import Cycle, Parity
from experiments.tasks.repeat import RepeatPrevious
from experiments.tasks.selective_copy import SelectiveCopy
from experiments.tasks.warp import TimeWarp, UniformTimeWarp

__all__ = ["TASKS", "Batch", "Metrics", "Recipe", "Reference", "Task", "get"]

_FAMILIES: tuple[tuple[Task, ...], ...] = (
    (Adding(),),
    (Copy(),),
    (SelectiveCopy(),),
    (MQAR(), Induction()),
    (Parity(), Cycle()),
    (RepeatPrevious(),),
    (TimeWarp(), UniformTimeWarp()),
    (FlipFlop(),),
    (MackeyGlass(),),
    (Digits(), PermutedDigits()),
)
TASKS: dict[str, Task] = {task.name: task for family in _FAMILIES for task in family}


def get(name: str) -> Task:
    """The task of this name.

    Raises:
      ValueError: if there is none; the message suggests the nearest name.

    >>> get("adding").baseline(100)
    0.16666666666666666
    >>> get("addng")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: unknown task 'addng'; did you mean 'adding'? Tasks: adding, copy, ...
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown task {name!r}{hint} Tasks: {', '.join(TASKS)}")
