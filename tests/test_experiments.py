"""Runs from the command line: what they leave on disk, how they end, and that an interrupted one ends the same."""

import concurrent.futures
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli, config, interrupts, plots, progress, runs, tasks, training
from tests import own_cells

ROOT = Path(__file__).parent.parent
SMALL = "--length 6 --hidden 8 --batch 4 --chunk 5 --evaluation 8 --seeds 2 --checkpoint-seconds 0"
TINY, LONGER = (shlex.split(f"{SMALL} --steps {steps}") for steps in (23, 53))


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def _ctrl_c_reaches_what_is_started():
    """What runs in the background ignores Ctrl-C, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def call(folder, *options, task="adding"):
    return cli.main(["train", task, *TINY, "--out", str(folder), *options])


def assert_same_run(one, other):
    """Equal bit for bit: logs, result, and the parameters of the last checkpoint."""
    for name in (runs.CONFIG, runs.METRICS, runs.SUMMARY):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    chex.assert_trees_all_equal(last_state(one), last_state(other))


def last_state(folder):
    settings = config.Config.from_dict(json.loads((folder / runs.CONFIG).read_text())["config"])
    run = runs.Run(folder)
    state = run.restore(jax.eval_shape(lambda: training.init(settings)), None)
    run.close()
    return state._replace(key=jax.random.key_data(state.key))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "cache"))
        assert call(folder) == 0
    return folder


def test_run_folder(finished):
    assert {entry.name for entry in finished.iterdir()} == {
        runs.CONFIG,
        runs.METRICS,
        runs.TIMING,
        runs.SUMMARY,
        runs.CURVE,
        runs.CHECKPOINTS,
        runs.LOCK,
    }
    lines = [json.loads(line) for line in (finished / runs.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 23]
    assert all(set(line) == {"step", "train_loss", "eval_loss"} for line in lines)
    assert all(len(line["train_loss"]) == len(line["eval_loss"]) == 2 for line in lines)
    assert json.loads((finished / runs.SUMMARY).read_text()) == {
        "status": "budget spent",
        "baseline": 1 / 6,
        "units": 8,
        "parameters": 3 * 8 * (2 + 8 + 1) + 8 + 8 + 1,
        "solved_at": [None, None],
        **lines[-1],
    }
    written = json.loads((finished / runs.CONFIG).read_text())
    assert written["config"]["hidden"] == 8
    assert cli.parse(shlex.split(written["command"])[3:]).config == cli.parse(["train", "adding", *TINY]).config
    assert (finished / runs.CURVE).read_bytes().startswith(b"\x89PNG")
    assert last_state(finished).step.tolist() == [23, 23]


def test_summary(finished, capsys):
    """On a finished run --resume shows the summary again, and changes nothing."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert call(finished, "--resume") == 0
    shown = capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert len(shown.splitlines()) < 24
    for piece in (
        "adding, T = 6, seeds 0 to 1",
        "0 of 2 seeds solved in a budget of 23 steps",
        "8 units, 281 parameters",
        "of the baseline",
        "arXiv",
        "steps/s",
        str(finished),
    ):
        assert piece in shown
    again = next(line for line in shown.splitlines() if "show again" in line).split("again", 1)[1]
    assert cli.parse(shlex.split(again)[3:]).config == cli.parse(["train", "adding", *TINY]).config


