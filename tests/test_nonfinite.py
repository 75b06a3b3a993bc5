"""NaN and infinities stop where the scan stops them: at a reset, a masked step, the end of a sequence."""

import functools
import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax.cells import MinGRU
from tests.cases import native_is_installed, unroll

STEPS, BATCH, IN_FEATURES, FEATURES = 6, 4, 2, 3
NEVER, ALWAYS, WHOLE = jnp.zeros((STEPS, BATCH), bool), jnp.ones((STEPS, BATCH), bool), jnp.full(BATCH, STEPS)
FLAGS = {
    "resets": {"resets": NEVER.at[3, 1:].set(True).at[0, 3].set(True), "mask": ALWAYS, "lengths": WHOLE},
    "mask": {"resets": NEVER, "mask": ALWAYS.at[2:4, 1:].set(False).at[:, 3].set(False), "lengths": WHOLE},
    "lengths": {"resets": NEVER, "mask": ALWAYS, "lengths": jnp.array([6, 2, 4, 0])},
    "all": {
        "resets": NEVER.at[jnp.array([3, 5, 0]), jnp.array([1, 2, 3])].set(True),
        "mask": ALWAYS.at[3:5, 1:3].set(False),
        "lengths": jnp.array([6, 6, 5, 0]),
    },
}
# Where a NaN or an infinity is put: into inputs, h_0, reset_state, the cotangents of the outputs or of the last state.
PLACES = [
    ("xs", (2, 1, 0)),
    ("xs", (4, 2, 1)),
    ("h_0", (1, 0)),
    ("h_0", (3, 2)),
    ("reset_state", (1, 1)),
    ("ct", (4, 1, 0)),
    ("ct", (2, 2, 2)),
    ("ct", (3, 3, 1)),
    ("ct_T", (1, 0)),
    ("ct_T", (3, 0)),
]
SHAPES = {
    "xs": (STEPS, BATCH, IN_FEATURES),
    "h_0": (BATCH, FEATURES),
    "reset_state": (BATCH, FEATURES),
    "ct": (STEPS, BATCH, FEATURES),
    "ct_T": (BATCH, FEATURES),
}
CELLS = {"after": gru_jax.CUDNN, "before": gru_jax.CHO2014, "mingru": MinGRU()}
NATIVE = ["native"] * native_is_installed
# Cell, method, whether it runs backwards, whether the gradient keeps preactivations. One row of each method is short.
SHORT = ("after", "fused", False, False), ("before", "native", False, True), ("mingru", "parallel", False, False)
ROWS = [
    *itertools.product(("after", "before"), ("fused", *NATIVE), (False, True), (False, True)),
    *itertools.product(("mingru",), ("parallel",), (False, True), (False,)),
]


def normal(seed):
    """Finite values of all of them."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {n: jax.random.normal(k, shape, jnp.float32) for k, (n, shape) in zip(keys, SHAPES.items(), strict=True)}


@functools.cache
def spoilt():
    """What each problem is called; and the problems, (flags, values, tangents), side by side along a first axis."""
    values, tangents = normal(0), normal(1)
    names, problems = [], []
    for flags in FLAGS:
        for name, index in PLACES:
            for value in (jnp.nan, jnp.inf):
                for spoils in ("value", "tangent"):
                    both = {"value": values, "tangent": tangents}
                    both[spoils] = {**both[spoils], name: both[spoils][name].at[index].set(value)}
                    names.append(f"{flags}: {spoils} of {name}{index} {value}")
                    problems.append((FLAGS[flags], both["value"], both["tangent"]))
    return names, jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)


@functools.cache
def derivatives(cell, method, reverse):
    """Gradient and outputs, and the tangents of both, of every problem, one after another."""
    params = cell.init(jax.random.key(1), IN_FEATURES, FEATURES, bias_init=jax.nn.initializers.constant(0.1))
    fixed = jax.tree.map(jnp.zeros_like, params)

    def of_problem(problem):
        flags, values, tangents = problem

        def loss(params, values):
            args = (params, values["xs"], values["h_0"], values["reset_state"])
            h_T, hs = unroll(cell, *args, **flags, reverse=reverse, method=method)
            return (values["ct"] * hs).sum() + (values["ct_T"] * h_T).sum(), (h_T, hs)

        return jax.jvp(jax.grad(loss, (0, 1), has_aux=True), (params, values), (fixed, tangents))

    return jax.jit(functools.partial(jax.lax.map, of_problem))(spoilt()[1])


@pytest.mark.parametrize(
    ("cell", "method", "reverse", "kept"),
    [pytest.param(*row, marks=() if row in SHORT else pytest.mark.long) for row in ROWS],
)
def test_what_is_finite_by_scan_is_finite_and_the_same(cell, method, reverse, kept, keep):
    keep(kept)
    got, expected = derivatives.__wrapped__(CELLS[cell], method, reverse), derivatives(CELLS[cell], "scan", reverse)
    names = spoilt()[0]
    # An infinite input of a step that counts is no logarithm of anything: a minGRU in parallel has only NaN to stop.
    counts = np.array([not (cell == "mingru" and "of xs" in name and name.endswith("inf")) for name in names])
    partly = np.zeros(len(names), bool)
    for (path, one), other in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        finite = np.isfinite(other)
        partly |= finite.any(tuple(range(1, other.ndim)))
        wrong = finite & ~np.isclose(one, np.where(finite, other, 0), rtol=1e-4, atol=1e-4)
        wrong = wrong.any(tuple(range(1, other.ndim))) & counts
        assert not wrong.any(), (jax.tree_util.keystr(path), [names[i] for i in np.flatnonzero(wrong)])
    assert partly.all()


@pytest.mark.parametrize("method", ["scan", "fused", *NATIVE])
@pytest.mark.parametrize("cell", ["after", "before"])
def test_the_loss_of_an_episode_reaches_no_other(cell, method):
    """A NaN of the last one, and the start of sequences that have no steps."""
    params = CELLS[cell].init(jax.random.key(1), IN_FEATURES, FEATURES)
    values = normal(0)

    @jax.jit
    def gradient(h_0, weight, flags):
        def loss(params, xs, h_0):
            return (weight * unroll(CELLS[cell], params, xs, h_0, None, **flags, method=method)[1]).sum()

        return jax.grad(loss, (0, 1, 2))(params, values["xs"], h_0)

    _, d_xs, d_h_0 = gradient(values["h_0"], values["ct"].at[5, 1].set(jnp.nan), FLAGS["resets"])
    assert jnp.isnan(d_xs[3:, 1]).all()
    assert jnp.isfinite(d_xs.at[3:, 1].set(0)).all()
    assert jnp.isfinite(d_h_0).all()
    nothing = values["h_0"].at[3].set(jnp.nan)
    assert jnp.isfinite(jax.flatten_util.ravel_pytree(gradient(nothing, values["ct"], FLAGS["lengths"]))[0]).all()
