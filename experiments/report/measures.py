"""The metrics of a task, and their values as text, rounded without crossing the task's criterion."""

import dataclasses
import math
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments import tasks
from experiments.runs import Status

DIGITS = 4
NOTHING = "–"


class Spread(NamedTuple):
    """The median, the smallest and the largest value over seeds."""

    median: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Measure:
    """One metric of a task.

    Attributes:
      task: the task.
      name: of the metric, as in `Task.metrics`.
    """

    task: tasks.Task
    name: str

    @property
    def title(self) -> str:
        """In words, with its unit.

        >>> Measure(tasks.get("copy"), "recall_accuracy").title
        'recall accuracy'
        >>> Measure(tasks.get("adding"), "loss").title
        'mean squared error'
        """
        return self.task.loss_name if self.name == "loss" else self.name.replace("_", " ")

    @property
    def higher_is_better(self) -> bool:
        """Whether large values are good.

        >>> [Measure(tasks.get("copy"), name).higher_is_better for name in ("recall_accuracy", "loss")]
        [True, False]
        """
        return self.task.higher_is_better(self.name)

    def text(self, value: float) -> str:
        """A value with four digits, or with as many as keep it on its side of the criterion and distinct from 0 and 1.

        >>> accuracy = Measure(tasks.get("copy"), "recall_accuracy")
        >>> [accuracy.text(value) for value in (0.505, 0.99, 0.99001, 0.990001, 0.99999, 1.0)]
        ['0.505', '0.99', '0.99001', '0.990001', '0.99999', '1']
        >>> loss = Measure(tasks.get("adding"), "loss")
        >>> [loss.text(value) for value in (1 / 6, 0.00099999, 5.3e-5, math.nan)]
        ['0.1667', '0.00099999', '5.3e-5', 'diverged']
        """
        if not math.isfinite(value):
            return Status.DIVERGED.value
        shown = next(
            text
            for text in (f"{value:.{digits}g}" for digits in range(DIGITS, 18))
            if self._solved(float(text)) == self._solved(value) and (float(text) in (0, 1)) == (value in (0, 1))
        )
        return re.sub("e([+-])0*", lambda sign: "e" + sign[1].replace("+", ""), shown)

    def spread(self, values: Sequence[float]) -> Spread:
        """Median and range, where a value that is not finite counts as infinitely bad."""
        worst = -math.inf if self.higher_is_better else math.inf
        return spread([value if math.isfinite(value) else worst for value in values])

    def spread_text(self, values: Sequence[float] | None) -> tuple[str, str]:
        """Median and range; the range is empty for a single seed.

        >>> Measure(tasks.get("adding"), "loss").spread_text([0.25, 0.5, math.nan])
        ('0.5', '0.25 to diverged')
        """
        if not values:
            return NOTHING, ""
        median, low, high = map(self.text, self.spread(values))
        return median, f"{low} to {high}" if len(values) > 1 else ""

    def _solved(self, value: float) -> bool:
        """Whether the task's criterion is on this metric, and the value meets it."""
        return self.name == self.task.criterion.metric and self.task.criterion.met(value)


def main(task: tasks.Task) -> Measure:
    """The metric of a task's criterion.

    >>> [main(task).name for task in (tasks.get("adding"), tasks.get("copy"))]
    ['loss', 'recall_accuracy']
    """
    return Measure(task, task.criterion.metric)


def published_text(task: tasks.Task, reference: tasks.Reference, named: bool = True) -> str:
    """A published result in words, without its source.

    Args:
      task: the task.
      reference: the result.
      named: whether to name the metric.

    >>> adding = tasks.get("adding")
    >>> published_text(adding, adding.references[0])
    'mean squared error 5.3e-5 at T = 600'
    """
    metric = Measure(task, reference.metric)
    return f"{metric.title} " * named + f"{metric.text(reference.value)} at T = {reference.length}"


def spread(values: Sequence[float]) -> Spread:
    """Median and range; values may be infinite.

    >>> spread([3, 1, 2, math.inf])
    Spread(median=2.5, low=1, high=inf)
    """
    return Spread(statistics.median(values), min(values), max(values))


def seconds_text(seconds: float | None) -> str:
    """A duration in words.

    >>> [seconds_text(seconds) for seconds in (None, 9.96, 59.96, 754.0, 3725.0)]
    ['–', '10.0 s', '1 min 00 s', '12 min 34 s', '1 h 02 min']
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
