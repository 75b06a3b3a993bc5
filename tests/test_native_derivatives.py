"""Every derivative and vmap of the native kernels, in float32, against those of the plain scan in float64."""

import jax
import jax.flatten_util
import numpy as np
import pytest

from tests.cases import OPTIONS, problem, unroll
from tests.derivatives import (
    AXES,
    OPERATORS,
    WRT,
    exact,
    exact_hessian,
    exact_of_each,
    flagged_problem,
    scalar,
    stacked,
    tangents,
    with_flags,
)
from tests.kernels import ACCURACY, CELLS, EVERY_CELL, by_kernels, check, native, native_and_exact, rows, single

pytestmark = [native, pytest.mark.optimized]


def widened(args):
    """What has been rounded to float32, in float64."""
    return jax.tree.map(lambda x: np.asarray(x, bool if x.dtype == bool else np.float64), args)


@pytest.mark.parametrize(
    ("cell", "operator", "options", "kept"),
    rows(
        ("after", "value_and_grad", "plain", False),
        *((cell, "value_and_grad", "all", kept) for cell in CELLS for kept in (False, True)),
        *((cell, "forward_over_reverse", "all", False) for cell in CELLS),
        ("goodfellow", "value_and_grad", "all", True),
        ("goodfellow", "reverse_over_forward", "all", False),
        ("after", "linearize", "all", False),
        ("before", "reverse_over_forward", "all", False),
        ("after", "reverse_over_reverse", "all", True),
        ("after", "checkpointed", "all", False),
        ("before", "checkpointed_states", "all", False),
        long=[
            ("before", "linearize", "all", False),
            ("after", "reverse_over_forward", "all", False),
            ("before", "reverse_over_reverse", "all", True),
            ("after", "third_order", "all", False),
            ("before", "third_order", "all", False),
        ],
    ),
)
def test_every_derivative(cell, operator, options, kept, keep):
    cell = EVERY_CELL[cell]
    keep(kept)
    p = problem(cell, OPTIONS[options])
    args, given = single(p[:4]), single(p.options)
    got = by_kernels(OPERATORS[operator].of(scalar(cell, given, "native")), *args)
    # Rounding grows with each order, in whatever float32 program.
    accuracy = ACCURACY if operator in ("value_and_grad", "checkpointed", "checkpointed_states") else 1e-5
    check(got, OPERATORS[operator].expected(exact(cell, widened(args), given)), accuracy)


@pytest.mark.parametrize(("cell", "operator"), [("after", jax.jacrev), ("before", jax.jacfwd)])
def test_jacobians(cell, operator):
    cell = CELLS[cell]
    p = problem(cell, ("mask", "resets"), steps=3)

    def function(method):
        return operator(lambda *args: unroll(cell, *args, method=method, **p.options), WRT)

    check(*native_and_exact(function, *p[:4]), 1e-5)


@pytest.mark.parametrize("cell", rows("before", long=["after"]))
def test_hessian(cell):
    *args, mask, resets = single(flagged_problem(CELLS[cell]))
    at, unravel = jax.flatten_util.ravel_pytree(args)
    got = by_kernels(jax.hessian(lambda at: with_flags(CELLS[cell], "native")(*unravel(at), mask, resets)), at)
    check(got, exact_hessian(CELLS[cell], widened(args), {"mask": mask, "resets": resets}), 1e-5)


@pytest.mark.parametrize(
    ("cell", "axes", "kept"),
    [*(("after", axes, False) for axes in AXES), ("before", "everything", True), ("before", "weights", False)],
)
def test_vmap(cell, axes, kept, keep):
    keep(kept)
    args, axes = single(flagged_problem(CELLS[cell])), AXES[axes]
    args = stacked(args, axes)
    got = by_kernels(jax.vmap(jax.value_and_grad(with_flags(CELLS[cell], "native"), WRT), axes), *args)
    expected = exact_of_each(CELLS[cell], widened(args), (axes, 2))
    check(got, (expected.value, expected.gradient))


@pytest.mark.parametrize(
    ("cell", "order"),
    [("after", ("weights", "inputs")), ("before", ("inputs", "weights")), ("after", ("weights", "weights"))],
)
def test_vmap_in_vmap(cell, order):
    outer, inner = (AXES[axes] for axes in order)
    args = stacked(stacked(single(flagged_problem(CELLS[cell])), inner), outer, 3)

    def tangent_and_grad(*args):
        *moving, mask, resets = args
        f = scalar(CELLS[cell], {"mask": mask, "resets": resets}, "native")
        return jax.grad(f, WRT)(*moving), jax.jvp(f, moving, tangents(moving))[1]

    got = by_kernels(jax.vmap(jax.vmap(tangent_and_grad, inner), outer), *args)
    expected = exact_of_each(CELLS[cell], widened(args), (outer, 3), (inner, 2))
    check(got, (expected.gradient, expected.slope), 1e-5)
