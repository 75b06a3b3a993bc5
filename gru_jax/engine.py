"""The two recurrences of any cell, made from its step.

1. The states, s_t = step(s_tm1, x_t). It is nonlinear.
2. Their tangents, y_t = J_t y_tm1 + …, where J_t = ∂s_t/∂s_tm1. It is linear. Its transpose, run against time, is the
   gradient.

The second needs only the states of the first: the step is linearised again at each of them. What does not depend on the
state, such as x W, is computed for all steps at once (`gru_jax.steps`). So are the terms that tangents of the weights
add to their products with the state; in the transpose, the gradient of a weight is one product over all steps.

State, input and parameters are any pytrees. Leaves of integers have no tangent.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from gru_jax import jaxprs, meshes
from gru_jax.recurrence import RESIDUALS, STATES, shifted
from gru_jax.steps import StagedStep, State, Step


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def states(step: Step, reverse: bool, save: bool, params: Any, state_0: State, xs: Any) -> State:
    """The state after each step.

    Args:
      step: (params, state, x) to the next state.
      reverse: run against time. state_0 then precedes the last step.
      save: whether a derivative saves the products of the state with weights, so that on a CPU it need not
        form them again. Otherwise it saves only the arguments and the results.
      params, state_0: pytrees of arrays.
      xs: a pytree of arrays with a time axis in front, at least one step.

    Returns:
      A pytree like state_0, with a time axis in front of each leaf.
    """
    return _run(step, reverse, False, params, state_0, xs)[0]


def _run(
    step: Step, reverse: bool, save: bool, params: Any, state_0: State, xs: Any
) -> tuple[State, list[jax.Array] | None]:
    """The states, and with `save` the products of the state with weights, at all steps."""
    staged = StagedStep(step, params, state_0, xs)
    weights = staged.weights(params)

    def body(state: State, inputs_t: list[jax.Array]) -> tuple[State, Any]:
        new, products, _ = staged.advance(weights, inputs_t, state)
        return new, (new, products if save else None)

    return jax.lax.scan(body, state_0, staged.inputs(weights, xs), length=_length(xs), reverse=reverse)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _states_and_products(step: Step, reverse: bool, params: Any, state_0: State, xs: Any) -> tuple[State, Any]:
    """The states and the products. The products have no tangents here: `_tangents` derives these from their factors."""
    hs, products = _run(step, reverse, True, params, state_0, xs)
    return hs, jax.tree.map(jaxprs.saved, products)


@_states_and_products.defjvp
def _states_and_products_jvp(step: Step, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    saved = _states_and_products(step, reverse, *primals)[1]
    hs, d_hs = jax.jvp(functools.partial(states, step, reverse, True), primals, tangents)
    return (hs, saved), (d_hs, jax.tree.map(jnp.zeros_like, saved))


@functools.partial(states.defjvp, symbolic_zeros=True)
def _states_jvp(step: Step, reverse: bool, save: bool, primals: Any, tangents: Any) -> tuple[State, State]:
    if save:
        hs, saved = _states_and_products(step, reverse, *primals)
    else:
        hs, saved = states(step, reverse, save, *primals), None
    hs = jax.tree.map(lambda leaf: checkpoint_name(leaf, STATES), hs)
    saved = jax.tree.map(lambda leaf: checkpoint_name(leaf, RESIDUALS), saved)
    nonzero_tangents = jax.tree.map(_none_if_zero, tangents, is_leaf=_is_zero)
    # So that a transpose saves only the arguments of the function.
    d_hs = jax.checkpoint(functools.partial(_tangents, step, reverse))(primals, hs, saved, nonzero_tangents)
    leaves, structure = jax.tree.flatten(hs)
    d_leaves = [
        SymbolicZero(jax.typeof(leaf).to_tangent_aval()) if d is None else d
        for leaf, d in zip(leaves, _leaves(d_hs)[0], strict=True)
    ]
    return hs, jax.tree.unflatten(structure, d_leaves)


def _tangents(step: Step, reverse: bool, primals: Any, hs: State, saved: Any, tangents: Any) -> State:
    """The tangents of the states; None for leaves of integers.

    Args:
      step, reverse: as in `states`.
      primals: params, state_0 and xs.
      hs: the states.
      saved: the products at all steps, or None.
      tangents: of the primals; None for zero.
    """
    (params, state_0, xs), (d_params, d_state_0, d_xs) = primals, tangents
    staged = StagedStep(step, params, state_0, xs)
    before = jax.tree.map(functools.partial(shifted, reverse=reverse), hs, state_0)
    weights, d_weights = _jvp(staged.weights, (params,), (d_params,))
    inputs, d_inputs = _jvp(staged.inputs, (weights, xs), (d_weights, d_xs))
    factors = jax.vmap(lambda i, s, v: staged.advance(weights, i, s, saved=v).factors, axis_size=_length(xs))(
        inputs, before, saved
    )
    terms = staged.terms(factors, d_weights, d_inputs)
    # Within the loop, tangents that the terms contain must not act again.
    d_inputs = [None if added else d for d, added in zip(d_inputs, staged.are_addends, strict=True)]
    d_weights = [d if beside else None for d, beside in zip(d_weights, staged.beside_products, strict=True)]

    # The transpose linearises the step in its own loop, so that no coefficient is stored.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(y_tm1: State, operands_t: Any) -> tuple[State, State]:
        inputs_t, d_inputs_t, state, saved_t, terms_t = operands_t

        def new_state(other_weights: Any, inputs_t: Any, state: State, terms_t: Any) -> State:
            return staged.advance(other_weights, inputs_t, state, matrices=weights, saved=saved_t, terms=terms_t).state

        zeros = jax.tree.map(jnp.zeros_like, terms_t)
        _, y_t = _jvp(new_state, (weights, inputs_t, state, zeros), (d_weights, d_inputs_t, y_tm1, terms_t))
        return y_t, y_t

    y_0 = meshes.mark_varying(jax.tree.map(_zeros_for_none, d_state_0, state_0, is_leaf=_is_none), hs)
    operands = (inputs, d_inputs, before, saved, terms)
    return jax.lax.scan(body, y_0, operands, length=_length(xs), reverse=reverse)[1]


def _length(xs: Any) -> int | None:
    """The number of steps, None if it is symbolic. A loop needs it if nothing within depends on x."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    return steps if isinstance(steps, int) else None


# --- Tangents that may be None ----------------------------------------------------------------------------------------


def _jvp(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`jax.jvp` with None for a tangent that is zero or, for integers, does not exist."""
    leaves, structure = _leaves(primals)
    nonzero_tangents = {i: d for i, d in enumerate(_leaves(tangents)[0]) if d is not None}

    def restricted(*values: Any) -> Any:
        """f of the primals that have a tangent."""
        by_index = dict(zip(nonzero_tangents, values, strict=True))
        return f(*jax.tree.unflatten(structure, [by_index.get(i, leaf) for i, leaf in enumerate(leaves)]))

    if not nonzero_tangents:
        out = restricted()
        return out, jax.tree.map(lambda leaf: None, out)
    out, d_out = jax.jvp(restricted, [leaves[i] for i in nonzero_tangents], list(nonzero_tangents.values()))
    return out, jax.tree.map(_none_if_zero, d_out)


def _leaves(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_zero(tangent: Any) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero)


def _none_if_zero(tangent: Any) -> Any:
    return None if _is_zero(tangent) or tangent.dtype == jax.dtypes.float0 else tangent


def _zeros_for_none(tangent: Any, primal: jax.Array) -> Any:
    if tangent is None and jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return tangent
