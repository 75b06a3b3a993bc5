"""The nnx modules name the argument that makes no sense."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gru_jax
from gru_jax.nnx import GRU
from tests.nnx_layers import make, make_cell
from tests.sequences import BATCH, FEATURES, IN_FEATURES, inputs


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"in_features": 2.0}, TypeError, "in_features must be an integer"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout must lie in"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be a bool, got 1"),
        ({"time_major": None}, TypeError, "time_major must be a bool"),
        ({"reset_after": 1}, TypeError, "reset_after must be a bool"),
        ({"use_bias": 1}, TypeError, "use_bias must be a bool"),
        ({"gate_fn": "sigmoid"}, TypeError, "gate_fn must be callable"),
        ({"activation_fn": None}, TypeError, "activation_fn must be callable"),
        ({"kernel_init": 0.1}, TypeError, "kernel_init must be callable"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype"),
        ({"param_dtype": None}, TypeError, "param_dtype must be a floating-point dtype"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto'"),
        ({"use_bias": False, "update_bias_init": gru_jax.initializers.chrono(9)}, ValueError, "needs use_bias=True"),
        ({"rngs": jax.random.key(0)}, TypeError, "rngs must be a flax.nnx.Rngs"),
        ({"rngs": nnx.Rngs(dropout=0)}, ValueError, "rngs must have a stream 'params'"),
        ({"rngs": nnx.Rngs(params=0), "recurrent_dropout": 0.5}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_constructor_names_the_bad_argument(options, error, match):
    with pytest.raises(error, match=match):
        GRU(**{"in_features": IN_FEATURES, "features": FEATURES, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("options", "call", "error", "match"),
    [
        ({}, {"inputs": jnp.ones(2)}, ValueError, r"inputs must have shape \(\*batch, time, in_features\), got \(2,\)"),
        ({}, {"inputs": jnp.ones((3, 5, 7))}, ValueError, r"inputs must have .* = \(3, 5, 2\), got \(3, 5, 7\)"),
        ({}, {"inputs": jnp.ones((3, 5, 2), complex)}, TypeError, "inputs must be real"),
        ({}, {"inputs": "text"}, TypeError, "inputs must be an array"),
        ({}, {"initial_carry": jnp.ones((3, 5))}, ValueError, r"initial_carry must .* = \(3, 4\), got shape \(3, 5\)"),
        (
            {"num_layers": 2},
            {"initial_carry": jnp.ones((3, 3, 4))},
            ValueError,
            r"initial_carry must have shape \(layers·directions, \*batch, features\) = \(2, 3, 4\), got \(3, 3, 4\)",
        ),
        (
            {"num_layers": 2},
            {"initial_carry": jnp.ones((3, 4))},
            ValueError,
            r"initial_carry must be a tuple of 2 states, .* = \(2, 3, 4\), got \(3, 4\)",
        ),
        (
            {"bidirectional": True},
            {"initial_carry": (jnp.ones((3, 4)),)},
            ValueError,
            "initial_carry must have 2 states",
        ),
        (
            {"bidirectional": True},
            {"initial_carry": (jnp.ones((3, 4)), jnp.ones(5))},
            ValueError,
            r"initial_carry\[1\] must broadcast to \(\*batch, features\) = \(3, 4\), got shape \(5,\)",
        ),
        ({}, {"seq_lengths": jnp.ones(3)}, TypeError, "seq_lengths must have an integer dtype"),
        ({}, {"seq_lengths": jnp.array([1, 2])}, ValueError, r"seq_lengths must have shape \(\*batch,\) = \(3,\)"),
        ({}, {"seq_lengths": jnp.array([1, 2, 6])}, ValueError, r"seq_lengths must lie in \[0, T\] = \[0, 5\]"),
        ({}, {"mask": jnp.ones((3, 5), complex)}, TypeError, "mask must be bool, integer or floating point"),
        ({}, {"mask": jnp.ones((5, 3), bool)}, ValueError, r"mask must have shape \(\*batch, time\) = \(3, 5\)"),
        ({}, {"resets": jnp.ones(5, bool)}, ValueError, r"resets must have shape \(\*batch, time\) = \(3, 5\)"),
        (
            {"time_major": True},
            {"inputs": jnp.ones((5, 3, 2)), "resets": jnp.ones((3, 5), bool)},
            ValueError,
            r"resets must have shape \(time, \*batch\) = \(5, 3\)",
        ),
        (
            {"recurrent_dropout": 0.5},
            {"rngs": 0},
            TypeError,
            "rngs must be a flax.nnx.Rngs, an RngStream or a PRNG key",
        ),
        ({"recurrent_dropout": 0.5}, {"rngs": nnx.Rngs(params=0)}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_call_names_the_bad_argument(options, call, error, match):
    with pytest.raises(error, match=match):
        make(**options)(**{"inputs": inputs(), **call})


def test_cell_names_the_bad_argument():
    cell, carry, x = make_cell(), jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, IN_FEATURES))
    with pytest.raises(ValueError, match=r"carry must have shape \(\*batch, features\) = \(3, 4\), got \(3, 2\)"):
        cell(x, x)
    with pytest.raises(ValueError, match=r"inputs must have shape \(\*batch, in_features\) = \(3, 2\), got \(3, 4\)"):
        cell(carry, carry)
    with pytest.raises(
        ValueError, match=r"input_shape must be \(\*batch, in_features\) with in_features = 2, got \(3,\)"
    ):
        cell.initialize_carry((3,))
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        make().initialize_carry(3)
    with pytest.raises(TypeError, match="carry_init must be callable"):
        make_cell(carry_init=0)
