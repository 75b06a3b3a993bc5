"""The native kernels on thread pools that misbehave, and where memory runs out; see tests/native/fake_pool.cc."""

import os
import shutil
import subprocess
from pathlib import Path

import jaxlib
import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "gru_jax/native" / f"{name}.cc" for name in ("parallel", "stages", "threads", "ffi")]
COMPILER = shutil.which(os.environ.get("CXX") or "c++")
SCENARIOS = (
    *("threads", "inline", "inline_later", "never", "drops", "throws", "throws_later", "throws_after"),
    *("stages_throw", "two_callers", "tasks_without_memory", "handlers_on_every_pool", "handlers_without_memory"),
    "short_calls_need_no_helper",
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    out = tmp_path_factory.mktemp("fake_pool") / "fake_pool"
    headers = Path(jaxlib.__file__).parent / "include"
    options = ["-std=c++20", "-pthread", "-Wall", "-Wextra", "-Werror", f"-isystem{headers}", f"-I{SOURCES[0].parent}"]
    options += os.environ.get("CXXFLAGS", "").split()
    objects = [out.with_name(f"{source.stem}.o") for source in (*SOURCES, ROOT / "tests/native/fake_pool.cc")]
    compilers = [
        subprocess.Popen([COMPILER, *options, "-c", source, "-o", to], stderr=subprocess.PIPE, text=True)
        for source, to in zip((*SOURCES, ROOT / "tests/native/fake_pool.cc"), objects, strict=True)
    ]
    for compiler in compilers:
        _, errors = compiler.communicate(timeout=300)
        assert compiler.returncode == 0, errors
    subprocess.run([COMPILER, *options, *objects, "-o", out], check=True, timeout=300)
    return out


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_pool(program, scenario):
    done = subprocess.run([program, scenario], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
