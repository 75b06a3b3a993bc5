"""Random models for the tests of converters, and hypothesis' way of drawing them."""

import numpy as np

import gru_jax
from gru_jax.convert import Model
from gru_jax.layers import Stack

DTYPES = ("float16", "bfloat16", "float32", "float64")


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
