"""One step of a cell in Flax's form: (carry, inputs) to (new_carry, output)."""

from typing import Any

import jax

from gru_jax import initializers, meshes
from gru_jax.cells import Cell, State, base
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
    dtype: Any = None,
) -> tuple[State, jax.Array]:
    """One step of a cell. The arguments have been checked.

    Args:
      cell: the equations.
      params: its parameters.
      carry: a state, (*batch, features).
      inputs: (*batch, in_features).
      resets: (*batch,) bool, or None.
      reset_state: like carry, or None for zero.
      zoneout: the rate, or rates in the form of the state; the step takes their expectation.
      dtype: of the computation; by default the promotion of the dtypes of params and inputs.

    Returns:
      The new state, in the dtype and weak type of the old one, so that a scan can carry it, e.g. a float32 state
      through a computation in bfloat16; and the output, in the dtype of the computation.
    """
    params, inputs, state_dtype = cell.cast(params, inputs, dtype)
    like = cell.initial_state(params, inputs.shape[:-1], state_dtype)
    rates, _ = check_zoneout(zoneout, None, like, 1)
    state = base.astype_like(carry, like)
    reset_state = None if reset_state is None else base.astype_like(reset_state, like)
    resets = None if resets is None else resets[..., None]
    inputs, params, resets, (state, reset_state) = meshes.align_shardings(
        inputs, params, resets, (state, reset_state), time_axes=0
    )
    new = MaskedStep(cell, rates)((params, reset_state, None), state, (inputs, None, resets, None))
    output = cell.output(new).astype(initializers.floating_dtype((inputs, params)))
    return base.restore_types(new, carry), output


def carry_dtype(dtype: Any, param_dtype: Any) -> Any:
    """The dtype of a fresh state: that of the computation, or float32 if that is narrower."""
    return initializers.at_least_float32(param_dtype if dtype is None else dtype)
