"""Random models for the tests of converters, and hypothesis' way of drawing them."""

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax
from gru_jax.convert import Model
from gru_jax.layers import Stack

DTYPES = ("float16", "bfloat16", "float32", "float64")
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def model(cell=gru_jax.CUDNN, in_features=3, features=4, *, dtype="float32", use_bias=True, seed=0, **options) -> Model:
    """A model whose every parameter is random, in NumPy arrays of the dtype; options as those of `Stack`."""
    stack = Stack(cell, features, **options)
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(scale=0.5, size=shape).astype(np.dtype(dtype))

    def params(width):
        return gru_jax.Params(
            normal(width, 3 * features),
            normal(features, 3 * features),
            normal(3 * features) if use_bias else None,
            normal(features) if use_bias and cell.reset_after else None,
        )

    return Model(tuple(params(width) for width in stack.widths(in_features)), stack)


def without_recurrent_bias(m: Model) -> Model:
    """As that of a framework whose cell has none."""
    params = tuple(p._replace(recurrent_bias=np.zeros_like(p.recurrent_bias)) for p in m.params)
    return Model(params, m.stack)


def inputs(in_features=3, *, batch=4, time=5, dtype="float32", seed=1, time_major=False):
    """(batch, time, in_features), or time first."""
    xs = np.random.default_rng(seed).normal(size=(batch, time, in_features)).astype(np.dtype(dtype))
    return xs.swapaxes(0, 1) if time_major else xs


def assert_identical(ours: Model, theirs: Model):
    """Same stack, same parameters, bit for bit and in the same dtype."""
    assert ours.stack == theirs.stack
    assert len(ours.params) == len(theirs.params)
    for one, other in zip(ours.params, theirs.params, strict=True):
        for field, value, expected in zip(one._fields, one, other, strict=True):
            if expected is None:
                assert value is None, field
                continue
            value, expected = np.asarray(value), np.asarray(expected)
            assert value.dtype == expected.dtype, field
            assert value.shape == expected.shape, field
            assert value.tobytes() == expected.tobytes(), field


def in_precision_of_test(request):
    """Without float64 where the test is of float32: frameworks are not made for both at once."""
    parameters = getattr(request.node, "callspec", None)
    wanted = parameters.params.get("dtype", "float64") if parameters else "float64"
    jax.config.update("jax_enable_x64", wanted == "float64")
    yield
    jax.config.update("jax_enable_x64", True)


def close(ours, theirs, dtype):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=TOLERANCE[dtype])


def check_same(m, theirs, dtype, time_major=False):
    """`theirs(xs)` returns outputs and the final state of each direction of the last layer."""
    xs = inputs(m.params[0].in_features, dtype=dtype)
    carry, outputs = jax.jit(lambda m, xs: m(xs))(m, xs)
    their_outputs, their_carry = theirs(jnp.asarray(xs.swapaxes(0, 1) if time_major else xs))
    close(outputs, their_outputs.swapaxes(0, 1) if time_major else their_outputs, dtype)
    last = carry[-m.stack.directions :] if isinstance(carry, tuple) else (carry,)
    for state, their_state in zip(last, their_carry, strict=True):
        close(state, their_state, dtype)
