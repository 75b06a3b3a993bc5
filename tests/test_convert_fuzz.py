"""Damaged files end in a right model or in a ValueError; see tests/fuzz.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import SUBJECTS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", SUBJECTS)
def test_damaged_files(kind, count, tmp_path):
    """In a process of its own, whose memory and time are limited for each file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    progress = tmp_path / "seed"
    command = [sys.executable, "-m", "tests.fuzz", kind, "0", str(count), str(progress)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, (progress.read_text() if progress.exists() else None, process.stderr[-2000:])
    ends = json.loads(process.stdout)
    assert sum(ends.values()) == count
    accepted = ("status 0", "status 2") if kind == "cli" else ("ValueError", "right")
    # Where onnxruntime does not compute a graph that was read, there is nothing to hold the model against.
    assert not [end for end in ends if end not in accepted and not end.startswith("read, and onnxruntime says")]
    assert set(accepted) <= set(ends)
