"""The carry of a stack of layers: one state for each layer and direction, in whichever form a caller has it.

The forms: a tuple or a list of states, layer 0 forward, layer 0 backward, layer 1 forward, and so on; a stacked state,
whose leaves have these on a leading axis as PyTorch's h_n has; and for one layer and direction the state itself. How
many axes a leaf has tells the last two apart: a stacked one has one more than (*batch, features), whatever the sizes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers
from gru_jax.cells import State, broadcast_state
from gru_jax.initializers import Initializer

Carry = Any
"""A state, a tuple or a list of states, or a stacked state; a state is an array (*batch, features)."""


def initial(
    carry_init: Initializer | None, key: jax.Array | None, shape: Sequence[int], dtype: Any, count: int = 1
) -> Carry:
    """The state of each of `count` cells, drawn from `carry_init`, in the form that a call returns them.

    Args:
      carry_init: an initializer; zeros if None.
      key: for `carry_init`; one cell takes it as it is, several take one each that is split from it. Zeros need none.
      shape: (*batch, features), of one state.
      dtype: of the states.
      count: layers·directions.
    """
    zero = jnp.zeros(shape, dtype)
    if carry_init is None or initializers.is_zeros(carry_init):
        return joined([zero] * count, None, zero)
    keys = [key] * count if count == 1 or key is None else jax.random.split(key, count)
    return joined([carry_init(k, shape, dtype) for k in keys], None, zero)


def check_reset_state(resets: Any, reset_state: Any, carry_init: Initializer | None) -> None:
    """Refuses resets without reset_state where a carry is not zero at first: where should an episode begin?"""
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
      zero: a state of one cell, for its type and shape.
      count: layers·directions.
      shared: whether a single state serves all cells, however many there are.

    Returns:
      A list of `count` states, of None if carry is None.

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
        return [broadcast_state(part, state, zero) for part, state in zip(names, carry, strict=True)]
    if _is_stacked(carry, zero):
        stacked = jax.tree.map(lambda leaf: _checked_stack(name, leaf, zero, count), carry)
        return [broadcast_state(name, jax.tree.map(lambda leaf, i=i: leaf[i], stacked), zero) for i in range(count)]
    if count > 1 and not shared:
        got = jax.tree.map(lambda leaf: jnp.shape(checks.array(name, leaf)), carry)
        raise ValueError(
            f"{name} must be a tuple of {count} states, one for each layer and direction, or have them on a leading "
            f"axis, shape (layers·directions, *batch, features) = {(count, *_shape(zero))}, got {got}"
        )
    return [broadcast_state(name, carry, zero)] * count


def joined(states: list[State], given: Carry, zero: State) -> Carry:
    """The states in the form of the carry that was given; if None, a tuple, or the state itself where there is one."""
    if _is_sequence(given, zero):
        return list(states) if isinstance(given, list) else tuple(states)
    if _is_stacked(given, zero):
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return states[0] if len(states) == 1 else tuple(states)


def _is_sequence(carry: Carry, zero: State) -> bool:
    """Whether a carry holds states one by one; a NamedTuple of the cell's own is a state."""
    return isinstance(carry, tuple | list) and not (isinstance(zero, tuple) and isinstance(carry, type(zero)))


def _is_stacked(carry: Carry, zero: State) -> bool:
    return any(jnp.ndim(leaf) == len(_shape(zero)) + 1 for leaf in jax.tree.leaves(carry) if hasattr(leaf, "ndim"))


def _checked_stack(name: str, leaf: Any, zero: State, count: int) -> jax.Array:
    leaf = checks.array(name, leaf)
    symbols, expected = "(layers·directions, *batch, features)", (count, *_shape(zero))
    if leaf.ndim != len(expected) or leaf.shape[0] != count:
        raise ValueError(f"{name} must have shape {symbols} = {expected}, got {leaf.shape}")
    checks.broadcasts(name, leaf, symbols, expected)
    return leaf


def _shape(zero: State) -> tuple[int, ...]:
    """(*batch, features)."""
    return jax.tree.leaves(zero)[0].shape
