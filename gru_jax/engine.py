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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from gru_jax.steps import StagedStep, State, Step

STATES = "gru_jax.states"

FORM = {"form": "again", "inner": True, "outer": True}


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def states(step: Step, reverse: bool, params: Any, state_0: State, xs: Any) -> State:
    """The state after each step.

    Args:
      step: (params, state, x) to the next state.
      reverse: run against time: state_0 then precedes the last step.
      params, state_0: pytrees of arrays.
      xs: a pytree of arrays with a time axis in front.

    Returns:
      A pytree like state_0, with a time axis in front of each leaf.
    """
    return _run(step, reverse, params, state_0, xs)[0]


def _run(
    step: Step, reverse: bool, params: Any, state_0: State, xs: Any, save: bool = False
) -> tuple[State, list[jax.Array] | None]:
    """The states; and if asked for the products of the state with weights, both at all steps."""
    staged = StagedStep(step, params, state_0, xs)
    weights = staged.weights(params)

    def body(state: State, inputs_t: list[jax.Array]) -> tuple[State, Any]:
        following, products, _ = staged.advance(weights, inputs_t, state)
        return following, (following, products if save else None)

    steps = jax.tree.leaves(xs)[0].shape[0]
    inputs = jax.vmap(functools.partial(staged.inputs, weights), axis_size=steps)(xs)
    return jax.lax.scan(body, state_0, inputs, steps, reverse=reverse)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _states_and_products(step: Step, reverse: bool, params: Any, state_0: State, xs: Any) -> tuple[State, Any]:
    """The states, and besides, as a constant, the products."""
    return _run(step, reverse, params, state_0, xs, save=True)


@_states_and_products.defjvp
def _states_and_products_jvp(step: Step, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    hs, d_hs = jax.jvp(functools.partial(states, step, reverse), primals, tangents)
    saved = _states_and_products(step, reverse, *primals)[1]
    return (hs, saved), (d_hs, jax.tree.map(jnp.zeros_like, saved))


@functools.partial(states.defjvp, symbolic_zeros=True)
def _states_jvp(step: Step, reverse: bool, primals: Any, tangents: Any) -> tuple[State, State]:
    if FORM["form"] == "saved":
        hs, saved = _states_and_products(step, reverse, *primals)
    else:
        hs, saved = states(step, reverse, *primals), None
    hs, saved = jax.tree.map(lambda leaf: checkpoint_name(leaf, STATES), (hs, saved))
    given = jax.tree.map(_given, tangents, is_leaf=_is_tangent)
    # Nothing but what goes in is kept for a transpose.
    tangent = functools.partial(_tangents, step, reverse)
    if FORM["outer"]:
        tangent = jax.checkpoint(tangent)
    d_hs = tangent(primals, hs, saved, given)
    leaves, structure = jax.tree.flatten(hs)
    d_leaves = _leaves(d_hs)[0]
    filled = [
        np.zeros(leaf.shape, jax.dtypes.float0) if d is None else d for leaf, d in zip(leaves, d_leaves, strict=True)
    ]
    return hs, jax.tree.unflatten(structure, filled)


def _tangents(step: Step, reverse: bool, primals: Any, hs: State, saved: Any, tangents: Any) -> State:
    """The tangents of the states; None for leaves of integers.

    Args:
      primals: params, state_0 and xs.
      hs: the states.
      saved: the products at all steps, or None.
      tangents: of the primals; None for zero.
    """
    (params, state_0, xs), (d_params, d_state_0, d_xs) = primals, tangents
    staged = StagedStep(step, params, state_0, xs)
    at_all_steps = functools.partial(jax.vmap, axis_size=jax.tree.leaves(hs)[0].shape[0])
    before = jax.tree.map(functools.partial(shifted, reverse=reverse), hs, state_0)
    weights, d_weights = _jvp(staged.weights, (params,), (d_params,))
    inputs_of = at_all_steps(staged.inputs, in_axes=(None, 0))
    inputs, d_inputs = _jvp(inputs_of, (weights, xs), (d_weights, d_xs))
    nothing = [None] * len(weights)
    if FORM["form"] == "parallel":
        saved = at_all_steps(lambda i, s: staged.advance(weights, i, s).products)(inputs, before)
    factors = at_all_steps(lambda i, s, v: staged.advance(weights, i, s, saved=v).factors)(inputs, before, saved)
    terms = at_all_steps(lambda f, d: staged.terms(f, d_weights, d))(factors, d_inputs)
    d_inputs = [None if added else d for d, added in zip(d_inputs, staged.are_addends, strict=True)]
    d_others = [d if beside else None for d, beside in zip(d_weights, staged.beside_products, strict=True)]

    def body(y_tm1: State, now: Any) -> tuple[State, State]:
        inputs_t, d_inputs_t, state, saved_t, terms_t = now
        zeros = jax.tree.map(jnp.zeros_like, terms_t)

        def following(weights: Any, inputs_t: Any, state: State, terms_t: Any, others: Any) -> State:
            return staged.advance(others, inputs_t, state, matrices=weights, saved=saved_t, terms=terms_t).state

        _, y_t = _jvp(
            following, (weights, inputs_t, state, zeros, weights), (nothing, d_inputs_t, y_tm1, terms_t, d_others)
        )
        return y_t, y_t

    if FORM["inner"]:
        body = jax.checkpoint(body, prevent_cse=False)
    y_0 = jax.tree.map(_zero_if_none, d_state_0, state_0, is_leaf=lambda d: d is None)
    now = (inputs, d_inputs, before, saved, terms)
    return jax.lax.scan(body, y_0, now, jax.tree.leaves(hs)[0].shape[0], reverse=reverse)[1]


def shifted(ys: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The values before each step: `start`, then ys without its last, in the direction of time."""
    return jnp.concatenate([ys[1:], start[None]] if reverse else [start[None], ys[:-1]])


def _jvp(f: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`jax.jvp` with None for tangents that are zero, or that there are not, as those of integers."""
    leaves, structure = _leaves(primals)
    d_leaves, _ = _leaves(tangents)
    moving = [i for i, d in enumerate(d_leaves) if d is not None]

    def of_moving(*values: Any) -> Any:
        moved = dict(zip(moving, values, strict=True))
        return f(*jax.tree.unflatten(structure, [moved.get(i, leaf) for i, leaf in enumerate(leaves)]))

    if not moving:
        out = of_moving()
        return out, jax.tree.map(lambda leaf: None, out)
    out, d_out = jax.jvp(of_moving, [leaves[i] for i in moving], [d_leaves[i] for i in moving])
    return out, jax.tree.map(_given, d_out)


def _leaves(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)


def _is_tangent(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, SymbolicZero)


def _given(tangent: Any) -> Any:
    zero = tangent is None or isinstance(tangent, SymbolicZero) or tangent.dtype == jax.dtypes.float0
    return None if zero else tangent


def _zero_if_none(tangent: Any, primal: jax.Array) -> Any:
    if tangent is None and jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return tangent
