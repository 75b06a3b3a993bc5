"""Every derivative of the fused recurrences, against autodiff of the plain scan and against finite differences.

All in float64. The two differ by rounding alone; 1e-9 is the bound that the package promises, and derivatives of this
problem are of order 1 to 100.
"""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import pytest

from gru_jax import policy
from tests.cases import CELLS, OPTIONS, ORACLE, STEPS, problem, unroll
from tests.derivatives import (
    AXES,
    OPERATORS,
    WRT,
    dot,
    exact,
    exact_hessian,
    exact_of_each,
    flagged_problem,
    reverse_over_reverse,
    scalar,
    stacked,
    tangents,
    with_flags,
)

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True)
def many_rows(monkeypatch):
    """A product of each gate projects the inputs, as where there are more; for few rows it is one product of all."""
    monkeypatch.setattr(policy, "ONE_PROJECTION_MAX_ROWS", 0)


RESETS = {name: CELLS[name] for name in ("cudnn", "cho2014")}


# Every option by a program that has derivatives of first and second order, and its gradient where the preactivations
# are kept; the other derivatives with all options, which has what they have without any.
TABLE = sorted(
    {("value_and_grad", options, "kept") for options in OPTIONS}
    | {("forward_over_reverse", options, "again") for options in OPTIONS}
    | {("third_order", "plain", "again"), ("third_order", "all", "kept")}  # has reverse_over_reverse in it
    | {
        (operator, "all", "kept")
        for operator in ("linearize", "reverse_over_forward", "checkpointed", "checkpointed_states")
    }
)


def short(cell, operator, options, kept):
    """Whether a row is of the short tests: of two that differ by the cell alone, one is, except of all options."""
    if operator in ("value_and_grad", "forward_over_reverse"):
        return options == "all" or (cell == "cudnn") == (operator == "forward_over_reverse")
    return (cell == "cudnn") == (options == "all") and operator != "third_order"


@functools.cache
def compiled(cell, operator, options):
    """A derivative by the two recurrences."""
    p = problem(CELLS[cell], OPTIONS[options])
    return jax.jit(OPERATORS[operator].of(scalar(CELLS[cell], p.options, "fused"))), p


def assert_close(got, expected):
    chex.assert_trees_all_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("cell", "operator", "options", "kept"),
    [pytest.param(cell, *row, marks=() if short(cell, *row) else pytest.mark.long) for row in TABLE for cell in RESETS],
)
def test_derivative_is_that_of_the_scan(cell, operator, options, kept, keep):
    keep(kept == "kept")
    function, p = compiled(cell, operator, options)
    assert_close(function(*p[:4]), OPERATORS[operator].expected(exact(CELLS[cell], p[:4], p.options)))


@pytest.mark.parametrize(("cell", "operator"), [("cudnn", jax.jacrev), ("cho2014", jax.jacfwd)])
def test_jacobians(cell, operator):
    p = problem(CELLS[cell], ("mask", "resets"), steps=3)

    def matrix(method):
        function = operator(lambda *args: unroll(CELLS[cell], *args, method=method, **p.options), WRT)
        return jax.jit(function, compiler_options=ORACLE if method == "scan" else None)(*p[:4])

    assert_close(matrix("fused"), matrix("scan"))


@pytest.mark.long
@pytest.mark.parametrize("cell", RESETS)
def test_hessian(cell):
    *args, mask, resets = flagged_problem(CELLS[cell])
    at, unravel = jax.flatten_util.ravel_pytree(args)
    got = jax.jit(jax.hessian(lambda at: with_flags(CELLS[cell], "fused")(*unravel(at), mask, resets)))(at)
    assert_close(got, exact_hessian(CELLS[cell], args, {"mask": mask, "resets": resets}))


