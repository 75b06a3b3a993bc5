"""What is printed when a run has ended, on one screen."""

from typing import Any

from experiments import runs, tasks
from experiments.config import Train
from experiments.runs import Run


def text(options: Train, run: Run, result: dict[str, Any]) -> str:
    """The summary of a run that has ended.

    Args:
      options: that it was called with.
      run: its folder.
      result: how it ended, as in summary.json.
    """
    config, task = options.config, tasks.get(options.config.task)
    step, baseline = result["step"], result["baseline"]
    ending = {
        "solved": f"solved at step {step}",
        "budget spent": f"not solved in its budget of {step} steps",
        "diverged": f"stopped after step {step}: {result.get('reason')}",
    }[result["status"]]
    lines = [("criterion", task.criterion), *_measured(task, result), ("baseline", f"{baseline:.3g}, {task.loss_name}")]
    published = [
        f"{reference.metric} {reference.value:.3g} at T = {reference.length} ({reference.source})"
        for reference in task.references
    ]
    lines += [("published", line) for line in published or ["no reference"]]
    lines += [("time", _times(run)), ("folder", f"{run.folder} (curve: {runs.CURVE})")]
    if result["status"] == "diverged":
        good = result["last_good_checkpoint"]
        lines.append(("last good", "no checkpoint" if good is None else str(run.folder / runs.CHECKPOINTS / good)))
    lines.append(("show again", f"{options.command()} --resume"))
    title = f"{config.task}, T = {config.length}, seed {config.seed}: {ending}"
    return "\n".join([title, *(f"  {name:<11}{value}" for name, value in lines)])


def _measured(task: tasks.Task, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of the last evaluation."""
    if "eval_loss" not in result:
        return []
    loss = result["eval_loss"]
    rows = [("evaluation", f"{loss:.3g}, {task.loss_name}; {loss / result['baseline']:.3g} of the baseline")]
    others = [name for name in result if name.startswith("eval_") and name != "eval_loss"]
    rows += [("", f"{result[name]:.4g}, {name.removeprefix('eval_').replace('_', ' ')}") for name in others]
    return rows


def _times(run: Run) -> str:
    """Speed, wall time and time to the first step, of the work that is in the metrics."""
    if not run.timing:
        return "none"
    seconds = sum(line["seconds"] for line in run.timing)
    before = [0, *(line["step"] for line in run.timing)]
    # The first chunk of a session has the start of the program and compilation in it.
    later = [
        (line["step"] - start, line["seconds"])
        for start, line in zip(before, run.timing, strict=False)
        if "first_step_seconds" not in line
    ]
    rate = f"{sum(n for n, _ in later) / sum(s for _, s in later):.3g} steps/s, " if later else ""
    first = run.timing[0].get("first_step_seconds")
    start = "" if first is None else f", first step after {first:.1f} s"
    return f"{rate}{seconds:.1f} s in all{start}"
