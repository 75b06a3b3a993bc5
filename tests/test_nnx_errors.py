"""The nnx modules name the argument that makes no sense, where linen has no such argument."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from gru_jax.nnx import GRU
from tests.nnx_layers import make, make_cell
from tests.sequences import BATCH, FEATURES, IN_FEATURES, inputs


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"in_features": 2.0}, TypeError, "in_features must be an integer"),
        ({"rngs": jax.random.key(0)}, TypeError, "rngs must be a flax.nnx.Rngs"),
        ({"rngs": nnx.Rngs(dropout=0)}, ValueError, "rngs must have a stream 'params'"),
        ({"rngs": nnx.Rngs(params=0), "recurrent_dropout": 0.5}, ValueError, "rngs must have a stream 'dropout'"),
        ({"rngs": nnx.Rngs(params=0), "zoneout": 0.5}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_constructor(options, error, match):
    with pytest.raises(error, match=match):
        GRU(**{"in_features": IN_FEATURES, "features": FEATURES, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        ({"inputs": jnp.ones((3, 5, 7))}, ValueError, r"inputs must have .* = \(3, 5, 2\), got \(3, 5, 7\)"),
        ({"rngs": 0}, TypeError, "rngs must be a flax.nnx.Rngs, an RngStream or a PRNG key"),
        ({"rngs": nnx.Rngs(params=0)}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_call(call, error, match):
    with pytest.raises(error, match=match):
        make(recurrent_dropout=0.5)(**{"inputs": inputs(), **call})


def test_cell():
    cell, carry, x = make_cell(), jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, IN_FEATURES))
    with pytest.raises(ValueError, match=r"carry must have shape \(\*batch, features\) = \(3, 4\), got \(3, 2\)"):
        cell(x, x)
    with pytest.raises(ValueError, match=r"inputs must have shape \(\*batch, in_features\) = \(3, 2\), got \(3, 4\)"):
        cell(carry, carry)
    match = r"input_shape must be \(\*batch, in_features\) with in_features = 2, got \(3,\)"
    with pytest.raises(ValueError, match=match):
        cell.initialize_carry((3,))
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        make().initialize_carry(3)
