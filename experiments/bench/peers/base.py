"""The interface of the adapters: each makes a `Program` of a `Problem`.

Axis legend: T time, B sequences, D input features, H state features, 3H the gates r, z, n side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gru_jax
from experiments.bench.settings import Shape


class Problem(NamedTuple):
    """Weights and inputs, as NumPy arrays in float32. Peers compute hs from xs, and the gradient of the loss Σ g ⊙ hs.

    The recurrent bias is zero, because Flax's nnx cell has none.

    Attributes:
      shape: T, B, D and H.
      weights: in the order and packing of gru_jax.
      xs: (T, B, D).
      g: (T, B, H).
    """

    shape: Shape
    weights: gru_jax.Params
    xs: np.ndarray
    g: np.ndarray


class Pass(NamedTuple):
    """A forward or a gradient computation, ready to run.

    Attributes:
      run: computes the result, waits for it and returns it.
      array: takes the array to compare from a result: hs (T, B, H), or the gradient with respect to xs, (T, B, D).
      compile_seconds: to trace and compile; None if nothing is compiled.
      temporary_bytes: peak temporary memory by XLA's analysis; None if XLA does not run it.
    """

    run: Callable[[], Any]
    array: Callable[[Any], np.ndarray]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None


class Program(NamedTuple):
    """A peer at a shape.

    Attributes:
      forward: hs.
      gradient: with respect to all parameters and xs; None where the peer has none.
      residual_bytes: that the forward pass saves for the gradient, without the arguments; None without a gradient.
    """

    forward: Pass
    gradient: Pass | None = None
    residual_bytes: int | None = None


class Peer(NamedTuple):
    """A GRU to compare with.

    Attributes:
      make: builds its program.
      load: imports the framework; raises ImportError or `UnavailableError` if it cannot run.
      distributions: names of the distributions whose versions are reported.
      reset_after: whether it has the equations of `gru_jax.CUDNN`, or those of `gru_jax.CHO2014`.
    """

    make: Callable[[Problem], Program]
    load: Callable[[], Any] = lambda: None
    distributions: tuple[str, ...] = ()
    reset_after: bool = True


class UnavailableError(Exception):
    """A peer is installed but cannot run; the message says why."""


def make_problem(shape: Shape, seed: int = 0) -> Problem:
    """Weights uniform in ±1/√H, as PyTorch draws them, and normal inputs."""
    steps, batch, in_features, features = shape
    rng = np.random.default_rng(seed)

    def uniform(*sizes: int) -> np.ndarray:
        return rng.uniform(-1, 1, sizes).astype(np.float32) / np.float32(np.sqrt(features))

    kernel, recurrent_kernel = uniform(in_features, 3 * features), uniform(features, 3 * features)
    arrays: Any = (kernel, recurrent_kernel, uniform(3 * features), np.zeros(features, np.float32))
    xs = rng.standard_normal((steps, batch, in_features), np.float32)
    return Problem(shape, gru_jax.Params(*arrays), xs, rng.standard_normal((steps, batch, features), np.float32))


def reorder(packed: Any, order: str) -> np.ndarray:
    """Gates packed as r, z, n in the last axis, in another order, e.g. "zrn"."""
    gates = dict(zip("rzn", np.split(np.asarray(packed), 3, axis=-1), strict=True))
    return np.concatenate([gates[name] for name in order], axis=-1)
