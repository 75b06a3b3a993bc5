"""The figures of a report, as PNG files and as SVG for the page. Drawn without pyplot, as in `experiments.plots`."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import plots, tasks
from experiments.report import measures, tables
from experiments.report.collect import Run
from experiments.report.measures import Measure
from experiments.runs import Status

# Okabe and Ito's colours, which are safe for the colour-blind, without the yellow, too pale for a line, and the black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "os^DvPX"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
BASELINE: Any = (0, (4, 3))
PUBLISHED: tuple[Any, ...] = ((0, (6, 2, 1, 2)), (0, (1, 2)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)))
# In the SVG these are replaced by variables of the page, which follow its light or dark scheme.
INK, SOFT, GRID = "#24292e", "#5b646d", "#d3d9df"
ROLES = {INK: "--ink", SOFT: "--soft", GRID: "--line"}
WIDTH, PANEL, LEGEND_ROW, MARGIN = 4.8, 2.2, 0.19, 0.95  # inches
TEXT, WRAP = 9, 56  # points, characters


class Style(NamedTuple):
    """The style of one variant in all figures."""

    colour: str
    marker: str
    dashes: Any


class Figure(NamedTuple):
    """A figure.

    Attributes:
      name: of its file, without the suffix.
      caption: one or two sentences on how to read it.
      alt: its contents in words.
      svg: an <svg> element; its text is text, its colours are those of the page.
      png: the figure as a PNG file, on white.
    """

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes


def styles(found: Sequence[Run]) -> dict[str, Style]:
    """A style for each label of a run; styles are reused only when there are more labels than styles."""
    labels = dict.fromkeys(run.label for run in found)
    return {
        label: Style(COLOURS[place % 6], MARKERS[place % 7], DASHES[place // 6 % 4])
        for place, label in enumerate(labels)
    }


def learning_curves(group: Sequence[Run], style: Mapping[str, Style]) -> Figure | None:
    """Metrics against steps, for the runs of one task at one length; None if there is nothing to draw.

    There is a panel for the metric of the criterion, one for the loss, and one for any other metric with a published
    value. Each shows the median over seeds as a line, the range as a band, and published values; that of the loss also
    shows the trivial baseline.
    """
    task, length = group[0].task, group[0].length
    metrics = [metric for metric in _panels(task) if any(run.last(metric.name) for run in group)]
    if not metrics:
        return None
    lines = [line for metric in metrics for line in _levels(metric, length)]
    name = f"{task.name}, T = {length}"
    rows = _legend_rows([run.label for run in group]) + sum(label.count("\n") + 1 for _, label, _ in lines)
    figure = _figure(len(metrics) * PANEL + rows * LEGEND_ROW)
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for axes, metric in zip(panels, metrics, strict=True):
        axes.set_yscale("linear" if metric.higher_is_better else "log")
        for run in group:
            _draw_run(axes, run, metric, style[run.label])
        for level, label, dashes in _levels(metric, length):
            axes.axhline(level, color=SOFT if dashes is BASELINE else INK, linestyle=dashes, linewidth=1.1, label=label)
        _dress(axes, metric)
    panels[-1].set_xlabel("optimizer steps")
    _legends(figure, panels, name, [_plain(run.label) for run in group])
    caption = "Median over seeds as a line, the range as a band, a mark where the run ended or stands."
    return _finish(figure, f"{task.name}-T{length}", caption, _curves_alt(name, group, metrics))


def solving_steps(group: Sequence[Run], style: Mapping[str, Style]) -> Figure | None:
    """Steps to solve a task against its length; None unless runs of several lengths have ended."""
    group = [run for run in group if run.status != Status.UNFINISHED]
    lengths = sorted({run.length for run in group})
    if len(lengths) < 2:
        return None
    task, labels = group[0].task, list(dict.fromkeys(run.label for run in group))
    figure = _figure(1.6 * PANEL + _legend_rows(labels) * LEGEND_ROW)
    axes = figure.subplots()
    # Variants are drawn side by side around each length, on a third of the distance to the next length.
    room = min(after / before for before, after in itertools.pairwise(lengths)) ** (1 / 3)
    axes.set(xscale="log", yscale="log")
    for place, label in enumerate(labels):
        aside = room ** ((place + 0.5) / len(labels) - 0.5)
        _draw_steps(axes, [run for run in group if run.label == label], style[label], aside)
    axes.set_xticks(lengths, list(map(str, lengths)))
    axes.set_xticks([], minor=True)
    axes.set_xlim(lengths[0] / room, lengths[-1] * room)
    _plain_log(axes)
    axes.set_xlabel("length T")
    axes.set_ylabel("optimizer steps to solve")
    _legends(figure, [axes], f"{task.name}, steps until solved", list(map(_plain, labels)))
    caption = (
        "Median over seeds as a mark, the range as a bar. A cross is a seed that was not solved, at its budget; it "
        "counts as more than any other, and where half of them are, there is no mark."
    )
    seen = "; ".join(
        f"{run.label} at T = {run.length} {tables.steps_to_solve(run)[0]} ({tables.row(run).seeds})" for run in group
    )
    return _finish(figure, f"{task.name}-steps", caption, f"Median steps to solve {task.name}: {seen}.")


def _panels(task: tasks.Task) -> list[Measure]:
    named = [measure.name for measure in tables.shown(task)] + [reference.metric for reference in task.references]
    return [Measure(task, name) for name in dict.fromkeys(named)]


def _levels(metric: Measure, length: int) -> list[tuple[float, str, Any]]:
    """The horizontal lines of a panel: level, label, dashes."""
    task = metric.task
    lines: list[tuple[float, str, Any]] = []
    if metric.name == "loss":
        baseline = task.baseline(length)
        lines.append((baseline, f"trivial baseline, {metric.text(baseline)}", BASELINE))
    references = [reference for reference in task.references if reference.metric == metric.name]
    for place, reference in enumerate(references):
        level, text = reference.value, f"published {measures.published_text(task, reference)}"
        if metric.name == "loss" and reference.length != length:
            level = plots.reference_level(task, reference, length)
            text += f", drawn at its share of the baseline, {reference.value / task.baseline(reference.length):.2g}"
        text = text.replace(" = ", "\u00a0=\u00a0")
        label = textwrap.fill(f"{text} ({reference.source})", WRAP, break_long_words=False)
        lines.append((level, label, PUBLISHED[place % len(PUBLISHED)]))
    return lines


def _draw_run(axes: Any, run: Run, metric: Measure, style: Style) -> None:
    """Draws a run in a panel, without values that are not finite, or not positive on a logarithmic axis."""
    name = f"eval_{metric.name}"
    lines = [(line.step, metric.spread(line.values[name])) for line in run.lines if name in line.values]
    least = -math.inf if metric.higher_is_better else 0
    lines = [(step, spread) for step, spread in lines if least < spread.median < math.inf]
    bands = [(step, spread) for step, spread in lines if least < spread.low and spread.high < math.inf]
    if bands:
        steps, spreads = zip(*bands, strict=True)
        low, high = [each.low for each in spreads], [each.high for each in spreads]
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.16, linewidth=0)
    axes.plot(
        [step for step, _ in lines],
        [spread.median for _, spread in lines],
        color=style.colour,
        linestyle=style.dashes,
        linewidth=1.5,
        marker=style.marker,
        markersize=4.5,
        markevery=(max(len(lines) - 1, 0), 1),
        label=_plain(run.label),
    )


def _draw_steps(axes: Any, group: Sequence[Run], style: Style, aside: float) -> None:
    """Draws a variant: medians joined by a line, ranges as bars, unsolved seeds as crosses at the budget.

    `aside` is a factor that shifts all lengths, so that variants do not overlap.
    """
    medians = []
    for run in group:
        x = run.length * aside
        steps = sorted(run.budget if at is None else at for at in run.solved_at or ())
        unsolved = [run.budget] * (run.solved_at or ()).count(None)
        axes.plot([x, x], [steps[0], steps[-1]], color=style.colour, linewidth=1.3)
        axes.plot([x] * len(unsolved), unsolved, "x", color=style.colour, markersize=6.5, markeredgewidth=1.5)
        if len(unsolved) < len(steps) / 2:
            medians.append((x, measures.spread(steps).median))
    axes.plot(
        [x for x, _ in medians],
        [median for _, median in medians],
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markersize=5,
        linewidth=1.5,
        label=_plain(group[0].label),
    )


def _dress(axes: Any, metric: Measure) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylabel(textwrap.fill(metric.title, 32))
    if not metric.higher_is_better:
        _plain_log(axes)
    elif axes.dataLim.y0 >= 0 and axes.dataLim.y1 <= 1:
        axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _plain_log(axes: Any) -> None:
    """A logarithmic axis with plain numbers, also between the powers of ten if it spans few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    subdivisions = ((1, (1, 1.5, 2, 3, 4, 5, 7)), (2, (1, 2, 5)), (3, (1, 3)), (math.inf, (1,)))
    subs = next(subs for decades, subs in subdivisions if math.log10(high / low) < decades)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}".replace("e-0", "e-")))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _figure(height: float) -> Any:
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(WIDTH, height + MARGIN), dpi=160, layout="constrained")


