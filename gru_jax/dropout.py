"""The masks of dropout and zoneout, and the warning about a rate that drops nothing."""

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


def zoneout_mask(key: jax.Array, rate: Any, state: Any, steps: int) -> Any:
    """Masks (T, *batch, features), one for each leaf of a state. With probability `rate` an element is True: kept.

    Args:
      key: a PRNG key.
      rate: a number; or, for a state of several leaves, a tuple of numbers.
      state: a tree of arrays (*batch, features).
      steps: T.

    Raises:
      TypeError: if there are several rates, but not one for each leaf.
    """
    leaves, structure = jax.tree.flatten(state)
    rates = jax.tree.leaves(rate) if isinstance(rate, tuple) else [rate] * len(leaves)
    if len(rates) != len(leaves):
        raise TypeError(f"zoneout must be a number, or one for each of {len(leaves)} parts of the state, got {rate!r}")
    keys = jax.random.split(key, len(leaves))
    masks = [_bernoulli(k, p, (steps, *leaf.shape)) for k, p, leaf in zip(keys, rates, leaves, strict=True)]
    return jax.tree.unflatten(structure, masks)


def _bernoulli(key: jax.Array, probability: float, shape: Sequence[int]) -> jax.Array:
    # Drawn in float32, so that jax_enable_x64 does not change the mask.
    return jax.random.bernoulli(key, jnp.float32(probability), shape)


def warn_of_unused_dropout(dropout: float, num_layers: int) -> None:
    """Warns, where a layer is made, that dropout needs two layers; PyTorch does the same."""
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
