"""Derivatives of a loss of the outputs of `unroll`, and what they are to be: autodiff of the plain scan in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

import gru_jax
from tests.cases import BATCH, FEATURES, ORACLE, STEPS, flags, problem, unroll

WRT = (0, 1, 2, 3)


def tangents(args):
    """Fixed directions, one for each argument."""
    return jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype) + 1).reshape(x.shape), args)


def dot(a, b):
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def scalar(cell, options, method):
    """A loss of weights, inputs, h_0 and reset_state that weighs every output and the final state differently."""
    weight = jnp.sin(jnp.arange(STEPS * BATCH * FEATURES)).reshape(STEPS, BATCH, FEATURES)

    def loss(*args):
        h_last, hs = unroll(cell, *args, method=method, **options)
        return (weight.astype(hs.dtype) * jnp.sin(hs)).sum() + (h_last**3).sum()

    return loss


# --- What they are to be ----------------------------------------------------------------------------------------------


class Exact(NamedTuple):
    """A loss and its gradient; their first and their second derivatives along a direction."""

    value: Any
    gradient: Any
    slope: Any
    hessian_product: Any
    curvature: Any
    third: Any


@functools.cache
def _by_scan(cell, reverse):
    """One program for all options and all derivatives: flags that change nothing stand for those that are not given."""

    @functools.partial(jax.jit, compiler_options=ORACLE)
    def run(args, options, direction):
        value_and_grad = jax.value_and_grad(scalar(cell, options | {"reverse": reverse}, "scan"), WRT)
        first = lambda *args: jax.jvp(value_and_grad, args, direction)  # noqa: E731
        ((value, gradient), _), ((slope, product), (curvature, third)) = jax.jvp(first, args, direction)
        return Exact(value, gradient, slope, product, curvature, third)

    return run


def exact(cell, args, options, direction=None) -> Exact:
    """Of `scalar` at (params, xs, h_0, reset_state) by the plain scan; along `tangents` unless a direction is given."""
    mask, resets = flags(options)
    dropout_mask = options.get("recurrent_dropout_mask", np.ones((BATCH, FEATURES)))
    given = {
        "mask": np.ones((STEPS, BATCH), bool) if mask is None else np.asarray(mask),
        "resets": np.zeros((STEPS, BATCH), bool) if resets is None else np.asarray(resets),
        "recurrent_dropout_mask": np.asarray(dropout_mask, np.float64),
    }
    args = tuple(jax.tree.map(np.asarray, args))
    direction = tangents(args) if direction is None else direction
    return jax.device_get(_by_scan(cell, options.get("reverse", False))(args, given, tuple(direction)))


def exact_hessian(cell, args, options):
    """Of the arguments as one vector: each of its columns is the product with a unit vector."""
    at, unravel = jax.flatten_util.ravel_pytree(args)
    columns = [exact(cell, args, options, unravel(unit)).hessian_product for unit in np.eye(at.size)]
    return np.stack([np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(column)]) for column in columns])


class Operator(NamedTuple):
    """A derivative of f(*args), and where it stands in `Exact`."""

    of: Callable
    expected: Callable[[Exact], Any]


def reverse_over_reverse(f):
    return lambda *args: jax.grad(lambda *a: dot(jax.grad(f, WRT)(*a), tangents(args)), WRT)(*args)


OPERATORS = {
    "value_and_grad": Operator(lambda f: jax.value_and_grad(f, WRT), lambda e: (e.value, e.gradient)),
    "linearize": Operator(
        lambda f: lambda *args: jax.linearize(f, *args)[1](*tangents(args)),
        lambda e: e.slope,
    ),
    # Of the value as well, so that one program has value, gradient and jvp, too.
    "forward_over_reverse": Operator(
        lambda f: lambda *args: jax.jvp(jax.value_and_grad(f, WRT), args, tangents(args)),
        lambda e: ((e.value, e.gradient), (e.slope, e.hessian_product)),
    ),
    "reverse_over_forward": Operator(
        lambda f: lambda *args: jax.grad(lambda *a: jax.jvp(f, a, tangents(args))[1], WRT)(*args),
        lambda e: e.hessian_product,
    ),
    "reverse_over_reverse": Operator(reverse_over_reverse, lambda e: e.hessian_product),
    "third_order": Operator(
        lambda f: lambda *args: jax.jvp(reverse_over_reverse(f), args, tangents(args)),
        lambda e: (e.hessian_product, e.third),
    ),
    "checkpointed": Operator(
        lambda f: jax.value_and_grad(jax.checkpoint(f), WRT),
        lambda e: (e.value, e.gradient),
    ),
    "checkpointed_states": Operator(
        lambda f: jax.value_and_grad(jax.checkpoint(f, policy=gru_jax.save_states), WRT),
        lambda e: (e.value, e.gradient),
    ),
}


# --- vmap -------------------------------------------------------------------------------------------------------------

# Which of (params, xs, h_0, reset_state, mask, resets) are batched.
AXES = {
    "inputs": (None, 0, None, None, None, None),
    "state": (None, None, 0, None, None, None),
    "flags": (None, None, None, 0, 0, 0),
    "weights": (0, None, None, None, None, None),
    "everything": (0, 0, 0, 0, 0, 0),
}


def stacked(args, axes, size=2):
    """Arguments of which those that have an axis are `size` different copies along a new first axis."""

    def copies(x):
        x = np.asarray(x)
        return np.stack([np.roll(x, i, 0) if x.dtype == bool else x * (1 + i / 2) for i in range(size)])

    return [arg if axis is None else jax.tree.map(copies, arg) for arg, axis in zip(args, axes, strict=True)]


@functools.cache
def flagged_problem(cell):
    """(params, xs, h_0, reset_state, mask, resets)."""
    p = problem(cell, ("mask", "resets"))
    return *p[:4], p.options["mask"], p.options["resets"]


def with_flags(cell, method):
    """`scalar` as a function of (params, xs, h_0, reset_state, mask, resets)."""

    def loss(*args):
        *moving, mask, resets = args
        return scalar(cell, {"mask": mask, "resets": resets}, method)(*moving)

    return loss


def exact_of_each(cell, args, *batched):
    """What is to come out of `vmap`, one within another, each (axes, size): element by element, stacked."""
    if not batched:
        *moving, mask, resets = args
        return exact(cell, moving, {"mask": mask, "resets": resets})
    (axes, size), *within = batched

    def element(i):
        return [
            arg if axis is None else jax.tree.map(lambda x: x[i], arg) for arg, axis in zip(args, axes, strict=True)
        ]

    every = [exact_of_each(cell, element(i), *within) for i in range(size)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *every)
