"""Zoneout: units that keep their old values, at random or, in evaluation, in expectation.

The new values are those that the cell makes of the old state: the h of an LSTM follows from its new memory, whether
that is kept or not.

Reference:
  D. Krueger et al.: Zoneout: Regularizing RNNs by randomly preserving hidden activations, arXiv:1606.01305; the
  paper itself was not at hand.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks

Keep = tuple[Any, ...] | None
"""What the leaves of a state keep of their old values: each a rate, a mask of where they do, or None for nothing."""


def zone_out(keep: Keep, old: Any, new: Any) -> Any:
    """The new state, but of each leaf what is to be kept of the old one."""
    if keep is None:
        return new
    leaves, structure = jax.tree.flatten(new)
    return jax.tree.unflatten(structure, map(_zone_out_leaf, keep, jax.tree.leaves(old), leaves))


def _zone_out_leaf(keep: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    if keep is None:
        return new
    if isinstance(keep, float):
        return keep * old + (1 - keep) * new
    return jnp.where(keep, old, new)


def check_zoneout(rate: Any, mask: Any, state: Any, steps: int) -> tuple[Keep, Keep]:
    """The arguments of `gru_jax.unroll`, checked, as rates, which are constants, and masks (T, *batch, features).

    Where there is a mask there are no rates, and no rates where all are zero. Leaves of integers keep nothing.

    Args:
      rate: zoneout, a number or a tree of them like the state; or None.
      mask: zoneout_mask, an array or a tree of them like the state; or None.
      state: a tree of arrays (*batch, features).
      steps: T.

    Raises:
      TypeError, ValueError: if a rate is no number in [0, 1), or a mask is no array of that shape.
    """
    rates, masks = [], []
    if rate is not None:
        for name, value, leaf in _by_leaf("zoneout", rate, state):
            checks.rate(name, value)
            rates.append(float(value) if value and leaf is not None else None)
    if mask is None:
        return tuple(rates) if any(rates) else None, None
    for name, value, leaf in _by_leaf("zoneout_mask", mask, state):
        if leaf is not None:
            value = checks.flags(name, value)
            checks.unsharded_time(name, value, 0)
            checks.shape(name, value, "(T, *batch, features)", (steps, *leaf.shape))
        masks.append(value if leaf is not None else None)
    return None, tuple(masks)


def _by_leaf(name: str, values: Any, state: Any) -> list[tuple[str, Any, jax.Array | None]]:
    """For each leaf of a state the name of its value, the value, and the leaf, None if it is of integers."""
    leaves, structure = jax.tree.flatten(state)
    floating = [leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None for leaf in leaves]
    of_values: Any = jax.tree.structure(values)
    if of_values == structure and not jax.tree_util.treedef_is_leaf(structure):
        given = [(name + jax.tree_util.keystr(path), v) for path, v in jax.tree_util.tree_leaves_with_path(values)]
    else:
        given = [(name, values)] * len(leaves)
    return [(*named, leaf) for named, leaf in zip(given, floating, strict=True)]
