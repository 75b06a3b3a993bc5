"""One call of `bench`: prints the heading and the tables."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from experiments.bench import cells, figures, growth, machine, measure, peers, report, rollout, training
from experiments.bench.measure import PASSES, Result
from experiments.bench.settings import Bench


def run(options: Bench) -> int:
    """Runs a benchmark, and prints each table as soon as it is ready.

    Returns:
      The exit status: 1 if the results of a peer differ from ours, or if no peer can run; else 0.
    """
    started = time.perf_counter()
    own = (peers.REFERENCE,) if options.rollout or options.cells else options.peers
    names = own or (growth.guarded(peers.PEERS) if options.sweep else tuple(peers.PEERS))
    distributions = dict.fromkeys(one for name in names for one in peers.get(name).distributions)
    described = machine.describe(distributions)
    print(report.heading(described, options.command()), flush=True)
    with _no_compilation_cache():
        present, skipped = measure.present(names)
        for name, reason in skipped.items():
            print(f"Skipped {name}: {reason}", flush=True)
        if not present:
            print("error: no peer can run here", file=sys.stderr)
            return 1
        run_all = _shapes
        for chosen, of_it in ((options.sweep, _sweeps), (options.rollout, _rollouts), (options.cells, _cells)):
            run_all = of_it if chosen else run_all
        written = {"command": options.command(), "machine": described, "skipped": skipped}
        disagreeing = sorted(set(run_all(options, present, written)))
    if options.json is not None:
        options.json.write_text(json.dumps(written, indent=1, allow_nan=False) + "\n")
    if disagreeing:
        print(f"\nNot the same outputs or gradients as gru_jax: {', '.join(disagreeing)}")
    print(f"\nTook {time.perf_counter() - started:.0f} s.", flush=True)
    return 1 if disagreeing else 0


def _shapes(options: Bench, names: Sequence[str], written: dict[str, Any]) -> list[str]:
    """Prints a table for each shape, then the summaries and the check of growth; adds the results to `written`.

    Returns:
      The names of peers whose results differ from ours.
    """
    rounds, sample_seconds = options.wanted_rounds(), options.sample_ms / 1e3
    print("\n" + report.LEGEND.format(reference=measure.reference(names)), flush=True)
    results = []
    for shape in options.wanted_shapes():
        results.append(measure.measure(shape, names, rounds, sample_seconds))
        print("\n" + report.shape_table(results[-1]), flush=True)
    disagreeing = [name for result in results for name in result.disagreeing]
    for which in PASSES:
        print("\n" + report.summary_table(results, which))
    guarded = growth.guard(growth.guarded(names), rounds, sample_seconds)
    if guarded:
        print("\n" + report.guard_lines(guarded), flush=True)
    if not options.shapes and peers.REFERENCE in names:
        steps = training.measure(training.configs(options.quick), rounds, sample_seconds)
        print("\n" + report.training_table(steps), flush=True)
        written["training"] = [report.training_as_json(row) for row in steps]
        disagreeing += _rollout(options, 1, rollout.CALLS, written)
    written["shapes"] = [report.as_json(result) for result in results]
    written["guard"] = [row._asdict() for row in guarded]
    if options.plot is not None:
        figures.shapes(options.plot, results)
    return disagreeing


def _rollouts(options: Bench, names: Sequence[str], written: dict[str, Any]) -> list[str]:
    """Prints a table for each length of a call, in a scan and alone."""
    return [
        name
        for calls in (rollout.CALLS, 1)
        for steps in (1, 4, 16)
        for name in _rollout(options, steps, calls, written)
    ]


def _rollout(options: Bench, steps: int, calls: int, written: dict[str, Any]) -> list[str]:
    """Prints one table, and adds it to `written`; returns the names of programs whose results differ."""
    sizes = rollout.QUICK_SIZES if options.quick else rollout.SIZES
    results = list(rollout.run(sizes, steps, calls, options.wanted_rounds(), options.sample_ms / 1e3))
    print("\n" + report.rollout_table(results), flush=True)
    rows = [row for size in results for row in size]
    written.setdefault("rollout", []).extend(map(report.rollout_as_json, rows))
    return [row.name for row in rows if not row.agrees]


def _cells(options: Bench, names: Sequence[str], written: dict[str, Any]) -> list[str]:
    """Prints a table for each shape, cell and pass, and adds them to `written`."""
    rows = []
    for table in cells.run(options.wanted_shapes(), options.wanted_rounds(), options.sample_ms / 1e3):
        print("\n" + report.cells_table(table), flush=True)
        rows += table
    written["cells"] = [report.cell_as_json(row) for row in rows]
    return [row.name for row in rows if not row.agrees]


def _sweeps(options: Bench, names: Sequence[str], written: dict[str, Any]) -> list[str]:
    """Prints two tables for each axis, and adds the results to `written`."""
    results: dict[str, list[Result]] = {}
    for axis in growth.SWEEPS:
        results[axis] = []
        rounds, sample_seconds = options.wanted_rounds(), options.sample_ms / 1e3
        for result in growth.sweep(axis, names, options.quick, rounds, sample_seconds):
            results[axis].append(result)
            print(f"{axis}: measured {result.shape}", file=sys.stderr, flush=True)
        for which in PASSES:
            print("\n" + report.growth_table(axis, results[axis], which), flush=True)
    written["sweeps"] = {axis: [report.as_json(result) for result in along] for axis, along in results.items()}
    if options.plot is not None:
        figures.sweeps(options.plot, results)
    return [name for along in results.values() for result in along for name in result.disagreeing]


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """Turns the compilation cache off, so that times to compile are real."""
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        config.update("jax_enable_compilation_cache", before)
