"""The linen modules name the argument that makes no sense."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import gru_jax
from gru_jax.linen import GRU, RNN, GRUCell
from tests.sequences import BATCH, FEATURES, IN_FEATURES, inputs

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"num_layers": 1.5}, TypeError, "num_layers must be an integer"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": "0.1"}, TypeError, "recurrent_dropout must be a number"),
        ({"bidirectional": "yes"}, TypeError, "bidirectional must be a bool"),
        ({"gate_fn": "sigmoid"}, TypeError, "gate_fn must be callable"),
        ({"kernel_init": None}, TypeError, "kernel_init must be callable"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto'"),
        ({"use_bias": False, "update_bias_init": gru_jax.initializers.chrono(9)}, ValueError, "needs use_bias=True"),
    ],
)
def test_constructor_names_the_bad_argument(options, error, match):
    with pytest.raises(error, match=match):
        GRU(**{"features": FEATURES, **options})


@pytest.mark.parametrize(
    ("options", "call", "error", "match"),
    [
        ({}, {"inputs": jnp.ones(2)}, ValueError, r"inputs must have shape \(\*batch, time, in_features\), got \(2,\)"),
        ({}, {"inputs": jnp.ones((3, 5, 2), complex)}, TypeError, "inputs must be real"),
        ({}, {"initial_carry": jnp.ones((3, 5))}, ValueError, r"initial_carry must .* = \(3, 4\), got shape \(3, 5\)"),
        (
            {"bidirectional": True},
            {"initial_carry": (jnp.ones((3, 4)),)},
            ValueError,
            "initial_carry must have 2 states",
        ),
        ({}, {"seq_lengths": jnp.array([1, 2, 6])}, ValueError, r"seq_lengths must lie in \[0, T\] = \[0, 5\]"),
        ({}, {"mask": jnp.ones((3, 5), complex)}, TypeError, "mask must be bool, integer or floating point"),
        ({}, {"resets": jnp.ones(5, bool)}, ValueError, r"resets must have shape \(\*batch, time\) = \(3, 5\)"),
    ],
)
def test_call_names_the_bad_argument(options, call, error, match):
    with pytest.raises(error, match=match):
        GRU(**{"features": FEATURES, **options}).init(KEY, **{"inputs": inputs(), **call})


def test_cell_names_the_bad_argument():
    x = jnp.zeros((BATCH, IN_FEATURES))
    with pytest.raises(ValueError, match=r"carry must have shape .* for inputs \(3, 2\), got \(2, 4\)"):
        GRUCell(FEATURES).init(KEY, jnp.zeros((2, FEATURES)), x)
    with pytest.raises(ValueError, match=r"carry must have shape \(\*batch, features\), got \(\)"):
        GRUCell(FEATURES).init(KEY, 0.0, x)
    with pytest.raises(TypeError, match=r"cell must be a gru_jax\.linen\.GRUCell, got GRUCell"):
        RNN(nn.GRUCell(FEATURES))
    with pytest.raises(TypeError, match="carry_init must be callable"):
        GRUCell(FEATURES, carry_init=0)
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        GRUCell(FEATURES).initialize_carry(None, 3)
