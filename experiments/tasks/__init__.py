"""Tasks by name, as in `python -m experiments train NAME`; one file for each family."""

from experiments.names import lookup
from experiments.tasks.adding import Adding, Adding1997, AddingAnywhere, Multiplication
from experiments.tasks.association import MQAR, Induction
from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, Reference, Task
from experiments.tasks.copy import Copy, CopyVariable, Denoise
from experiments.tasks.digits import Digits, PermutedDigits
from experiments.tasks.flip_flop import FlipFlop
from experiments.tasks.mackey_glass import MackeyGlass
from experiments.tasks.regular import Cycle, Parity
from experiments.tasks.repeat import RepeatPrevious
from experiments.tasks.selective_copy import SelectiveCopy
from experiments.tasks.sequence_classes import Latch, TemporalOrder, TemporalOrder3
from experiments.tasks.warp import TimeWarp, UniformTimeWarp

__all__ = ["TASKS", "Batch", "Criterion", "Metrics", "Recipe", "Reference", "Task", "get"]

_FAMILIES: tuple[tuple[Task, ...], ...] = (
    (Adding(), AddingAnywhere(), Adding1997(), Multiplication()),
    (Copy(), CopyVariable(), Denoise(), SelectiveCopy()),
    (Latch(), TemporalOrder(), TemporalOrder3()),
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
    """
    return lookup("task", TASKS, name)