@pytest.mark.parametrize("damage", ["torn line", "lines ahead", "older checkpoint", "no checkpoint", "unfinished save"])
def test_resume_after_damage(finished, tmp_path, damage):
    """Whatever a kill can leave behind, the resumed run is the uninterrupted one."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / runs.SUMMARY).unlink()
    if damage in ("older checkpoint", "unfinished save"):
        newest = folder / runs.CHECKPOINTS / "23"
        newest.rename(newest.with_name("23.orbax-checkpoint-tmp")) if damage == "unfinished save" else shutil.rmtree(
            newest
        )
    if damage == "no checkpoint":
        shutil.rmtree(folder / runs.CHECKPOINTS)
    with (folder / runs.METRICS).open("a") as file:
        if damage == "lines ahead":
            file.write('{"step": 28, "train_loss": [0.5, 0.5], "eval_loss": [0.5, 0.5]}\n')
        file.write('{"step": 33, "train_lo')
    assert call(folder, "--resume") == 0
    assert_same_run(folder, finished)
    steps = [json.loads(line)["step"] for line in (folder / runs.TIMING).read_text().splitlines()]
    assert steps == [5, 10, 15, 20, 23]


def test_a_run_of_version_0_1(tmp_path, capsys):
    """Its summary is shown, it is reported, and it goes on from its checkpoint to what 0.1 ended with, to rounding."""
    old, folder = Path(__file__).parent / "run_0_1", tmp_path / "run"
    shutil.copytree(old, folder)
    command = shlex.split(json.loads((old / runs.CONFIG).read_text())["command"])[3:]
    command += ["--out", str(folder), "--resume"]
    assert cli.main(command) == 0
    assert "0 of 2 seeds solved in a budget of 15 steps" in capsys.readouterr().out
    assert cli.main(["report", str(folder)]) == 0
    assert "| 0.3364 | 0.2128 to 0.4601 |" in (folder / "report" / "table.md").read_text()
    (folder / runs.SUMMARY).unlink()
    assert cli.main(command) == 0
    lines, expected = (
        [json.loads(line) for line in (each / runs.METRICS).read_text().splitlines()] for each in (folder, old)
    )
    assert lines[:2] == expected[:2]
    chex.assert_trees_all_close(lines, expected, rtol=1e-5)


@pytest.mark.parametrize("when", [1, 3])
def test_interrupt(finished, tmp_path, monkeypatch, capsys, when):
    calls = []

    def evaluate(*arguments):
        calls.append(arguments)
        if len(calls) == when:
            raise KeyboardInterrupt
        return unpatched(*arguments)

    unpatched = training.evaluate
    monkeypatch.setattr(training, "evaluate", evaluate)
    folder = tmp_path / "run"
    assert call(folder, "--checkpoint-seconds", "1000") == 130
    assert f"Interrupted at step {5 * (when - 1)}. Go on with:" in capsys.readouterr().err
    assert call(folder, "--resume") == 0
    assert_same_run(folder, finished)


def start(folder, *options):
    """The command in a process of its own; it compiles anew, with little effort, where nothing says otherwise."""
    command = [sys.executable, "-W", "error", "-m", "experiments", "train", "copy", *options, "--out", str(folder)]
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "false", **os.environ}
    return subprocess.Popen(
        [*command, "--resume"], cwd=ROOT, env=environment, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    )


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.005)
    assert process.returncode is None, process.communicate()


def waits_for_signals(process):
    """Whether Python has started, and the command with it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = next(line for line in status.splitlines() if line.startswith("SigBlk:")).split()[1]
    return int(blocked, 16) >> (signal.SIGINT - 1) & 1


def count(folder):
    log = folder / runs.METRICS
    return log.read_bytes().count(b"\n") if log.exists() else 0


def check_left(process, folder, number):
    """That a signal has ended the process, said how to go on, and all that was recorded is saved."""
    wait_for(process, lambda: waits_for_signals(process))
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert "\nInterrupted" in err
    assert shlex.split(err.splitlines()[-1])[-1] == "--resume"
    assert "Traceback" not in err
    if count(folder):
        lines = (folder / runs.METRICS).read_text().splitlines()
        saved = [int(entry.name) for entry in (folder / runs.CHECKPOINTS).iterdir() if entry.name.isdigit()]
        assert json.loads(lines[-1])["step"] == max(saved)


@pytest.mark.long
def test_interrupted_runs_end_the_same(tmp_path):
    """By Ctrl-C while it compiles, kill -9 and SIGTERM while it runs; bit for bit what a run left alone ends with."""
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    process = start(stopped, *LONGER)
    wait_for(process, (stopped / runs.CONFIG).exists)
    check_left(process, stopped, signal.SIGINT)
    undisturbed, process = start(alone, *LONGER), start(stopped, *LONGER)
    wait_for(process, lambda: count(stopped) >= 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start(stopped, *LONGER)
    wait_for(process, lambda: count(stopped) >= 6)
    check_left(process, stopped, signal.SIGTERM)
    for process in (undisturbed, start(stopped, *LONGER)):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "0 of 2 seeds solved" in out
        assert "Warning" not in err
    assert_same_run(alone, stopped)


@pytest.mark.long
def test_thirty_interrupts(tmp_path):
    """At random moments from the start on, so while it imports, compiles and trains, too: none costs what is recorded.

    Two runs side by side, fifteen times each; then what they have recorded is what a run left alone does.
    """
    options = shlex.split(f"{SMALL} --steps 1000000 --chunk 500 --checkpoint-seconds 2")
    alone, *stopped = (tmp_path / name for name in ("alone", "one", "other"))
    process, began = start(alone, *options), time.perf_counter()
    wait_for(process, lambda: count(alone))
    first = time.perf_counter() - began
    check_left(process, alone, signal.SIGINT)

    def interrupt(seed):
        moments = np.random.default_rng(seed).uniform(0, 1.5 * first, size=15).tolist()
        for moment in moments:
            process, began = start(stopped[seed], *options), time.perf_counter()
            time.sleep(max(0, moment - (time.perf_counter() - began)))
            if moment is moments[-1]:  # by then, at the latest, something is recorded
                wait_for(process, lambda: count(stopped[seed]))
            check_left(process, stopped[seed], signal.SIGINT)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(interrupt, range(2)))
    recorded = [(folder / runs.METRICS).read_bytes() for folder in stopped]
    process = start(alone, *options)
    wait_for(process, lambda: count(alone) >= max(map(count, stopped)))
    check_left(process, alone, signal.SIGINT)
    assert all(recorded)
    assert all((alone / runs.METRICS).read_bytes().startswith(each) for each in recorded)


