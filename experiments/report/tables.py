"""The tables of a report, as rows of text."""

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from experiments import tasks
from experiments.report import measures
from experiments.report.collect import Run
from experiments.report.measures import NOTHING, Measure
from experiments.runs import Status
from gru_jax import output


class Entry(NamedTuple):
    """One run in the table of cells × tasks.

    Attributes:
      note: the settings that distinguish it from other runs in the same place.
      median: of the metric over seeds.
      range: of the metric over seeds; "" for one seed.
      seeds: the number of seeds that solved the task, or how the run stands.
      met: whether all seeds meet the criterion.
    """

    note: str
    median: str
    range: str
    seeds: str
    met: bool


class Overview(NamedTuple):
    """The table of cells × tasks.

    Attributes:
      columns: cell and initialisation.
      rows: a task, a length, the metric, the entries of each column, the published results.
    """

    columns: list[str]
    rows: list[tuple[tasks.Task, int, str, list[list[Entry]], list[str]]]


class Row(NamedTuple):
    """One run in the table of its task; each median comes with its range."""

    run: Run
    units: str
    parameters: str
    seeds: str
    met: bool
    measured: list[tuple[str, str, str]]
    steps: tuple[str, str]
    beyond: list[tuple[int, str, str]]
    time: str
    published: list[str]


def overview(found: Sequence[Run]) -> Overview:
    """The table of cells × tasks."""
    columns = list(dict.fromkeys(run.variant for run in found))
    places: dict[tuple[str, int], list[Run]] = collections.defaultdict(list)
    for run in found:
        places[run.task.name, run.length].append(run)
    rows = []
    for (name, length), there in places.items():
        task = tasks.get(name)
        entries = [[_entry(run) for run in there if run.variant == column] for column in columns]
        rows.append((task, length, measures.main(task).title, entries, published(task, length)))
    return Overview(columns, rows)


def row(run: Run) -> Row:
    """All numbers of one run."""
    metric = measures.main(run.task)
    parameters = NOTHING if run.summary is None else f"{run.summary['parameters']:,}"
    units = f"{run.config['hidden'] if run.summary is None else run.summary['units']:,}"
    return Row(
        run=run,
        units=units,
        parameters=parameters,
        seeds=_seeds(run),
        met=_met(run),
        measured=[(each.title, *each.spread_text(run.last(each.name))) for each in shown(run.task)],
        steps=steps_to_solve(run),
        beyond=[(length, *metric.spread_text(values)) for length, values in run.beyond(metric.name)],
        time=measures.seconds_text(run.seconds),
        published=published(run.task, run.length),
    )


def shown(task: tasks.Task) -> list[Measure]:
    """The metrics in the table of a task: that of the criterion, and the loss."""
    metric = measures.main(task)
    return [metric] if metric.name == "loss" else [metric, Measure(task, "loss")]


def published(task: tasks.Task, length: int) -> list[str]:
    """Published results at this length; if there are none, those at other lengths.

    A metric is named if it is not that of the criterion.

    >>> published(tasks.get("adding"), 600)
    ['5.3e-5 at T = 600']
    """
    here = [reference for reference in task.references if reference.length == length]
    usual = measures.main(task).name
    return [
        measures.published_text(task, reference, reference.metric != usual) for reference in here or task.references
    ]


def baselines(task: tasks.Task, lengths: Iterable[int]) -> str:
    """The trivial baseline at these lengths; given once if it is the same at all of them.

    >>> baselines(tasks.get("adding"), (100, 200))
    '0.1667'
    >>> baselines(tasks.get("copy"), (50, 1000))
    '0.2971 at T = 50, 0.02039 at T = 1000'
    """
    loss = Measure(task, "loss")
    texts = {length: loss.text(task.baseline(length)) for length in lengths}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} at T = {length}" for length, text in texts.items())


def steps_to_solve(run: Run) -> tuple[str, str]:
    """The steps to solve the task: median and range over seeds, where an unsolved seed counts as infinitely many."""
    if run.solved_at is None:
        return NOTHING, ""
    never = run.status if run.status == Status.DIVERGED else f"> {run.budget:,}"
    steps = measures.spread([math.inf if at is None else at for at in run.solved_at])
    median, low, high = (never if math.isinf(bound) else f"{bound:,.10g}" for bound in steps)
    return median, f"{low} to {high}" if low != high else ""


def standing(run: Run) -> str:
    """How a run stands, if it is unfinished or has diverged."""
    if run.summary is None:
        return f"unfinished, at step {run.step:,} of {run.budget:,}"
    checkpoint = run.summary.get("last_good_checkpoint")
    good = "no checkpoint before that" if checkpoint is None else f"last good checkpoint {checkpoint}"
    return f"diverged after step {run.step:,}: {run.summary.get('reason', 'no reason recorded')}; {good}"


def markdown(found: Iterable[Run]) -> str:
    """The runs as a Markdown table."""
    columns = ["task", "T", "cell, init", "units", "parameters", "solved", "metric", "median", "range"]
    columns += ["steps to solve", "beyond", "wall time", "published", "command"]
    rows = [columns]
    for each in map(row, found):
        run = each.run
        steps = _with_range(*each.steps)
        beyond = "; ".join(f"T = {length}: {_with_range(median, bounds)}" for length, median, bounds in each.beyond)
        cells = [run.task.name, str(run.length), run.label, each.units, each.parameters, each.seeds]
        cells += [" / ".join(filter(None, column)) or NOTHING for column in zip(*each.measured, strict=True)]
        cells += [steps, beyond or NOTHING, each.time, "; ".join(each.published) or NOTHING, f"`{run.command}`"]
        rows.append([cell.replace("|", "\\|").replace("\n", " ") for cell in cells])
    return output.table(rows, markdown=True) + "\n"


def made_with(found: Iterable[Run]) -> Mapping[str, int]:
    """The number of runs for each set of versions and platform."""
    return collections.Counter(
        ", ".join(f"{name} {value}" for name, value in run.made_with.items()) or "not recorded" for run in found
    )


def _with_range(median: str, bounds: str) -> str:
    return f"{median} ({bounds})" if bounds else median


def _entry(run: Run) -> Entry:
    metric = measures.main(run.task)
    if run.status == Status.DIVERGED:
        return Entry(run.note, run.status, f"after step {run.step:,}", _seeds(run), met=False)
    return Entry(run.note, *metric.spread_text(run.last(metric.name)), _seeds(run), _met(run))


def _seeds(run: Run) -> str:
    if run.solved_at is None:
        return f"unfinished, step {run.step:,}"
    solved = f"{sum(at is not None for at in run.solved_at)}/{len(run.solved_at)} solved"
    return f"{solved}, {run.status}" if run.status == Status.DIVERGED else solved


def _met(run: Run) -> bool:
    return run.solved_at is not None and None not in run.solved_at
