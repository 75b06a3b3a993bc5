"""An installation without a C++ compiler says what is missing, and how to have it."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

SOURCES = pathlib.Path(__file__).parents[1]
PROGRAM = """
import warnings, jax, jax.numpy as jnp, gru_jax
params = gru_jax.CUDNN.init(jax.random.key(0), 3, 4)
run = lambda xs: gru_jax.unroll(gru_jax.CUDNN, params, xs)[1]
print("from", gru_jax.__file__)
print("why", gru_jax.lowerings(run)(jnp.ones((5, 3)))[0].why)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    jax.jit(run)(jnp.ones((5, 3))); jax.jit(run)(jnp.ones((6, 3)))
    print("warned", [str(w.message) for w in warned if "gru_jax" in str(w.message)])
"""
CASES = {
    "none": ("/nowhere/c++", False, "not built: no C++ compiler was found when gru_jax was installed"),
    "one that fails": ("wrapper", True, "not built: the C++ compiler failed when gru_jax was installed"),
}


@pytest.mark.long
@pytest.mark.parametrize(("compiler", "editable", "reason"), CASES.values(), ids=CASES)
def test_an_installation_without_a_compiler_says_so(compiler, editable, reason, tmp_path):
    if compiler == "wrapper":
        compiler = str(tmp_path / "c++")
        pathlib.Path(compiler).write_text(
            '#!/bin/sh\nfor word in "$@"; do case "$word" in *.cc) exit 1;; esac; done\nexec c++ "$@"\n'
        )
        os.chmod(compiler, 0o755)
    sources = tmp_path / "sources"
    shutil.copytree(
        SOURCES, sources, ignore=shutil.ignore_patterns(".*", "*.so", "_unbuilt.py", "__pycache__", "build", "runs")
    )
    site = tmp_path / "site"
    # The network is needed only for what the build needs and this environment lacks.
    has = all(importlib.util.find_spec(name) for name in ("scikit_build_core", "jaxlib")) and shutil.which("cmake")
    isolation = ["--no-build-isolation"] if has else []
    environment = {key: value for key, value in os.environ.items() if key not in ("GRU_JAX_NATIVE", "PYTHONPATH")}
    venv = [sys.executable, "-m", "venv", "--system-site-packages", str(site)]
    subprocess.run(venv, check=True, timeout=300)
    python = str(site / "bin" / "python")
    # A venv of a venv sees the base's packages only; these are the ones of this environment, behind its own: both may
    # have a module that finds the tree of an editable installation.
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(site), "platbase": str(site)})
    paths = os.pathsep.join([own, *(path for path in sys.path if path.endswith("site-packages"))])
    tree = ["-e", str(sources)] if editable else [str(sources)]
    install = [python, "-m", "pip", "install", "--no-deps", "--ignore-installed", *isolation, *tree]
    # Without isolation the build needs this environment's packages; with it, it must not see them.
    packages = {"PYTHONPATH": paths} if isolation else {}
    installed = subprocess.run(
        install, env=environment | packages | {"CXX": compiler}, capture_output=True, text=True, timeout=900
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    run = [python, "-c", PROGRAM]
    settings = environment | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    said = subprocess.run(run, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    lines = dict(line.split(" ", 1) for line in said.stdout.splitlines())
    assert str(tmp_path) in lines["from"], said
    assert lines["why"].startswith(reason)
    assert lines["warned"].count(reason) == 1
    assert "pip install" in lines["warned"]
    silent = subprocess.run(
        run, env=settings | {"GRU_JAX_NATIVE": "0"}, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert "warned []" in silent.stdout
