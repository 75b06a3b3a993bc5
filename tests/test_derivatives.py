"""Every derivative of the fused recurrences, against autodiff of the plain scan and against finite differences.

All in float64. The two differ by rounding alone; 1e-9 is the bound that the package promises, and derivatives of this
problem are of order 1 to 100.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

import gru_jax
from gru_jax import policy
from tests.cases import BATCH, CELLS, FEATURES, OPTIONS, ORACLE, STEPS, problem, unroll

WRT = (0, 1, 2, 3)


@pytest.fixture(autouse=True)
def many_rows(monkeypatch):
    """A product of each gate projects the inputs, as where there are more; for few rows it is one product of all."""
    monkeypatch.setattr(policy, "ONE_PROJECTION_MAX_ROWS", 0)


RESETS = {name: CELLS[name] for name in ("cudnn", "cho2014")}


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


def reverse_over_reverse(f):
    return lambda *args: jax.grad(lambda *a: dot(jax.grad(f, WRT)(*a), tangents(args)), WRT)(*args)


OPERATORS = {
    "value_and_grad": lambda f: jax.value_and_grad(f, WRT),
    "jvp": lambda f: lambda *args: jax.jvp(f, args, tangents(args)),
    "linearize": lambda f: lambda *args: jax.linearize(f, *args)[1](*tangents(args)),
    # Of the value as well, so that one program has value, gradient and jvp, too.
    "forward_over_reverse": lambda f: lambda *args: jax.jvp(jax.value_and_grad(f, WRT), args, tangents(args)),
    "reverse_over_forward": lambda f: lambda *args: jax.grad(lambda *a: jax.jvp(f, a, tangents(args))[1], WRT)(*args),
    "reverse_over_reverse": reverse_over_reverse,
    "third_order": lambda f: lambda *args: jax.jvp(reverse_over_reverse(f), args, tangents(args)),
    "checkpointed": lambda f: jax.value_and_grad(jax.checkpoint(f), WRT),
    "checkpointed_states": lambda f: jax.value_and_grad(jax.checkpoint(f, policy=gru_jax.save_states), WRT),
}


def compiled(function, method):
    """Of the scan, which is the oracle, without optimisation."""
    return jax.jit(function, compiler_options=ORACLE if method == "scan" else None)


SAME = {"checkpointed": "value_and_grad", "checkpointed_states": "value_and_grad"}
"""Operators that must give what another gives."""


# Every option by a program that has derivatives of first and second order, and its gradient where the preactivations
# are kept; every derivative with none and all options.
TABLE = sorted(
    {("value_and_grad", options, "kept") for options in OPTIONS}
    | {("forward_over_reverse", options, "again") for options in OPTIONS}
    | {("third_order", "plain", "again"), ("third_order", "all", "kept")}  # has reverse_over_reverse in it
    | {
        (operator, *row)
        for operator in ("linearize", "reverse_over_forward", *SAME)
        for row in (("plain", "again"), ("all", "kept"))
    }
)


def short(cell, operator, options, kept):
    """Whether a row is of the short tests: of two that differ by the cell alone, one is, except of all options."""
    if operator in ("value_and_grad", "forward_over_reverse"):
        return options == "all" or (cell == "cudnn") == (operator == "forward_over_reverse")
    return (cell == "cudnn") == (options == "all") and operator != "third_order"


@functools.cache
def by_scan(cell, operator, options):
    """What a derivative is to be: autodiff of the plain scan."""
    p = problem(CELLS[cell], OPTIONS[options])
    return compiled(OPERATORS[operator](scalar(CELLS[cell], p.options, "scan")), "scan")(*p[:4])


@pytest.mark.parametrize(
    ("cell", "operator", "options", "kept"),
    [pytest.param(cell, *row, marks=() if short(cell, *row) else pytest.mark.long) for row in TABLE for cell in RESETS],
)
def test_derivative_is_that_of_the_scan(cell, operator, options, kept, keep):
    keep(kept == "kept")
    p = problem(CELLS[cell], OPTIONS[options])
    got = compiled(OPERATORS[operator](scalar(CELLS[cell], p.options, "fused")), "fused")(*p[:4])
    chex.assert_trees_all_close(got, by_scan(cell, SAME.get(operator, operator), options), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("cell", "operator"),
    [
        ("cudnn", jax.jacrev),
        ("cho2014", jax.jacfwd),
        *(pytest.param(cell, jax.hessian, marks=pytest.mark.long) for cell in RESETS),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_whole_matrices(cell, operator):
    p = problem(CELLS[cell], ("mask", "resets"), steps=3)

    def matrix(method):
        def run(*args):
            h_last, hs = unroll(CELLS[cell], *args, method=method, **p.options)
            return (jnp.sin(hs).sum() + (h_last**3).sum()) if operator is jax.hessian else (h_last, hs)

        return compiled(operator(run, WRT), method)(*p[:4])

    chex.assert_trees_all_close(matrix("fused"), matrix("scan"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_against_finite_differences(cell):
    """Central differences along a direction: of the loss against its gradient, of the gradient against its jvp."""
    p = problem(CELLS[cell], OPTIONS["all"])
    args, direction, eps = p[:4], tangents(p[:4]), 1e-5
    loss = scalar(CELLS[cell], p.options, "fused")

    @jax.jit
    def everything(distance):
        at = jax.tree.map(lambda x, v: x + distance * v, args, direction)
        gradient, change = jax.jvp(jax.grad(loss, WRT), at, direction)
        return loss(*at), gradient, change

    (before, before_gradient, _), (after, after_gradient, _) = everything(-eps), everything(eps)
    _, gradient, change = everything(0.0)
    chex.assert_trees_all_close((after - before) / (2 * eps), dot(gradient, direction), atol=1e-7, rtol=1e-7)
    differences = jax.tree.map(lambda b, a: (a - b) / (2 * eps), before_gradient, after_gradient)
    chex.assert_trees_all_close(differences, change, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrt", WRT, ids=["params", "xs", "h_0", "reset_state"])
@pytest.mark.parametrize("cell", RESETS)
def test_one_argument_at_a_time(cell, wrt):
    """The rules drop the terms of arguments that do not move; each alone must still be right."""
    p = problem(CELLS[cell], ("resets",))

    def derivatives(method):
        def of_one(one):
            args = [*p[:4]]
            args[wrt] = one
            return scalar(CELLS[cell], p.options, method)(*args)

        return compiled(lambda one: jax.jvp(jax.value_and_grad(of_one), (one,), (tangents(one),)), method)(p[wrt])

    chex.assert_trees_all_close(derivatives("fused"), derivatives("scan"), atol=1e-9, rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("cell", RESETS)
def test_on_a_single_device(cell, monkeypatch):
    """There, time and batch are merged; the other tests have several devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    p = problem(CELLS[cell], OPTIONS["all"])

    def derivatives(method):
        f = scalar(CELLS[cell], p.options, method)
        ensemble = [stacked(arg, 0) for arg in p[:4]]

        def both(*args):
            return reverse_over_reverse(f)(*args), jax.vmap(jax.grad(f, WRT))(*ensemble)

        return compiled(both, method)(*p[:4])

    chex.assert_trees_all_close(derivatives("fused"), derivatives("scan"), atol=1e-9, rtol=1e-9)


