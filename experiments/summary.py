"""The summary that is printed when a run has ended; it fits on one screen."""

import statistics
from typing import Any

from experiments import runs, tasks
from experiments.config import Train
from experiments.progress import spread
from experiments.runs import Run, Status


def text(options: Train, run: Run, result: dict[str, Any]) -> str:
    """The summary of a run that has ended.

    Args:
      options: of the call.
      run: the run folder.
      result: how the run ended, as in summary.json.
    """
    config, task = options.config, tasks.get(options.config.task)
    baseline = result["baseline"]
    lines = [
        ("criterion", task.criterion.text),
        ("model", f"{config.cell}, {result['units']} units, {result['parameters']:,} parameters, init {config.init}"),
        *_measured(task, result),
        ("baseline", f"{baseline:.3g}, {task.loss_name}"),
    ]
    published = [
        f"{reference.metric} {reference.value:.3g} at T = {reference.length} ({reference.source})"
        for reference in task.references
    ]
    lines += [("published", line) for line in published or ["no reference"]]
    lines += [("time", _times(run)), ("folder", f"{run.folder} (curve: {runs.CURVE})")]
    if result["status"] == Status.DIVERGED:
        good = result["last_good_checkpoint"]
        lines.append(("last good", "no checkpoint" if good is None else str(run.folder / runs.CHECKPOINTS / good)))
    lines.append(("show again", f"{options.command()} --resume"))
    seeds = f"seed {config.seed}" if config.seeds == 1 else f"seeds {config.seed} to {config.seed + config.seeds - 1}"
    title = f"{config.task}, T = {config.length}, {seeds}: {_ending(result)}"
    return "\n".join([title, *(f"  {name:<11}{value}" for name, value in lines)])


def _ending(result: dict[str, Any]) -> str:
    """How the run ended, in words."""
    step = result["step"]
    if result["status"] == Status.DIVERGED:
        return f"stopped after step {step}: {result['reason']}"
    solved = [at for at in result["solved_at"] if at is not None]
    if len(result["solved_at"]) == 1:
        return f"solved at step {step}" if solved else f"not solved in its budget of {step} steps"
    share = f"{len(solved)} of {len(result['solved_at'])} seeds solved"
    if not solved:
        return f"{share} in a budget of {step} steps"
    return f"{share} at step {statistics.median(solved):.0f} (median; {min(solved)} to {max(solved)})"


def _measured(task: tasks.Task, result: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of the last evaluation: the median over seeds, and the range."""
    if "eval_loss" not in result:
        return []
    share = statistics.median(result["eval_loss"]) / result["baseline"]
    rows = [("evaluation", f"{spread(result['eval_loss'])}, {task.loss_name}; {share:.3g} of the baseline")]
    others = [name for name in result if name.startswith("eval_") and name != "eval_loss"]
    words = {name: name.removeprefix("eval_").replace("_", " ").replace("@", " at length ") for name in others}
    return rows + [("", f"{spread(result[name])}, {words[name]}") for name in others]


def _times(run: Run) -> str:
    """Speed, wall time and time to the first step."""
    if not run.timing:
        return "none"
    seconds = sum(line["seconds"] for line in run.timing)
    before = [0, *(line["step"] for line in run.timing)]
    # The first chunk of a call is left out, because it includes start-up and compilation.
    later = [
        (line["step"] - start, line["seconds"])
        for start, line in zip(before, run.timing, strict=False)
        if "first_step_seconds" not in line
    ]
    rate = f"{sum(n for n, _ in later) / sum(s for _, s in later):.3g} steps/s, " if later else ""
    first = run.timing[0].get("first_step_seconds")
    start = "" if first is None else f", first step after {first:.1f} s"
    return f"{rate}{seconds:.1f} s in all{start}"