def _legends(figure: Any, panels: Sequence[Any], title: str, variants: Sequence[str]) -> None:
    """Adds legends: the title and the variants above the panels, the horizontal lines below."""
    handles: dict[str, Any] = {}
    for axes in panels:
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(which="both", color=SOFT, labelcolor=INK, labelsize=TEXT)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set(color=INK, size=TEXT)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    above = [label for label in handles if label in variants]
    below = [label for label in handles if label not in variants]
    for labels, where in ((above, "outside upper left"), (below, "outside lower left")):
        if labels:
            legend = figure.legend(
                [handles[label] for label in labels],
                labels,
                loc=where,
                ncols=_legend_columns(labels) if labels is above else 1,
                fontsize=TEXT,
                labelcolor=INK,
                frameon=False,
                handlelength=2.6,
                borderpad=0.1,
                title=title if labels is above else None,
                title_fontproperties={"size": TEXT + 1, "weight": "bold"},
                alignment="left",
                labelspacing=0.35,
            )
            legend.get_title().set_color(INK)


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels)) < 30 else 1


def _legend_rows(labels: Sequence[str]) -> int:
    return math.ceil(len(labels) / _legend_columns(labels))


def _finish(figure: Any, name: str, caption: str, alt: str) -> Figure:
    """Renders a figure. Both files are the same at every time and place."""
    import matplotlib

    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return Figure(name, caption, alt, _for_page(svg.getvalue()), png.getvalue())


def _for_page(svg: str) -> str:
    """The <svg> element alone, with the colours of the page, without ids that are the same in every figure."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)
    for colour, role in ROLES.items():
        svg = svg.replace(colour, f"var({role})")
    return svg


def _curves_alt(name: str, group: Sequence[Run], metrics: Sequence[Measure]) -> str:
    parts = []
    for metric in metrics:
        ends = ", ".join(f"{run.label} {metric.spread_text(run.last(metric.name))[0]}" for run in group)
        levels = ", ".join(" ".join(label.split()) for _, label, _ in _levels(metric, group[0].length))
        parts.append(f"{metric.title} at the end: {ends}" + (f"; lines: {levels}" if levels else ""))
    return f"Learning curves of {name}. " + ". ".join(parts) + "."


def _plain(label: str) -> str:
    """A label in ASCII, which every font has, with `$` escaped, which would begin a formula."""
    return label.encode("ascii", "backslashreplace").decode("ascii").replace("$", r"\$")
