"""The table that every method must agree on: cells × options, and one random problem to run them on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import gru_jax
from gru_jax.lowerings.native import native_import_error

native_is_installed = native_import_error is None

CELLS = {"cudnn": gru_jax.CUDNN, "cho2014": gru_jax.CHO2014, "goodfellow": gru_jax.GOODFELLOW}

OPTIONS = {
    "plain": (),
    "reverse": ("reverse",),
    "mask": ("mask",),
    "lengths_reverse": ("lengths", "reverse"),
    "resets": ("resets",),
    "dropout": ("recurrent_dropout_mask",),
    "all": ("mask", "lengths", "resets", "recurrent_dropout_mask", "reverse"),
}

ORACLE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For `jax.jit(..., compiler_options=ORACLE)`: what others are held against need not be fast, but soon compiled."""

STEPS, BATCH, IN_FEATURES, FEATURES = 6, 3, 2, 4


class Problem(NamedTuple):
    """Weights, inputs (T, B, D), h_0 and reset_state (B, H), and the other keyword arguments of `unroll`."""

    params: gru_jax.Params
    xs: jax.Array
    h_0: jax.Array
    reset_state: jax.Array
    options: dict


def unroll(cell, params, xs, h_0, reset_state, **options):
    """`gru_jax.unroll` of the arrays with respect to which it is differentiated; reset_state counts with `resets`."""
    return gru_jax.unroll(cell, params, xs, h_0, reset_state=reset_state, **options)


def normal_init(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


def problem(cell, options=(), *, dtype=jnp.float64, seed=0, use_bias=True, batch=(BATCH,), steps=STEPS) -> Problem:
    """A random problem whose every parameter is away from zero, biases too."""
    keys = jax.random.split(jax.random.key(seed), 8)
    params = cell.init(keys[0], IN_FEATURES, FEATURES, use_bias=use_bias, bias_init=normal_init, dtype=dtype)
    xs = jax.random.normal(keys[1], (steps, *batch, IN_FEATURES), dtype)
    h_0, reset_state = jax.random.normal(keys[2], (2, *batch, FEATURES), dtype)
    every = {
        "mask": jax.random.bernoulli(keys[3], 0.7, (steps, *batch)),
        "lengths": jnp.arange(steps, steps - 2 * BATCH, -2)[:BATCH].reshape(batch) if batch == (BATCH,) else None,
        "resets": jax.random.bernoulli(keys[4], 0.3, (steps, *batch)),
        "recurrent_dropout_mask": jax.random.bernoulli(keys[5], 0.5, (*batch, FEATURES)).astype(dtype) * 2,
        "reverse": True,
    }
    return Problem(params, xs, h_0, reset_state, {name: every[name] for name in options})


def flags(options, steps=STEPS):
    """The mask and the resets (T, B), or None, that mask, resets and lengths amount to."""
    mask, resets = options.get("mask"), options.get("resets")
    if (lengths := options.get("lengths")) is not None:
        within = jnp.arange(steps)[:, None] < lengths
        mask = within if mask is None else mask & within
        resets = None if resets is None else resets & within
    return mask, resets
