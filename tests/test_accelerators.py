"""Gradients that a host with a CPU compiles for a GPU or a TPU hold nothing of what it would save for itself."""

import json
import os
import subprocess
import sys

import pytest

from tests import accelerators


@pytest.mark.parametrize("target", accelerators.COMPILERS)
def test_a_gradient_compiled_for_it_holds_nothing_for_a_cpu(target):
    if not accelerators.is_installed(target):
        pytest.skip(f"there is no compiler for it: the package {accelerators.COMPILERS[target]} is not installed")
    command, environment = [sys.executable, "-m", "tests.accelerators", target], os.environ | accelerators.ENVIRONMENT
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("cudnn", "cho2014", "lstm"):
        (saved_more, held_with_more), (saved, held) = found[f"{name} True"], found[f"{name} False"]
        assert saved_more > 2 * saved, "the CPU itself would save more"
        assert held_with_more == held
