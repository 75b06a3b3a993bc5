"""Zoneout: units keep their old values, at random in training, in expectation in evaluation.

The cell computes the new values from the old state. So the new h of an LSTM follows from its new memory, even where
that is not taken over.

Reference:
  D. Krueger et al.: Zoneout: Regularizing RNNs by randomly preserving hidden activations, arXiv:1606.01305; the
  paper itself was not at hand.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks

LeafZoneout = tuple[Any, ...] | None
"""For each leaf of a state a rate, or a mask that is True where the old value stays, or None; None for no zoneout."""
Zoneout = tuple[LeafZoneout, LeafZoneout]
"""Rates, which are Python floats, and masks (T, *batch, features). One of the two is None."""
NO_ZONEOUT: Zoneout = (None, None)


def zone_out(zoneout: LeafZoneout, old: Any, new: Any) -> Any:
    """The state after zoneout, from the old state and the one that the cell computed."""
    if zoneout is None:
        return new
    leaves, structure = jax.tree.flatten(new)
    return jax.tree.unflatten(structure, map(_zone_out_leaf, zoneout, jax.tree.leaves(old), leaves))


def _zone_out_leaf(zoneout: Any, old: jax.Array, new: jax.Array) -> jax.Array:
    if zoneout is None:
        return new
    if isinstance(zoneout, float):
        return zoneout * old + (1 - zoneout) * new
    return jnp.where(zoneout, old, new)


def check_zoneout(rate: Any, mask: Any, state: Any, steps: int) -> Zoneout:
    """The arguments of `gru_jax.unroll`, checked, as rates and masks.

    With a mask there are no rates. If all rates are zero there is no zoneout. Leaves of integers take no part.

    Args:
      rate: zoneout, a number or a tree of them like the state; or None.
      mask: zoneout_mask, an array or a tree of them like the state; or None.
      state: a tree of arrays (*batch, features).
      steps: T.

    Raises:
      TypeError, ValueError: if a rate is not a number in [0, 1), or a mask is not an array of that shape.
    """
    rates: list[float | None] = []
    masks: list[jax.Array | None] = []
    if rate is not None:
        for name, value, leaf in _by_leaf("zoneout", rate, state):
            checks.rate(name, value)
            rates.append(float(value) if value and leaf is not None else None)
    if mask is None:
        return (tuple(rates), None) if any(rates) else NO_ZONEOUT
    for name, value, leaf in _by_leaf("zoneout_mask", mask, state):
        if leaf is None:
            masks.append(None)
        else:
            masks.append(checks.optional_flags(name, value, "(T, *batch, features)", (steps, *leaf.shape), 0))
    return None, tuple(masks)


def _by_leaf(name: str, values: Any, state: Any) -> list[tuple[str, Any, jax.Array | None]]:
    """For each leaf of a state: the name of its value, the value, and the leaf, or None if it is of integers."""
    leaves, structure = jax.tree.flatten(state)
    floating = [leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None for leaf in leaves]
    of_values: Any = jax.tree.structure(values)
    if of_values == structure and not jax.tree_util.treedef_is_leaf(structure):
        by_name = [(name + jax.tree_util.keystr(path), v) for path, v in jax.tree_util.tree_leaves_with_path(values)]
    else:
        by_name = [(name, values)] * len(leaves)
    return [(*named, leaf) for named, leaf in zip(by_name, floating, strict=True)]
