"""Runs that are interrupted, at whatever moment: they say how to go on, and end as one left alone does."""

import concurrent.futures
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from experiments import cli, config, interrupts, runs
from tests.run_folders import SMALL, assert_same_run

ROOT = Path(__file__).parent.parent
LONGER = shlex.split(f"{SMALL} --steps 53")


@pytest.fixture(autouse=True, scope="module")
def _ctrl_c_reaches_what_is_started():
    """What runs in the background ignores Ctrl-C, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def start(folder, *options, cache=None):
    """The command in a process of its own; it compiles anew, with little effort, or loads what `cache` has."""
    command = [sys.executable, "-W", "error", "-m", "experiments", "train", "copy", *options, "--out", str(folder)]
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "false", **os.environ}
    if cache:
        environment |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(cache)}
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
    start_again = functools.partial(start, cache=tmp_path / "cache")
    process = start(stopped, *LONGER)
    wait_for(process, (stopped / runs.CONFIG).exists)
    check_left(process, stopped, signal.SIGINT)
    undisturbed, process = start_again(alone, *LONGER), start_again(stopped, *LONGER)
    wait_for(process, lambda: count(stopped) >= 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start_again(stopped, *LONGER)
    wait_for(process, lambda: count(stopped) >= 6)
    check_left(process, stopped, signal.SIGTERM)
    for process in (undisturbed, start_again(stopped, *LONGER)):
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert "0 of 2 seeds solved" in out
        assert "Warning" not in err
    assert_same_run(alone, stopped)


@pytest.mark.long
def test_thirty_interrupts(tmp_path):
    """At random moments from the start on, so while it imports, compiles and trains, too: none costs what is recorded.

    Two runs side by side, fifteen times each, one of which need not compile; then what they have recorded is what a run
    left alone does.
    """
    options = shlex.split(f"{SMALL} --steps 1000000 --chunk 500 --checkpoint-seconds 2")
    alone, cold, warm, cache = (tmp_path / name for name in ("alone", "cold", "warm", "cache"))
    process, began = start(alone, *options, cache=cache), time.perf_counter()
    wait_for(process, lambda: count(alone))
    first = time.perf_counter() - began
    check_left(process, alone, signal.SIGINT)

    def interrupt(folder, latest, seed, **given):
        moments = np.random.default_rng(seed).uniform(0, latest, size=15).tolist()
        for moment in moments:
            process, began = start(folder, *options, **given), time.perf_counter()
            time.sleep(max(0, moment - (time.perf_counter() - began)))
            if moment is moments[-1]:  # by then, at the latest, something is recorded
                wait_for(process, lambda: count(folder))
            check_left(process, folder, signal.SIGINT)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = pool.submit(interrupt, cold, 1.2 * first, 0), pool.submit(interrupt, warm, 0.8 * first, 1, cache=cache)
        for one in both:
            one.result()
    recorded = [(folder / runs.METRICS).read_bytes() for folder in (cold, warm)]
    process = start(alone, *options, cache=cache)
    wait_for(process, lambda: count(alone) >= max(map(count, (cold, warm))))
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
