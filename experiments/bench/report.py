"""Results as Markdown tables and as JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.bench import growth, measure, peers
from experiments.bench.cells import CellTime
from experiments.bench.measure import PASSES, Cost, Result
from experiments.bench.rollout import Rollout
from experiments.bench.training import TrainingStep
from gru_jax import output

LEGEND = """\
ms: median over rounds [quartiles]. ×: times as fast as {reference}, the median of the ratios within rounds.
of GEMM: share of the rate of a 1024³ matrix product in the same rounds; GFLOP/s counts the matrix products alone.
compile: tracing and compiling, seconds, forward + gradient. temporary: peak by XLA's analysis, MiB, forward / gradient.
residuals: bytes that the forward pass saves for the gradient, per step, sequence and state feature, without arguments.
differs: largest difference from gru_jax's plain scan, as a share of the largest value, of hs / of the gradient of xs.
Gradient: of Σ g ⊙ hs with respect to all parameters and xs, the forward pass included. Layout: each peer's own;
flax and keras get batch-major inputs, the others time-major. *: reset before the product, compared with CHO2014."""


def heading(machine: Mapping[str, Any], command: str) -> str:
    """The command, the machine and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"Command: {command}",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, JAX on {machine['device']}, {machine['system']}",
        f"Versions: {versions}",
    ]
    if machine["load"] is not None:
        lines.append(f"Load before the start: {machine['load']:.2f}")
    lines += [f"Environment: {name}={value}" for name, value in machine["environment"].items()]
    return "\n".join(lines)


def shape_table(result: Result) -> str:
    """All measurements at one shape."""
    rates = ", ".join(f"{rate:.0f} ({which})" for which, rate in result.gemm_gflops.items())
    columns = ["peer"]
    for which in PASSES:
        columns += [f"{which} ms", "×", "GFLOP/s", "of GEMM"]
    columns += ["compile s", "temporary MiB", "residuals B", "differs"]
    sizes = ", ".join(f"{name} = {size}" for name, size in result.shape._asdict().items())
    return f"### {sizes}; GEMM {rates} GFLOP/s\n\n" + _table(columns, [_row(result, name) for name in _names(result)])


def summary_table(results: Sequence[Result], which: str) -> str:
    """Speed-ups of one pass: a row for each shape, a column for each peer."""
    names = list(dict.fromkeys(name for result in results for name in result.costs[which]))
    rows = [[str(result.shape), *(_speedup(result.costs[which].get(name)) for name in names)] for result in results]
    base = measure.reference(names)
    return f"### {which}, times as fast as {base}\n\n" + _table(["T,B,D,H", *names], rows)


def growth_table(axis: str, results: Sequence[Result], which: str) -> str:
    """Times along a sweep, in µs per step."""
    names = list(dict.fromkeys(name for result in results for name in result.costs[which]))
    rows = []
    for result in results:
        costs = result.costs[which]
        times = [f"{costs[n].timing.median / result.shape.T * 1e6:.2f}" if n in costs else "–" for n in names]
        rows.append([str(result.shape), *times])
    return f"### {which} along {axis}, µs a step\n\n" + _table(["T,B,D,H", *names], rows)


def guard_lines(rows: Iterable[growth.Growth]) -> str:
    """A line for each peer and pass."""
    lengths = f"T = {growth.LONG.T} over T = {growth.SHORT.T}"
    return "\n".join(
        f"Time of a step, {lengths}: {row.peer} {row.which} {row.ratio:.2f} "
        + ("(flat)" if row.flat else f"GROWS, beyond {growth.LIMIT:g}")
        for row in rows
    )


def training_table(rows: Iterable[TrainingStep]) -> str:
    """Times of the training steps of whole models."""
    cells = []
    for row in rows:
        run, (low, high) = row.config, (f"{1e3 * bound:.3g}" for bound in row.timing.quartiles)
        name = f"train {run.task}, length {run.length}, batch {run.batch}, hidden {run.hidden}"
        milliseconds = f"{1e3 * row.timing.median:.3g} [{low}, {high}]"
        cells.append([name, row.model, milliseconds, f"{row.speedup:.2f}", f"{row.difference:.0e}"])
    columns = ["run", "GRU of the model", "step ms", "×", "loss differs"]
    return f"### Training step, times as fast as {peers.REFERENCE}\n\n" + _table(columns, cells)


def training_as_json(row: TrainingStep) -> dict[str, Any]:
    """A row for JSON; times in seconds per step."""
    return {
        "config": row.config.as_dict(),
        "model": row.model,
        "seconds": row.timing.median,
        "quartiles": list(row.timing.quartiles),
        "speedup": row.speedup,
        "difference": row.difference,
    }


