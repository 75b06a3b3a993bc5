"""What every adapter takes, a `Problem`, and what it makes of it, a `Program`.

Axis legend: T time, B sequences, D input features, H state features, 3H the gates r, z, n side by side.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gru_jax
from experiments.bench.settings import Shape


class Problem(NamedTuple):
    """What is computed, as NumPy arrays in float32: hs from xs, and the gradient of the loss Σ g ⊙ hs.

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
      run: does it and returns the result once it is there.
      array: of a result, the array to compare: hs (T, B, H), or for the gradient that of xs, (T, B, D).
      compile_seconds: to trace and compile it; None where nothing is compiled.
      temporary_bytes: the peak of temporary memory by XLA's analysis; None elsewhere.
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
      kept_bytes: what the forward pass keeps for the gradient beside the arguments; None where there is no gradient.
    """

    forward: Pass
    gradient: Pass | None = None
    kept_bytes: int | None = None


class Peer(NamedTuple):
    """A GRU to compare with.

    Attributes:
      make: builds its program.
      load: imports what it needs; raises ImportError or `UnavailableError` where it cannot run.
      distributions: whose versions belong to the result.
      reset_after: which equations it computes, those of `gru_jax.CUDNN` (True) or of `gru_jax.CHO2014`.
    """

    make: Callable[[Problem], Program]
    load: Callable[[], Any] = lambda: None
    distributions: tuple[str, ...] = ()
    reset_after: bool = True


class UnavailableError(Exception):
    """A peer is installed, but cannot run here; the message says why."""


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
