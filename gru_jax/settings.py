"""Settings of how a GRU runs on a CPU, read when a computation is compiled; what is compiled already stays as it is.

>>> import gru_jax
>>> gru_jax.config.native = False       # everything compiled from here on runs on XLA alone
>>> gru_jax.config.native = True
"""

import dataclasses
import os


@dataclasses.dataclass
class Config:
    """Settings of how a GRU runs on a CPU.

    Attributes:
      native: whether the native kernels may be used. Environment variable GRU_JAX_NATIVE, 0 or 1; by default 1.
      native_threads: the most threads that a call uses; 0 for all of XLA's. GRU_JAX_NATIVE_THREADS; by default 0.
        Results do not depend on it.
      keep_residuals: whether a gradient may keep more than inputs and states: the preactivations of a GRU, 16 bytes a
        step, sequence and unit, or the products of another cell's state with its weights. It does so where that makes
        it up to a quarter faster: of a GRU if W and U hold more than 65,536 numbers, or, on the native kernels, if the
        preactivations are no more than 8 MB. GRU_JAX_KEEP_RESIDUALS, 0 or 1; by default 1.
    """

    native: bool
    native_threads: int
    keep_residuals: bool

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("native", "keep_residuals") and not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool, got {value!r}")
        if name == "native_threads" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise ValueError(f"native_threads must be an integer, 0 or more, got {value!r}")
        if name not in Config.__annotations__:
            raise AttributeError(f"gru_jax.config has no setting {name!r}; it has {', '.join(Config.__annotations__)}")
        super().__setattr__(name, value)


def from_environment() -> Config:
    """The settings that the environment asks for."""
    threads = os.environ.get("GRU_JAX_NATIVE_THREADS", "0")
    if not threads.isdecimal():
        raise ValueError(
            f"the environment variable GRU_JAX_NATIVE_THREADS must be an integer, 0 or more, got {threads!r}"
        )
    return Config(_switch("GRU_JAX_NATIVE"), int(threads), _switch("GRU_JAX_KEEP_RESIDUALS"))


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "1")
    if value not in ("0", "1"):
        raise ValueError(f"the environment variable {variable} must be 0 or 1, got {value!r}")
    return value == "1"


config = from_environment()