def rollout_table(results: Sequence[Sequence[Rollout]]) -> str:
    """Speed-ups of calls of few steps: a row for each size, a column for each program."""
    first = results[0][0]
    within = "alone" if first.calls == 1 else f"in a scan of {first.calls} calls"
    names = [row.name for row in results[0]]
    rows = []
    for size in results:
        reference = size[names.index(peers.REFERENCE)].timing.median
        times = [f"{one.speedup:.2f}" + ("" if one.agrees else " DISAGREES") for one in size]
        same = ", ".join(size[0].same) or "-"
        rows.append([f"{first.shape.T},{size[0].shape.B},{size[0].shape.H}", f"{1e6 * reference:.2f}", *times, same])
    title = f"### Rollout: T = {first.shape.T}, {within}, times as fast as the cell of {peers.REFERENCE}"
    columns = ["T,B,H", f"{peers.REFERENCE}, µs a call", *names, f"{names[0]} is the same program as"]
    return f"{title}\n\n" + _table(columns, rows)


def rollout_as_json(row: Rollout) -> dict[str, Any]:
    """A row for JSON; times in seconds per call."""
    return {
        "shape": row.shape._asdict(),
        "calls": row.calls,
        "name": row.name,
        "seconds": row.timing.median,
        "samples": list(row.timing.seconds),
        "speedup": row.speedup,
        "difference": row.difference,
        "same": list(row.same),
    }


def cells_table(rows: Sequence[CellTime]) -> str:
    """One pass of one cell at one shape: a row for each program."""
    first = rows[0]
    sizes = ", ".join(f"{name} = {size}" for name, size in first.shape._asdict().items())
    body = [
        [
            row.name,
            f"{1e3 * row.timing.median:.2f}",
            f"{row.speedup:.2f}",
            f"{row.temporary_bytes / 2**20:.1f}",
            "–" if row.difference is None else f"{row.difference:.0e}" + ("" if row.agrees else " DISAGREES"),
        ]
        for row in rows
    ]
    title = f"### {first.cell}, {first.which}: {sizes}; × the faster of Flax' cells"
    return f"{title}\n\n" + _table(["by", "ms", "×", "temporary MiB", "differs"], body)


def cell_as_json(row: CellTime) -> dict[str, Any]:
    """A row for JSON; times in seconds."""
    return {
        **row._asdict(),
        "shape": row.shape._asdict(),
        "timing": {"seconds": row.timing.median, "samples": list(row.timing.seconds)},
    }


def as_json(result: Result) -> dict[str, Any]:
    """A result for JSON; times in seconds, memory in bytes."""
    rows: dict[str, Any] = {}
    for which, costs in result.costs.items():
        for name, cost in costs.items():
            low, high = cost.timing.quartiles
            rows.setdefault(name, {})[which] = {
                "seconds": cost.timing.median,
                "quartiles": [low, high],
                "samples": list(cost.timing.seconds),
                "repetitions": cost.timing.repetitions,
                "speedup": cost.speedup,
                "gflops": cost.gflops,
                "gemm_share": cost.gemm_share,
                "compile_seconds": cost.compile_seconds,
                "temporary_bytes": cost.temporary_bytes,
                "difference": cost.difference if math.isfinite(cost.difference) else None,
                "agrees": cost.agrees,
            }
    for name, size in result.residuals.items():
        rows[name]["residual_bytes_per_step_and_unit"] = size
    return {"shape": result.shape._asdict(), "gemm_gflops": result.gemm_gflops, "peers": rows}


def _names(result: Result) -> list[str]:
    return list(dict.fromkeys(name for costs in result.costs.values() for name in costs))


def _row(result: Result, name: str) -> list[str]:
    costs = [result.costs[which].get(name) for which in PASSES]
    cells = [name + ("" if peers.get(name).reset_after else " *")]
    for cost in costs:
        cells += ["–"] * 4 if cost is None else _time_cells(cost)
    there = [cost for cost in costs if cost is not None]
    compiled = [f"{cost.compile_seconds:.2f}" for cost in there if cost.compile_seconds is not None]
    temporary = [f"{cost.temporary_bytes / 2**20:.2f}" for cost in there if cost.temporary_bytes is not None]
    differs = [f"{cost.difference:.0e}" + ("" if cost.agrees else " DISAGREES") for cost in there]
    residuals = f"{result.residuals[name]:.1f}" if name in result.residuals else "–"
    return [*cells, " + ".join(compiled) or "–", " / ".join(temporary) or "–", residuals, " / ".join(differs)]


def _time_cells(cost: Cost) -> list[str]:
    low, high = (f"{1e3 * bound:.3g}" for bound in cost.timing.quartiles)
    milliseconds = f"{1e3 * cost.timing.median:.3g} [{low}, {high}]"
    return [milliseconds, _speedup(cost), f"{cost.gflops:.2f}", f"{100 * cost.gemm_share:.1f} %"]


def _speedup(cost: Cost | None) -> str:
    return "–" if cost is None or cost.speedup is None else f"{cost.speedup:.2f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return output.table([columns, *rows], markdown=True)
