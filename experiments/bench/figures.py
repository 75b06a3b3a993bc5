"""Figures of a benchmark. Drawn without pyplot, as in `experiments.plots`."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.measure import PASSES, Result
from gru_jax import output


def shapes(path: Path, results: Sequence[Result]) -> None:
    """Draws the median times at each shape, with quartiles, as a PNG: a panel for each pass."""
    figure = _figure(width=max(7.0, 2.0 + 1.3 * len(results)), height=8)
    for axes, which in zip(figure.subplots(len(PASSES), 1, sharex=True), PASSES, strict=True):
        names = _names(results, which)
        for place, name in enumerate(names):
            points = [
                (at + 0.7 * (place / max(len(names) - 1, 1) - 0.5), result.costs[which][name].timing)
                for at, result in enumerate(results)
                if name in result.costs[which]
            ]
            medians = [1e3 * taken.median for _, taken in points]
            spread = [[1e3 * abs(taken.quartiles[end] - taken.median) for _, taken in points] for end in (0, 1)]
            axes.errorbar(
                [at for at, _ in points], medians, spread, fmt=_marker(place), color=_colour(place), label=name
            )
        _logarithmic(axes.yaxis)
        axes.set_ylabel(f"{which}, ms")
        axes.set_xticks(range(len(results)), [str(result.shape) for result in results], rotation=20)
        axes.grid(alpha=0.25, axis="y")
    _finish(figure, path, "T,B,D,H")


def sweeps(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """Draws the time per step along each sweep as a PNG: a row for each pass, a column for each axis."""
    figure = _figure(width=4.5 * len(results), height=7)
    panels = figure.subplots(len(PASSES), len(results), squeeze=False)
    for row, which in zip(panels, PASSES, strict=True):
        for axes, (axis, along) in zip(row, results.items(), strict=True):
            for place, name in enumerate(_names(along, which)):
                there = [result for result in along if name in result.costs[which]]
                sizes = [getattr(result.shape, axis) for result in there]
                times = [1e6 * result.costs[which][name].timing.median / result.shape.T for result in there]
                axes.plot(sizes, times, _marker(place) + "-", color=_colour(place), label=name)
            sizes = [getattr(result.shape, axis) for result in along]
            axes.set_xscale("log")
            axes.set_xticks(sizes, list(map(str, sizes)), minor=False)
            axes.set_xticks([], minor=True)
            _logarithmic(axes.yaxis)
            axes.set_xlabel(axis)
            axes.set_ylabel(f"{which}, µs a step")
            axes.grid(alpha=0.25)
    _finish(figure, path)


def _names(results: Sequence[Result], which: str) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.costs[which]))


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _logarithmic(axis: Any) -> None:
    """A logarithmic axis with plain numbers, also if it spans less than a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.axes.set_yscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _colour(place: int) -> str:
    return f"C{place % 10}"


def _marker(place: int) -> str:
    return "osD^vP*Xh<>"[place % 11]


def _finish(figure: Any, path: Path, label: str = "") -> None:
    """Writes the figure in one step, with one legend for all panels."""
    first = figure.axes[0]
    if label:
        figure.axes[-1].set_xlabel(label)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    output.write_file(path, content.getvalue())