def test_leaving(monkeypatch, capsys):
    """A second signal does not wait for what is saved, and what fails to be saved does not keep the process."""
    left, going_on = [], threading.Event()
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(signal, "sigwait", lambda watched: watched[0])
    with interrupts.on_leaving(save=going_on.wait, say=lambda: "Interrupted."):
        interrupts._wait([signal.SIGTERM])
        assert left == [143]
        going_on.set()
        with interrupts.lock:  # the thread has left
            assert left == [143, 143]
    assert capsys.readouterr().err == "\nInterrupted.\n"

    def fail():
        raise OSError("no space left")

    with interrupts.on_leaving(save=fail, say=lambda: "Interrupted at step 3."):
        interrupts._leave(130)
    assert left == [143, 143, 130]
    assert "OSError: no space left\n\nInterrupted at step 3.\n" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "last"), [("train adding", "--resume"), ("sweep a.toml", "a.toml"), ("list", "")])
def test_how_to_go_on_before_anything_has_begun(monkeypatch, words, last):
    monkeypatch.setattr(sys, "argv", ["", *words.split()])
    said = interrupts._how_to_go_on()
    assert said.startswith("Interrupted.")
    assert said.split(f"{config.PROGRAM} {words}")[1:] == (
        [f" {last}".removesuffix(f" {words.split()[-1]}")] if last else []
    )


def test_readers_that_end_early(monkeypatch, capfd):
    """As `list | head` does: nothing is said, not even when Python ends and flushes."""
    read, write = os.pipe()
    os.close(read)
    for arguments in (["list"], ["--help"], ["train", "adding", "--help"]):
        with os.fdopen(os.dup(write), "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            assert cli.main(arguments) == 141
    os.close(write)
    assert capfd.readouterr() == ("", "")


def test_existing_folders_are_refused(finished, tmp_path, capsys):
    assert call(finished) == 2
    assert "holds this run already; go on with --resume" in capsys.readouterr().err
    assert call(finished, "--resume", "--hidden", "9") == 2
    assert "other settings: hidden 8 (now 9)" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert call(tmp_path, "--resume") == 2
    assert "holds no run" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    """Two processes at once would write every line twice."""
    options = cli.parse(["train", "adding", *TINY, "--out", str(tmp_path / "run")])
    with runs.open_run(options) as run:
        for resume in ([], ["--resume"]):
            assert call(run.folder, *resume) == 2
            assert f"another process trains in {run.folder}" in capsys.readouterr().err
    assert call(run.folder, "--resume") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("addign", "error: unknown task 'addign'; did you mean 'adding'?"),
        ("adding --length 1", "error: --length must be at least 2, got 1"),
        ("copy --length 0", "error: --length must be at least 1, got 0"),
        ("adding --seed -1", "error: --seed must be at least 0, got -1"),
        ("adding --batch 0", "error: --batch must be at least 1, got 0"),
        ("adding --learning-rate nan", "error: --learning-rate must be a positive number, got nan"),
        ("adding --checkpoint-seconds -1", "error: --checkpoint-seconds must be at least 0, got -1.0"),
        ("adding --cell gro", "error: unknown cell 'gro'; did you mean 'gru'?"),
        ("adding --cell no.py:Cell", "error: unknown cell 'no.py:Cell': there is no file 'no.py' of Python"),
        (
            f"adding --cell {__file__}:call",
            f"error: unknown cell '{__file__}:call': {__file__} has no gru_jax.cells.Cell",
        ),
        ("adding --cell elman", "error: --init chrono does not go with --cell elman, but --init default does"),
        ("digits --length 65", "error: --length must be at most 64, got 65"),
        ("adding --init crono", "error: unknown init 'crono'; did you mean 'chrono'?"),
        ("adding --schedule cosin", "error: unknown schedule 'cosin'; did you mean 'cosine'?"),
        ("adding --beyond 1", "error: --beyond must be at least 2, got 1"),
        ("adding --curriculum 10", "error: --curriculum and --curriculum-steps must be given together"),
        (
            "adding --curriculum 9 --curriculum-steps 5000",
            "error: --curriculum takes 1 × --curriculum-steps 5000, which",
        ),
        ("adding --warmup 5000", "error: --warmup must be less than --steps = 5000, got 5000"),
        ("adding --match-params 3", "error: 3 parameters are too few: one unit of 'gru' needs 15"),
        ("adding --devices 3", "error: --devices must divide --batch = 64, got 3"),
        ("adding --devices 16", "error: --devices must be at most the 8 there are, got 16"),
        ("adding --process 1", "error: --process must lie in [0, --processes), got 1 of 1"),
        ("adding --processes 2", "error: --coordinator and --processes must be given together"),
    ],
)
def test_bad_values(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_cell_of_one_s_own(tmp_path):
    """From a file, whose run resumes, and begins as the cell's init says: it has no gate that chrono could spread."""
    options = ("--cell", f"{own_cells.__file__}:Clocked", "--steps", "4")
    assert call(tmp_path / "run", *options) == 0
    assert call(tmp_path / "run", *options, "--resume") == 0
    assert cli.parse(["train", "adding", *options]).name == "adding-T100-Clocked-s0"


@pytest.mark.parametrize("arguments", ["adding --length abc", "adding --lenght 4", ""])
def test_unreadable_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["train", *arguments.split()])
    assert error.value.code == 2
    assert "--length" in capsys.readouterr().err or not arguments