@pytest.mark.parametrize("cell", CELLS)
def test_against_finite_differences(cell):
    """Central differences along a direction: of the loss against its gradient, of the gradient against its jvp."""
    function, p = compiled(cell, "forward_over_reverse", "all")
    direction, eps = tangents(p[:4]), 1e-5

    def at(distance):
        return function(*jax.tree.map(lambda x, v: x + distance * v, p[:4], direction))

    ((before, before_gradient), _), ((after, after_gradient), _) = at(-eps), at(eps)
    (_, gradient), (_, change) = at(0.0)
    chex.assert_trees_all_close((after - before) / (2 * eps), dot(gradient, direction), atol=1e-7, rtol=1e-7)
    differences = jax.tree.map(lambda b, a: (a - b) / (2 * eps), before_gradient, after_gradient)
    chex.assert_trees_all_close(differences, change, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrt", WRT, ids=["params", "xs", "h_0", "reset_state"])
@pytest.mark.parametrize("cell", RESETS)
def test_one_argument_at_a_time(cell, wrt):
    """The rules drop the terms of arguments that do not move; each alone must still be right."""
    p = problem(CELLS[cell], ("resets",))
    loss = scalar(CELLS[cell], p.options, "fused")

    @jax.jit
    def derivatives(one):
        of_one = lambda one: loss(*p[:wrt], one, *p[wrt + 1 : 4])  # noqa: E731
        return jax.jvp(jax.value_and_grad(of_one), (one,), (tangents(one),))

    direction = [tangents(arg) if i == wrt else jax.tree.map(jnp.zeros_like, arg) for i, arg in enumerate(p[:4])]
    expected = exact(CELLS[cell], p[:4], p.options, direction)
    assert_close(
        derivatives(p[wrt]),
        ((expected.value, expected.gradient[wrt]), (expected.slope, expected.hessian_product[wrt])),
    )


@pytest.mark.long
@pytest.mark.parametrize("cell", RESETS)
def test_on_a_single_device(cell, monkeypatch):
    """There, time and batch are merged; the other tests have several devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    args = flagged_problem(CELLS[cell])
    ensemble = stacked(args, AXES["everything"])
    f = with_flags(CELLS[cell], "fused")

    @jax.jit
    def both(args, ensemble):
        second = reverse_over_reverse(lambda *moving: f(*moving, *args[4:]))(*args[:4])
        return second, jax.vmap(jax.grad(f, WRT))(*ensemble)

    each = exact_of_each(CELLS[cell], ensemble, (AXES["everything"], 2))
    assert_close(both(args, ensemble), (exact_of_each(CELLS[cell], args).hessian_product, each.gradient))


# --- vmap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "axes"),
    [
        ("cudnn", "everything"),
        ("cho2014", "weights"),
        *(pytest.param("cudnn", axes, marks=pytest.mark.long) for axes in ("inputs", "state", "flags", "weights")),
    ],
)
def test_vmap_of_second_order(cell, axes):
    args = stacked(flagged_problem(CELLS[cell]), AXES[axes])

    def derivative(*args):
        *moving, mask, resets = args
        return reverse_over_reverse(lambda *moving: with_flags(CELLS[cell], "fused")(*moving, mask, resets))(*moving)

    expected = exact_of_each(CELLS[cell], args, (AXES[axes], 2)).hessian_product
    assert_close(jax.jit(jax.vmap(derivative, AXES[axes]))(*args), expected)


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
    """The gradient of what is not batched is the sum of those of the elements."""
    keep(kept)
    args = stacked(flagged_problem(CELLS[cell]), AXES[axes])
    every = jax.vmap(with_flags(CELLS[cell], "fused"), AXES[axes])
    gradients = exact_of_each(CELLS[cell], args, (AXES[axes], 2)).gradient
    expected = tuple(
        jax.tree.map(lambda x: x.sum(0), gradient) if axis is None else gradient
        for gradient, axis in zip(gradients, AXES[axes], strict=False)
    )
    assert_close(jax.jit(jax.grad(lambda *args: every(*args).sum(), WRT))(*args), expected)


@pytest.mark.parametrize(
    ("cell", "order"),
    [("cudnn", ("weights", "inputs")), ("cho2014", ("inputs", "weights")), ("cudnn", ("weights", "weights"))],
)
def test_vmap_in_vmap(cell, order):
    outer, inner = (AXES[axes] for axes in order)
    args = stacked(stacked(flagged_problem(CELLS[cell]), inner, 2), outer, 3)
    value_and_grad = jax.value_and_grad(with_flags(CELLS[cell], "fused"), WRT)
    expected = exact_of_each(CELLS[cell], args, (outer, 3), (inner, 2))
    assert_close(jax.jit(jax.vmap(jax.vmap(value_and_grad, inner), outer))(*args), (expected.value, expected.gradient))


# --- Padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "method", "reverse"),
    [
        *((cell, "fused", reverse) for cell in RESETS for reverse in (False, True)),
        ("cudnn", "scan", True),
        ("cho2014", "scan", False),
    ],
)
def test_padding_of_nan_reaches_nothing(cell, method, reverse):
    p = problem(CELLS[cell])
    options = {"lengths": jnp.array([0, 4, STEPS]), "reverse": reverse}
    padding = (jnp.arange(STEPS)[:, None] >= options["lengths"])[..., None]
    everything = jax.jit(OPERATORS["forward_over_reverse"].of(scalar(CELLS[cell], options, method)))
    clean, spoilt = (everything(p.params, xs, p.h_0, p.reset_state) for xs in (p.xs, jnp.where(padding, jnp.nan, p.xs)))
    chex.assert_tree_all_finite(spoilt)
    chex.assert_trees_all_equal(spoilt, clean)
    assert not jnp.where(padding, spoilt[0][1][1], 0).any()
