"""The native kernels in float32 and the plain scan in float64, which they are held against."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from tests.cases import ORACLE, native_is_installed, unroll

CELLS = {"after": gru_jax.CUDNN, "before": gru_jax.CHO2014}
EVERY_CELL = CELLS | {
    "goodfellow": gru_jax.GOODFELLOW,
    "after_sigmoid": gru_jax.GRU(reset_after=True, candidate=jax.nn.sigmoid),
}
ACCURACY = 2e-6  # of float32, relative to the largest entry
native = pytest.mark.skipif(not native_is_installed, reason="the native kernels are not installed")
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def rows(*short, long=()):
    """Rows of a table, as (name of the cell, ...) or numbers; those of `long` take the marker."""
    return [
        *short,
        *(pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.long) for row in long),
    ]


def check(got, want, accuracy=ACCURACY):
    """Every array within `accuracy` of its exact value, relative to its largest entry."""
    for x, exact in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        exact = np.asarray(exact, np.float64)
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(x, np.float64), exact, rtol=0, atol=accuracy * abs(exact).max(initial=0))


def single(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32) if getattr(x, "dtype", None) == jnp.float64 else x, tree)


def by_scan(function, *args):
    """`function("scan")(*args)` in float64, of the arguments rounded to float32."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, single(args))
    return jax.jit(function("scan"), compiler_options=ORACLE)(*rounded)


def by_kernels(function, *args):
    """`function(*args)`, compiled, with kernels in it."""
    compiled = jax.jit(function).lower(*args).compile()
    assert "gru_jax_" in compiled.as_text()
    return compiled(*args)


def native_and_exact(function, *args):
    """`function(method)(*args)` with the native kernels, and in float64 with the scan."""
    return by_kernels(function("native"), *single(args)), by_scan(function, *args)


def run(method="auto", cell=gru_jax.CUDNN):
    return lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1].sum()


def random_problem(seed, most=(150, 70, 80, 80)):
    """Sizes, options and values at random: odd widths, one row, one step, many rows and steps; both candidates."""
    rng = np.random.default_rng(seed)
    steps, batch, in_features, features = (int(rng.integers(1, n)) for n in most)
    cell = gru_jax.GRU(reset_after=bool(rng.integers(2)), candidate=(jnp.tanh, jax.nn.sigmoid)[seed // 2 % 2])

    def normal(*shape, fan_in=1):
        return jnp.asarray(rng.standard_normal(shape) / fan_in**0.5, jnp.float32)

    use_bias = rng.random() < 0.8
    params = gru_jax.Params(
        normal(in_features, 3 * features, fan_in=in_features),
        normal(features, 3 * features, fan_in=features),
        normal(3 * features) if use_bias else None,
        normal(features) if use_bias and cell.reset_after else None,
    )
    options = {
        "mask": jnp.asarray(rng.random((steps, batch)) < 0.8),
        "lengths": jnp.asarray(rng.integers(0, steps + 1, batch)),
        "resets": jnp.asarray(rng.random((steps, batch)) < 0.1),
        "recurrent_dropout_mask": jnp.asarray((rng.random((batch, features)) < 0.7) / 0.7, jnp.float32),
    }
    given = {name: value for name, value in options.items() if rng.random() < 0.5}
    ct = normal(steps, batch, features), normal(batch, features)
    args = params, normal(steps, batch, in_features), normal(batch, features)
    args += (normal(batch, features) if rng.random() < 0.5 else None,)
    return cell, args, given, bool(rng.integers(2)), ct


def value_and_gradient(cell, reverse):
    """Of a random problem, by method."""

    def function(method):
        def both(args, options, ct):
            run = lambda *a: unroll(cell, *a, **options, reverse=reverse, method=method)  # noqa: E731
            outputs, pull = jax.vjp(run, *args)
            return outputs, pull(ct[::-1])

        return both

    return function