def test_help(capsys):
    for arguments, pieces in {
        "--help": ("train", "solved"),
        "train --help": ("adding", "copy", "recall ten symbols"),
        "train copy --help": ("--length INT", "in time steps (default: 50)", "--resume", "--out FOLDER", "--seed"),
    }.items():
        with pytest.raises(SystemExit) as error:
            cli.main(arguments.split())
        assert error.value.code == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        for piece in pieces:
            assert piece in shown


def test_solved_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks.Adding, "solved", lambda self, metrics: metrics["loss"] < 100)
    assert call(tmp_path / "run") == 0
    assert "2 of 2 seeds solved at step 5" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / runs.SUMMARY).read_text())["status"] == "solved"


def test_seeds_that_are_solved_stay_as_they_are(tmp_path, monkeypatch):
    """Each seed ends where it would have ended alone; the others go on."""

    def evaluate(settings, state, *rest):
        found = unpatched(settings, state, *rest)
        # Seed 1 is solved at step 10, seed 0 never.
        solved = (jax.random.key_data(state.key) == second).all(axis=-1) & (state.step >= 10)
        return {"loss": jnp.where(solved, 1e-4, 0.5 + found["loss"])}

    unpatched = training.evaluate
    second = jax.random.key_data(training.init(cli.parse(["train", "adding", *TINY]).config).key[1])
    monkeypatch.setattr(training, "evaluate", evaluate)
    assert call(tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / runs.METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 23]
    assert len({line["train_loss"][0] for line in lines}) == 5
    assert len({line["train_loss"][1] for line in lines[1:]}) == 1
    assert json.loads((tmp_path / "run" / runs.SUMMARY).read_text())["solved_at"] == [None, 10]
    assert last_state(tmp_path / "run").step.tolist() == [23, 10]


def test_divergence(tmp_path, monkeypatch, capsys):
    """Stops, says when, and names the last good checkpoint; and says so again."""

    def train_chunk(settings, state, *rest):
        new, loss = unpatched(settings, state, *rest)
        return new, loss * jnp.where(new.step > 10, jnp.array([1, jnp.nan]), 1)

    unpatched = training.train_chunk
    monkeypatch.setattr(training, "train_chunk", train_chunk)
    for options in ([], ["--resume"]):
        assert call(tmp_path / "run", *options) == 1
        shown = capsys.readouterr().out
        assert "stopped after step 10: train_loss of seed 1 became nan between steps 10 and 15" in shown
        assert str(tmp_path / "run" / runs.CHECKPOINTS / "10") in shown
    assert last_state(tmp_path / "run").step.tolist() == [10, 10]


def test_divergence_in_the_first_chunk(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "evaluate", lambda *arguments: {"loss": jnp.array([jnp.inf, 0])})
    assert call(tmp_path / "run") == 1
    shown = capsys.readouterr().out
    assert "stopped after step 0: eval_loss of seed 0 became inf between steps 0 and 5" in shown
    assert "no checkpoint" in shown


def test_reference_level():
    """The published loss, as a share of the baseline where that depends on the length."""
    adding, copy = tasks.get("adding"), tasks.get("copy")
    (gru,), (copied,) = adding.references, copy.references
    assert plots.reference_level(adding, gru, 100) == pytest.approx(5.3e-5)
    assert plots.reference_level(copy, copied, 1000) == pytest.approx(0.0197)
    assert plots.reference_level(copy, copied, 10) / copy.baseline(10) == pytest.approx(0.0197 / copy.baseline(1000))


def test_progress_without_a_terminal_is_quiet(capsys):
    with progress.Progress(1000) as bar:
        bar.begin("adding", 1 / 6, 0)
        for step in range(100, 1001, 100):
            bar.update(step, [0.1], 0)
    assert capsys.readouterr().err == ""
