"""A GRU with a linear readout, on gru_jax's functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import gru_jax

CELL = gru_jax.CUDNN


class Params(NamedTuple):
    """Parameters of the model, float32.

    Attributes:
      gru: of the GRU, D to H.
      kernel: of the readout, (H, K).
      bias: of the readout, (K,).
    """

    gru: gru_jax.Params
    kernel: jax.Array
    bias: jax.Array


def init(key: jax.Array, in_features: int, hidden: int, out_features: int, memory: int) -> Params:
    """Fresh parameters; to be called inside `jax.jit`, so that they cost one compilation.

    Args:
      key: a PRNG key.
      in_features, hidden, out_features: D, H, K.
      memory: the longest dependency of the task, in steps; the update gates start with time constants up to it.
    """
    key_gru, key_kernel = jax.random.split(key)
    gru = CELL.init(key_gru, in_features, hidden, update_bias_init=gru_jax.initializers.chrono(max(memory, 3)))
    kernel = gru_jax.initializers.lecun_normal(key_kernel, (hidden, out_features), jnp.float32)
    return Params(gru, kernel, jnp.zeros((out_features,), jnp.float32))


def apply(params: Params, inputs: jax.Array) -> jax.Array:
    """The readout at every step: inputs (S, B, D) to outputs (S, B, K)."""
    _, hs = gru_jax.unroll(CELL, params.gru, inputs)
    return hs @ params.kernel + params.bias
