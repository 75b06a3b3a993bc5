"""The machine that the benchmark runs on."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import gru_jax


def threads() -> int:
    """The number of cores that this process may use; XLA starts as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(distributions: Iterable[str]) -> dict[str, Any]:
    """The machine, and the versions of the software.

    Args:
      distributions: names of distributions whose versions to add, if they are installed.
    """
    versions = {"python": platform.python_version(), "gru_jax": gru_jax.__version__}
    for name in ("jax", "jaxlib", "numpy", *distributions):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "cpu": _cpu(),
        "cores": threads(),
        "device": f"{device.platform} ({device.device_kind})",
        "system": platform.platform(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "environment": {name: os.environ[name] for name in ("XLA_FLAGS", "OMP_NUM_THREADS") if name in os.environ},
        "versions": versions,
    }


def _cpu() -> str:
    """The name of the CPU; on Linux `platform` does not know it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
