"""One step of a cell in Flax's form: (carry, inputs) to (new_carry, output)."""

from typing import Any

import jax

from gru_jax import initializers, meshes
from gru_jax.cells import Cell, State, cast_like
from gru_jax.unroll import MaskedStep
from gru_jax.zoneout import check_zoneout


def step(
    cell: Cell,
    params: Any,
    carry: State,
    inputs: jax.Array,
    resets: jax.Array | None = None,
    reset_state: State | None = None,
    zoneout: Any = 0.0,
) -> tuple[State, jax.Array]:
    """One step of a cell, whose arguments have been checked.

    Args:
      cell: the equations.
      params: in the dtype of the computation.
      carry: a state, (*batch, features).
      inputs: (*batch, in_features), in the dtype of the computation.
      resets: (*batch,) bool, or None.
      reset_state: like carry, or None for zero.
      zoneout: the rate, or rates like the state; its expectation is taken.

    Returns:
      The new state, in the dtype and weak type of the old one, so that a scan may carry it, a float32 state through a
      computation in bfloat16, too; and the output, in the dtype of the computation.
    """
    params, inputs, state_dtype = cell.check_and_cast(params, inputs, "x_t", "(*batch, in_features)")
    like = cell.initial_state(params, inputs.shape[:-1], state_dtype)
    before, start = (_typed(state, like) for state in (carry, reset_state))
    resets = None if resets is None else resets[..., None]
    inputs, params, resets, (before, start) = meshes.align_shardings(
        inputs, params, resets, (before, start), time_axes=0
    )
    rates, _ = check_zoneout(zoneout, None, like, 1)
    after = MaskedStep(cell, rates)((params, start, None), before, (inputs, None, resets, None))
    return cast_like(after, carry), cell.output(after).astype(initializers.floating_dtype((inputs, params)))


def _typed(state: State | None, like: State) -> State | None:
    return None if state is None else jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), state, like)


def cast(params: Any, inputs: jax.Array, dtype: Any) -> tuple[Any, jax.Array]:
    """Parameters and inputs, where they are in floating point, in `dtype`; as they are if it is None."""
    if dtype is None:
        return params, inputs
    return initializers.cast_floating((params, inputs), dtype)


def carry_dtype(dtype: Any, param_dtype: Any) -> Any:
    """The dtype of a fresh state: that of the computation, and float32 where it is narrower."""
    return initializers.at_least_float32(param_dtype if dtype is None else dtype)
