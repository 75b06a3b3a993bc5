"""Sweeps: what a file stands for, mistakes in it, and that what is done is not done again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

from experiments import cli, runs, sweep, training

ROOT = Path(__file__).parent.parent
TINY = "hidden = 8\nbatch = 4\nchunk = 5\nevaluation = 8\nsteps = 10\nlength = 6\n"


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "table.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def trained(monkeypatch):
    """What was trained, without training: (task, cell, steps) of each chunk."""
    chunks = []

    def train_chunk(settings, state, steps, length, mesh):
        chunks.append((settings.task, settings.cell, steps))
        return state._replace(step=state.step + steps), jnp.ones(settings.seeds)

    monkeypatch.setattr(training, "train_chunk", train_chunk)
    monkeypatch.setattr(training, "evaluate", lambda settings, *rest: {"loss": jnp.full(settings.seeds, 0.5)})
    return chunks


def test_a_list_is_a_run_for_each_value(write):
    path = write(
        "[defaults]\nseeds = 2\n"
        '[[run]]\ntask = "adding"\nlength = [50, 60]\ncell = ["gru", "gru-cho2014"]\nbeyond = [70, 80]\n'
        '[[run]]\ntask = ["latch", "induction"]\n'
        '[[run]]\ntask = "copy"\nname = "slow"\nlearning_rate = [1, 1e-3]\nbeyond = [[60], [60, 70]]\nseeds = 1\n'
    )
    found = {one.folder.name: one.config for one in sweep.Sweep(path).read()}
    assert list(found) == [
        "adding-T50-s0..1",
        "adding-T50-gru-cho2014-s0..1",
        "adding-T60-s0..1",
        "adding-T60-gru-cho2014-s0..1",
        "latch-T100-s0..1",
        "induction-T64-s0..1",
        "slow-copy-T50-s0-learning-rate1.0-beyond60",
        "slow-copy-T50-s0-learning-rate1.0-beyond60+70",
        "slow-copy-T50-s0-learning-rate0.001-beyond60",
        "slow-copy-T50-s0-learning-rate0.001-beyond60+70",
    ]
    assert found["adding-T60-gru-cho2014-s0..1"].beyond == (70, 80)
    assert found["slow-copy-T50-s0-learning-rate0.001-beyond60"].beyond == (60,)
    assert found["slow-copy-T50-s0-learning-rate0.001-beyond60"].seeds == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[run]\n", "is not TOML"),
        ("", "lists no [[run]]"),
        ("[[runs]]\n", "has a table 'runs'; it may have [defaults] and [[run]]"),
        ("[[run]]\nlength = 3\n", "run 1: task must be the name of a task, or a list of them, got None"),
        ('[[run]]\ntask = "addin"\n', "run 1: unknown task 'addin'; did you mean 'adding'?"),
        ('[[run]]\ntask = "adding"\nlenght = 3\n', "run 1: unknown setting 'lenght'; did you mean 'length'?"),
        ('[[run]]\ntask = "adding"\ncell = ["gru", "grü"]\n', "run 1: unknown cell 'grü'; did you mean 'gru'?"),
        ('[[run]]\ntask = "adding"\nlength = 1\n', "run 1: --length must be at least 2, got 1"),
        ('[[run]]\ntask = "adding"\nlength = "3"\n', "run 1: length must be of type int, got '3'"),
        ('[[run]]\ntask = "adding"\nbeyond = 3\n', "run 1: beyond must be a list of integers, got 3"),
        (2 * '[[run]]\ntask = "adding"\n', "run 2: another run is called 'adding-T100-s0', too"),
    ],
)
def test_mistakes_are_named_before_anything_is_done(write, text, message, capsys, tmp_path):
    good = '[[run]]\ntask = "copy"\n'
    path = write(text)
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main(["sweep", str(write(good)), "--dry", "--out", str(tmp_path / "out")]) == 0


def test_what_is_done_is_not_done_again(write, trained, tmp_path, capsys, monkeypatch):
    path = write(f'[defaults]\n{TINY}[[run]]\ntask = "adding"\ncell = ["gru", "gru-cho2014"]\nseeds = 2\n')
    arguments = ["sweep", str(path), "--out", str(tmp_path / "out")]
    names = ["adding-T6-s0..1", "adding-T6-gru-cho2014-s0..1"]
    assert cli.main([*arguments, "--dry"]) == 0
    assert capsys.readouterr().out.count("to do  python -m experiments train adding") == 2
    assert not trained
    assert cli.main(arguments) == 0
    assert trained == 2 * [("adding", "gru", 5)] + 2 * [("adding", "gru-cho2014", 5)]
    table = capsys.readouterr().out
    assert [line.split()[:2] for line in table.splitlines()[1:3]] == [[name, "0/2"] for name in names]
    assert "0.5 [0.5, 0.5]" in table
    (tmp_path / "out" / names[1] / runs.SUMMARY).unlink()
    trained.clear()
    assert cli.main([*arguments, "--dry"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done", "to"]
    assert cli.main(arguments) == 0
    assert not trained  # the last checkpoint was there
    assert capsys.readouterr().out.splitlines()[:3] == table.splitlines()[:3]
    path.write_text(path.read_text().replace("hidden = 8", "hidden = 9"))
    assert cli.main(arguments) == 2
    assert "holds a run with other settings: hidden 8 (now 9)" in capsys.readouterr().err


def test_divergence_does_not_stop_the_others(write, trained, tmp_path, monkeypatch, capsys):
    path = write(f'[defaults]\n{TINY}[[run]]\ntask = "adding"\nseed = [0, 1]\n')

    def evaluate(settings, *rest):
        return {"loss": jnp.full(1, jnp.nan if settings.seed == 0 else 0.5)}

    monkeypatch.setattr(training, "evaluate", evaluate)
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 1
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        ["adding-T6-s0", "diverged"],
        ["adding-T6-s1", "0/1"],
    ]


@pytest.mark.long
def test_killed(write, tmp_path):
    """kill -9 in the middle of the second run; then the same command ends what was begun."""
    path = write(f'[defaults]\n{TINY.replace("steps = 10", "steps = 150")}[[run]]\ntask = "adding"\nseed = [0, 1]\n')
    out = tmp_path / "out"
    command = [sys.executable, "-W", "error", "-m", "experiments", "sweep", str(path), "--out", str(out)]
    command += ["--checkpoint-seconds", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = out / "adding-T6-s1" / runs.METRICS
    while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 3):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = (out / "adding-T6-s0" / runs.TIMING).read_bytes()
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 0
    assert (out / "adding-T6-s0" / runs.TIMING).read_bytes() == first
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(5, 151, 5))
