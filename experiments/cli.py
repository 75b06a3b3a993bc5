"""The command line: `python -m experiments train TASK`, `sweep FILE`, `report RUNS`, `list` and `bench`."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from experiments import config, listing, runs, session, sweep, tasks
from experiments.bench.settings import Bench
from experiments.listing import Listing
from experiments.report.settings import Report
from gru_jax import output

Command = config.Train | sweep.Sweep | Report | Listing | Bench


def main(arguments: Sequence[str] | None = None, started: float | None = None) -> int:
    """Runs one command.

    Args:
      arguments: of the command line, without the program's name; by default those of the process.
      started: `time.perf_counter()` at the start of the process.

    Returns:
      The exit status: 2 for a mistake in the arguments, 141 if the reader of the output has ended, as `head` does, else
      that of `experiments.session.train`, `experiments.sweep.run` or `experiments.bench.session.run`.
    """
    started = time.perf_counter() if started is None else started
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return output.piped(lambda: run(parse(arguments), started))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(options: Command, started: float) -> int:
    """Runs the command that the arguments ask for; see `main`.

    Raises:
      ValueError, OSError: before anything is computed, if an option makes no sense or a file cannot be read.
    """
    match options:
        case config.Train():
            use_compilation_cache()
            join(options)
            options.check()
            with runs.open_run(options) as run:
                return session.train(run, options, started)
        case sweep.Sweep():
            use_compilation_cache()
            return sweep.run(options, started)
        case Bench():
            options.check()
            return bench(options)
        case Report():
            options.check()
            return report(options)
        case Listing():
            options.check()
            print(listing.text(options.task))
            return 0


def report(options: Report) -> int:
    """Writes the report on a folder of runs."""
    # Imported here so that training need not wait for it.
    from experiments.report import write

    print(write(options.runs, options.out))
    return 0


def bench(options: Bench) -> int:
    """Runs a benchmark."""
    # Imported here so that training need not wait for it.
    from experiments.bench import session as bench_session

    return bench_session.run(options)


def parse(arguments: Sequence[str]) -> Command:
    """Parses the arguments; `train TASK` has the options of that task, with its defaults.

    Raises:
      ValueError: if there is no such task; the message suggests the nearest name.
      SystemExit: after `--help`, or if an option is unknown or cannot be read.
    """
    match arguments:
        case ["train", name, *_] if not name.startswith("-"):
            tasks.get(name)
    by_task: Any = tyro.extras.subcommand_type_from_defaults(
        {name: config.defaults(name) for name in tasks.TASKS},
        descriptions={name: task.summary for name, task in tasks.TASKS.items()},
        prefix_names=False,
    )

    def train(options: by_task) -> config.Train:
        """Train a model on a task until it is solved or the budget of steps is spent."""
        return options

    options: Any = tyro.extras.subcommand_cli_from_dict(
        {"train": train, "sweep": sweep.Sweep, "report": Report, "list": Listing, "bench": Bench},
        prog=config.PROGRAM,
        description="Experiments with GRUs on synthetic memory tasks, and benchmarks.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return options


def join(options: config.Train) -> None:
    """Connects to the other processes that train the same run, if there are any."""
    options.check_processes()
    if options.processes > 1:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(base) / "gru_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
