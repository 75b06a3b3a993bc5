"""The two recurrences of any cell, made from its step.

1. The states, s_t = step(s_tm1, x_t). Nonlinear.
2. Their tangents, y_t = J_t y_tm1 + …, where J_t = ∂s_t/∂s_tm1. Linear; the transpose, run against time, is the
   gradient.

The second needs nothing of the first but the states: the step is linearised again at each of them. What does not depend
on the state, as x W, is done for all steps at once (`gru_jax.steps`). So is what tangents of the weights add to their
products with the state; transposed, the gradient of a weight is one product over all steps.

A state, an input and parameters are any pytrees. Leaves of integers have no tangent.
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
      reverse: run against time: state_0 then precedes the last step.
      save: whether a derivative saves the products of the state with weights, so that on a CPU it need not form them
        again. Otherwise it saves nothing but what goes in and comes out.
      params, state_0: pytrees of arrays.
      xs: a pytree of arrays with a time axis in front, at least one step.

    Returns:
      A pytree like state_0, with a time axis in front of each leaf.
    """
    return _run(step, reverse, False, params, state_0, xs)[0]


def _run(
    step: Step, reverse: bool, save: bool, params: Any, state_0: State, xs: Any
) -> tuple[State, list[jax.Array] | None]:
    """The states; and if asked for, the products of the state with weights, both at all steps."""
    staged = StagedStep(step, params, state_0, xs)
    weights = staged.weights(params)

    def body(state: State, inputs_t: list[jax.Array]) -> tuple[State, Any]:
        following, products, _ = staged.advance(weights, inputs_t, state)
        return following, (following, products if save else None)

    return jax.lax.scan(body, state_0, staged.inputs(weights, xs), length=_length(xs), reverse=reverse)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _states_and_products(step: Step, reverse: bool, params: Any, state_0: State, xs: Any) -> tuple[State, Any]:
    """The states, and the products, which count as constants: `_tangents` knows what they are made of."""
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
    given = jax.tree.map(_given, tangents, is_leaf=_is_zero)
    # So that a transpose saves no more than what goes into the function.
    d_hs = jax.checkpoint(functools.partial(_tangents, step, reverse))(primals, hs, saved, given)
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
    # What the terms have in them is no tangent of its own within the loop.
    d_inputs = [None if added else d for d, added in zip(d_inputs, staged.are_addends, strict=True)]
    d_weights = [d if beside else None for d, beside in zip(d_weights, staged.beside_products, strict=True)]

    # The step is linearised where its transpose runs: no coefficient is stored.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(y_tm1: State, now: Any) -> tuple[State, State]:
        inputs_t, d_inputs_t, state, saved_t, terms_t = now

        def following(others: Any, inputs_t: Any, state: State, terms_t: Any) -> State:
            return staged.advance(others, inputs_t, state, matrices=weights, saved=saved_t, terms=terms_t).state

        nothing = jax.tree.map(jnp.zeros_like, terms_t)
        _, y_t = _jvp(following, (weights, inputs_t, state, nothing), (d_weights, d_inputs_t, y_tm1, terms_t))
        return y_t, y_t

    y_0 = meshes.varied(jax.tree.map(_filled, d_state_0, state_0, is_leaf=_is_none), hs)
    now = (inputs, d_inputs, before, saved, terms)
    return jax.lax.scan(body, y_0, now, length=_length(xs), reverse=reverse)[1]


def _length(xs: Any) -> int | None:
    """The number of steps, which a loop cannot tell where nothing depends on x; None in an export for any number."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    return steps if isinstance(steps, int) else None


# --- Tangents that may be None ----------------------------------------------------------------------------------------


def _jvp(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`jax.jvp` with None for a tangent that is zero, or that does not exist, as of integers."""
    leaves, structure = _leaves(primals)
    nonzero = {i: d for i, d in enumerate(_leaves(tangents)[0]) if d is not None}

    def of_nonzero(*values: Any) -> Any:
        changed = dict(zip(nonzero, values, strict=True))
        return f(*jax.tree.unflatten(structure, [changed.get(i, leaf) for i, leaf in enumerate(leaves)]))

    if not nonzero:
        out = of_nonzero()
        return out, jax.tree.map(lambda leaf: None, out)
    out, d_out = jax.jvp(of_nonzero, [leaves[i] for i in nonzero], list(nonzero.values()))
    return out, jax.tree.map(_given, d_out)


def _leaves(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_zero(tangent: Any) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero)


def _given(tangent: Any) -> Any:
    return None if _is_zero(tangent) or tangent.dtype == jax.dtypes.float0 else tangent


def _filled(tangent: Any, primal: jax.Array) -> Any:
    if tangent is None and jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return tangent
