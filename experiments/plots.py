"""The learning curve of a run. Drawn without pyplot, which has global state and may look for a display."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import tasks
from experiments.config import Config
from gru_jax import output

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#555555"


def learning_curve(path: Path, config: Config, metrics: Sequence[dict[str, Any]]) -> None:
    """Draws loss against steps, with the trivial baseline and the published results, as a PNG.

    Args:
      path: of the PNG, which is replaced in one step.
      config: of the run.
      metrics: the lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    task = tasks.get(config.task)
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in metrics]
    for name, label, alpha in (
        ("train_loss", "training, mean of a chunk", 0.45),
        ("eval_loss", "evaluation on fresh data", 1.0),
    ):
        values = np.array([line[name] for line in metrics])
        axes.plot(steps, np.median(values, axis=1), color=BLUE, alpha=alpha, marker=".", label=label)
        if name == "eval_loss" and config.seeds > 1:
            axes.fill_between(
                steps, values.min(axis=1), values.max(axis=1), color=BLUE, alpha=0.15, label=f"{config.seeds} seeds"
            )
    baseline = task.baseline(config.length)
    axes.axhline(baseline, color=GREY, linestyle="--", label=f"trivial baseline, {baseline:.3g}")
    _draw_references(axes, task, config.length)
    axes.set_yscale("log")
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(task.loss_name)
    seeds = f"seed {config.seed}" if config.seeds == 1 else f"median of {config.seeds} seeds"
    axes.set_title(f"{task.name}, T = {config.length}, {config.cell}, {seeds}")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format="png")
    output.write_file(path, content.getvalue())


def reference_level(task: tasks.Task, reference: tasks.Reference, length: int) -> float:
    """A published loss, scaled to this length: the same share of the trivial baseline as where it was measured."""
    return reference.value / task.baseline(reference.length) * task.baseline(length)


def _draw_references(axes: Any, task: tasks.Task, length: int) -> None:
    references = [reference for reference in task.references if reference.metric == "loss"]
    if not references:
        axes.plot([], [], " ", label="no published loss")
    for reference in references:
        share = reference.value / task.baseline(reference.length)
        label = f"published: {reference.value:.3g} at T = {reference.length}, {share:.2g} of its baseline"
        level = reference_level(task, reference, length)
        axes.axhline(level, color=ORANGE, linestyle="-.", label=f"{label}\n({reference.source})")
