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


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """An environment with what a build needs: its own, what this one has, and from the network what is missing."""
    folder = tmp_path_factory.mktemp("tools")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=300)
    scripts = folder / "bin"
    missing = [] if importlib.util.find_spec("scikit_build_core") else ["scikit-build-core>=1.1"]
    missing += [name for name in ("cmake", "ninja") if shutil.which(name) is None]
    # A venv of a venv sees the base's packages only; these are the ones of this environment, behind its own.
    own = sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)})
    paths = os.pathsep.join([own, *(path for path in sys.path if path.endswith("site-packages"))])
    environment = {key: value for key, value in os.environ.items() if key not in ("GRU_JAX_NATIVE", "PYTHONPATH")}
    environment |= {"PYTHONPATH": paths, "PATH": os.pathsep.join([str(scripts), os.environ["PATH"]])}
    if missing:
        install(environment, folder, *missing)
    return folder, environment


def install(environment, folder, *what):
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--ignore-installed"]
    done = subprocess.run([*pip, *what], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(("compiler", "editable", "reason"), CASES.values(), ids=CASES)
def test_an_installation_without_a_compiler_says_so(compiler, editable, reason, tools, tmp_path):
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
    folder, environment = tools
    tree = ["-e", sources] if editable else [sources]
    install(environment | {"CXX": compiler}, folder, "--no-deps", "--no-build-isolation", *tree)
    said = subprocess.run(
        [folder / "bin" / "python", "-c", PROGRAM],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = dict(line.split(" ", 1) for line in said.stdout.splitlines())
    assert str(sources if editable else folder) in lines["from"], said
    assert lines["why"].startswith(reason)
    assert lines["warned"].count(reason) == 1
    assert "pip install" in lines["warned"]
