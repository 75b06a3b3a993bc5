"""Masks that layers draw, and what is said where a rate drops nothing."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def dropout_mask(key: jax.Array, rate: float, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """0 with probability `rate`, otherwise 1/(1 − rate), so that the mean is 1.

    >>> sorted(set(dropout_mask(jax.random.key(0), 0.5, (20,)).tolist()))
    [0.0, 2.0]
    """
    return jnp.where(_bernoulli(key, 1 - rate, shape), 1 / (1 - rate), 0).astype(dtype)


def zoneout_mask(key: jax.Array, rates: Any, shape: Sequence[int]) -> Any:
    """True with the probability of each of the rates: where a unit keeps its old state."""
    leaves, structure = jax.tree.flatten(rates)
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [_bernoulli(k, rate, shape) for k, rate in zip(keys, leaves, strict=True)])


def _bernoulli(key: jax.Array, probability: float, shape: Sequence[int]) -> jax.Array:
    # Drawn in float32, so that jax_enable_x64 does not change the mask.
    return jax.random.bernoulli(key, jnp.float32(probability), shape)


def warn_of_unused_dropout(dropout: float, num_layers: int) -> None:
    """Says, where a layer is made, that dropout between layers needs two of them, as PyTorch does."""
    if num_layers > 1 or dropout == 0:
        return
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("gru_jax", "flax"):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"dropout={dropout} drops nothing with num_layers=1: it acts on the outputs of every layer but the last. "
        "For the outputs of one layer use flax's Dropout, for its state recurrent_dropout.",
        stacklevel=level + 1,
    )
