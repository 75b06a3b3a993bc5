"""Runs from the command line: what they leave on disk, how they end, what they refuse, what they show."""

import json
import shlex
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import pytest

from experiments import cli, plots, progress, runs, tasks, training
from tests import own_cells
from tests.run_folders import SMALL, assert_same_run, last_state

TINY = shlex.split(f"{SMALL} --steps 23")


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


def call(folder, *options, task="adding"):
    return cli.main(["train", task, *TINY, "--out", str(folder), *options])


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
