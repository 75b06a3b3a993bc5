"""The carry of a stack of layers: one state for each layer and direction, in any of three forms.

The forms are a tuple or a list of states: layer 0 forward, layer 0 backward, layer 1 forward, and so on; a stacked
state, whose leaves have these on a leading axis like PyTorch's h_n; and, for one layer and direction, the state itself.
The number of axes tells the last two apart: a leaf of a stacked state has one more than that of a state.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers
from gru_jax.cells import State, base
from gru_jax.initializers import Initializer

Carry = Any
"""A state, a tuple or a list of states, or a stacked state; a state is a pytree of arrays (*batch, features)."""


def initial(carry_init: Initializer | None, key: jax.Array | None, fresh: Sequence[State]) -> Carry:
    """The states with which layers begin, in the form in which a call returns them.

    Args:
      carry_init: an initializer that draws each floating-point leaf; if None or zeros, the fresh states are returned.
      key: for `carry_init`; it is split if there are several leaves.
      fresh: a fresh state of each cell.
    """
    states = list(fresh)
    if carry_init is not None and not initializers.is_zeros(carry_init):
        states = [_drawn(carry_init, k, state) for k, state in zip(_split(key, len(states)), states, strict=True)]
    return join(states, None, states[0])


def _drawn(carry_init: Initializer, key: jax.Array | None, state: State) -> State:
    leaves, structure = jax.tree.flatten(state)
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for i, k in zip(floating, _split(key, len(floating)), strict=True):
        leaves[i] = carry_init(k, leaves[i].shape, leaves[i].dtype)
    return jax.tree.unflatten(structure, leaves)


def _split(key: jax.Array | None, count: int) -> Any:
    return [key] * count if count == 1 or key is None else jax.random.split(key, count)


def check_reset_state(resets: Any, reset_state: Any, carry_init: Initializer | None) -> None:
    """Checks that resets come with a reset_state if carry_init is not zeros: an episode must begin somewhere."""
    if resets is not None and reset_state is None and not initializers.is_zeros(carry_init):
        raise ValueError(
            "reset_state must be given with resets where carry_init is not zeros: it is the state in which an episode "
            "begins, got None"
        )


def split(name: str, carry: Carry, zero: State, count: int, shared: bool = False) -> list[State]:
    """The state of each cell, broadcast to (*batch, features).

    Args:
      name: what an error calls the carry.
      carry: in one of the forms, or None.
      zero: a state of one cell, for its structure and shapes.
      count: layers·directions.
      shared: whether a single state may stand for all cells.

    Returns:
      A list of `count` states; of None if carry is None.

    Raises:
      TypeError, ValueError: if the carry has none of the forms, or a state does not fit.

    >>> [state.shape for state in split("carry", jnp.zeros((2, 3, 4)), jnp.zeros((3, 4)), 2)]
    [(3, 4), (3, 4)]
    """
    if carry is None:
        return [None] * count
    if _is_sequence(carry, zero):
        if len(carry) != count:
            raise ValueError(f"{name} must have {count} states, one for each layer and direction, got {len(carry)}")
        names = [f"{name}[{i}]" for i in range(count)]
        return [base.broadcast_state(part, state, zero) for part, state in zip(names, carry, strict=True)]
    if _is_stacked(carry, zero):
        stacked = jax.tree.map(lambda leaf, like: _checked_stack(name, leaf, like, count), carry, zero)
        states = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)]
        return [base.broadcast_state(name, state, zero) for state in states]
    if count > 1 and not shared:
        shape = (count, *jax.tree.leaves(zero)[0].shape)
        got = jax.tree.map(lambda leaf: jnp.shape(checks.array(name, leaf)), carry)
        raise ValueError(
            f"{name} must be a tuple of {count} states, one for each layer and direction, or have them on a leading "
            f"axis, shape (layers·directions, *batch, features) = {shape}, got {got}"
        )
    return [base.broadcast_state(name, carry, zero)] * count


def join(states: list[State], like: Carry, zero: State) -> Carry:
    """The states in the form of the carry `like`; if that is None, a tuple, or the state itself if there is one."""
    if _is_sequence(like, zero):
        return list(states) if isinstance(like, list) else tuple(states)
    if _is_stacked(like, zero):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return states[0] if len(states) == 1 else tuple(states)


def _is_sequence(carry: Carry, zero: State) -> bool:
    """Whether a carry is a sequence of states. A tuple or list with the structure of a state is a state."""
    if not isinstance(carry, tuple | list):
        return False
    is_named = hasattr(zero, "_fields") and isinstance(carry, type(zero))
    return not is_named and not _has_structure_of(carry, zero)


def _is_stacked(carry: Carry, zero: State) -> bool:
    """Whether a carry has the structure of a state, and a leaf with one axis more."""
    if not _has_structure_of(carry, zero):
        return False
    leaves = zip(jax.tree.leaves(carry), jax.tree.leaves(zero), strict=True)
    return any(leaf.ndim == like.ndim + 1 for leaf, like in leaves if hasattr(leaf, "ndim"))


def _has_structure_of(carry: Carry, zero: State) -> bool:
    structures: list[Any] = [jax.tree.structure(tree) for tree in (carry, zero)]
    return structures[0] == structures[1]


def _checked_stack(name: str, leaf: Any, like: jax.Array, count: int) -> jax.Array:
    leaf = checks.array(name, leaf)
    symbols, expected = "(layers·directions, *batch, features)", (count, *like.shape)
    if leaf.ndim != len(expected) or leaf.shape[0] != count:
        raise ValueError(f"{name} must have shape {symbols} = {expected}, got {leaf.shape}")
    checks.broadcasts(name, leaf, symbols, expected)
    return leaf
