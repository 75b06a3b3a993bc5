"""Writes the page of a report, with its figures and its table."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import tasks
from experiments.report import figures, measures, tables
from experiments.report.collect import Run, collect
from experiments.report.figures import Figure
from experiments.runs import Status
from gru_jax import output

PAGE, TABLE = "index.html", "table.md"


class Section(NamedTuple):
    """The section of the page on one task."""

    task: tasks.Task
    baselines: str
    published: list[tuple[str, str]]
    rows: list[tables.Row]
    figures: list[Figure]


def write(runs: Path, out: Path | None = None) -> Path:
    """Writes the report on a folder of runs. The same runs give the same files, byte for byte.

    Args:
      runs: a run folder, or a folder that holds run folders at any depth. Unfinished runs are shown as unfinished;
        folders that cannot be read are named on the page, with the reason.
      out: the folder for index.html, which needs no other file, the figures as PNG, and table.md; by default "report"
        in `runs`. All files are made before the first is written, the page last; each is replaced in one step.

    Returns:
      The path of the page.

    Raises:
      ValueError: if there are no runs.
    """
    out = runs / "report" if out is None else out
    found, broken = collect(runs)
    style = figures.styles(found)
    sections = [_section(list(group), style) for _, group in itertools.groupby(found, lambda run: run.task.name)]
    page = _render(
        name=runs.resolve().name,
        found=found,
        broken=broken,
        not_ended=[(run, tables.standing(run)) for run in found if run.status in (Status.UNFINISHED, Status.DIVERGED)],
        counts=_counts(found, len(broken)),
        overview=tables.overview(found),
        sections=sections,
        made_with=tables.made_with(found),
    )
    pages = {f"{figure.name}.png": figure.png for section in sections for figure in section.figures}
    pages |= {TABLE: _encoded(tables.markdown(found)), PAGE: _encoded(page)}
    out.mkdir(parents=True, exist_ok=True)
    for name, content in pages.items():
        output.write_file(out / name, content)
    return out / PAGE


def _section(group: Sequence[Run], style: Any) -> Section:
    task = group[0].task
    by_length = [list(runs) for _, runs in itertools.groupby(group, lambda run: run.length)]
    drawn = [figures.learning_curves(runs, style) for runs in by_length] + [figures.solving_steps(group, style)]
    return Section(
        task=task,
        baselines=tables.baselines(task, (run.length for run in group)),
        published=[(measures.published_text(task, reference), reference.source) for reference in task.references],
        rows=[tables.row(run) for run in group],
        figures=[figure for figure in drawn if figure is not None],
    )


def _counts(found: Sequence[Run], broken: int) -> str:
    """The number of runs of each status.

    >>> _counts([], 2)
    '0 runs; 2 folders cannot be read'
    """
    statuses = [run.status for run in found]
    counts = [(statuses.count(status), status) for status in Status]
    parts = ", ".join(f"{count} {status}" for count, status in counts if count)
    text = f"{len(found)} run{'s' * (len(found) != 1)}" + f": {parts}" * bool(parts)
    return text + f"; {broken} folder{'s' * (broken > 1)} cannot be read" * bool(broken)


def _render(**context: Any) -> str:
    # Imported here because other commands do not need it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(**context)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