# --- vmap -------------------------------------------------------------------------------------------------------------

# Which of (params, xs, h_0, reset_state, mask, resets) are batched.
AXES = {
    "inputs": (None, 0, None, None, None, None),
    "state": (None, None, 0, None, None, None),
    "flags": (None, None, None, 0, 0, 0),
    "weights": (0, None, None, None, None, None),
    "everything": (0, 0, 0, 0, 0, 0),
}


def stacked(tree, axis, size=2):
    """`tree` unchanged where axis is None, else `size` different copies along a new first axis."""
    if axis is None:
        return tree
    if jax.tree.leaves(tree)[0].dtype == bool:
        return jnp.stack([jnp.roll(tree, i, 0) for i in range(size)])
    return jax.tree.map(lambda x: jnp.stack([x * (1 + i / 2) for i in range(size)]), tree)


@functools.cache
def flagged_problem(cell):
    p = problem(CELLS[cell], ("mask", "resets"))
    return *p[:4], p.options["mask"], p.options["resets"]


def flagged(cell, method):
    def loss(*args):
        *moving, mask, resets = args
        return scalar(CELLS[cell], {"mask": mask, "resets": resets}, method)(*moving)

    return loss


@pytest.mark.parametrize(
    ("cell", "axes"),
    [
        ("cudnn", "everything"),
        ("cho2014", "weights"),
        *(pytest.param("cudnn", axes, marks=pytest.mark.long) for axes in ("inputs", "state", "flags", "weights")),
    ],
)
def test_vmap_of_second_order(cell, axes):
    args = [stacked(arg, axis) for arg, axis in zip(flagged_problem(cell), AXES[axes], strict=True)]

    def batched(method):
        def derivative(*args):
            *moving, mask, resets = args
            return reverse_over_reverse(lambda *moving: flagged(cell, method)(*moving, mask, resets))(*moving)

        return compiled(jax.vmap(derivative, AXES[axes]), method)(*args)

    chex.assert_trees_all_close(batched("fused"), batched("scan"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("cell", "axes", "kept"),
    [
        *(("cudnn", axes, False) for axes in AXES),
        ("cho2014", "everything", False),
        ("cudnn", "weights", True),
        ("cho2014", "inputs", True),
    ],
)
def test_derivative_of_vmap(cell, axes, kept, keep):
    keep(kept)
    args = [stacked(arg, axis) for arg, axis in zip(flagged_problem(cell), AXES[axes], strict=True)]

    def derivative(method):
        total = lambda *a: jax.vmap(flagged(cell, method), AXES[axes])(*a).sum()  # noqa: E731
        return compiled(jax.grad(total, WRT), method)(*args)

    chex.assert_trees_all_close(derivative("fused"), derivative("scan"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("cell", "order"),
    [("cudnn", ("weights", "inputs")), ("cho2014", ("inputs", "weights")), ("cudnn", ("weights", "weights"))],
)
def test_vmap_in_vmap(cell, order):
    outer, inner = (AXES[axes] for axes in order)
    args = [stacked(stacked(arg, i, 2), o, 3) for arg, i, o in zip(flagged_problem(cell), inner, outer, strict=True)]

    def batched(method):
        value_and_grad = jax.value_and_grad(flagged(cell, method), WRT)
        return compiled(jax.vmap(jax.vmap(value_and_grad, inner), outer), method)(*args)

    chex.assert_trees_all_close(batched("fused"), batched("scan"), atol=1e-9, rtol=1e-9)


# --- Padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["scan", "fused"])
@pytest.mark.parametrize("cell", RESETS)
@pytest.mark.parametrize("reverse", [False, True])
def test_padding_of_nan_reaches_nothing(cell, method, reverse):
    p = problem(CELLS[cell])
    options = {"lengths": jnp.array([0, 4, STEPS]), "reverse": reverse}
    padding = (jnp.arange(STEPS)[:, None] >= options["lengths"])[..., None]
    loss = scalar(CELLS[cell], options, method)

    @jax.jit
    def everything(xs):
        args = (p.params, xs, p.h_0, p.reset_state)
        value, grads = jax.value_and_grad(loss, WRT)(*args)
        return value, grads, jax.jvp(jax.grad(loss, WRT), args, tangents(args))[1]

    clean, spoilt = everything(p.xs), everything(jnp.where(padding, jnp.nan, p.xs))
    chex.assert_tree_all_finite(spoilt)
    chex.assert_trees_all_equal(spoilt, clean)
    assert not jnp.where(padding, spoilt[1][1], 0).any()
