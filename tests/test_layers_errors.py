"""The layers of nnx and of linen, and their cells, name the argument that makes no sense."""

import jax.numpy as jnp
import pytest
from flax import linen

import gru_jax
from gru_jax.cells import LSTM, MinGRU
from tests.flax_layers import call_cell, construct, each_api, flax_cell, gru
from tests.own_cells import OWN
from tests.sequences import BATCH, FEATURES, IN_FEATURES, inputs

CONSTRUCTORS = {
    "features": ({"features": 0}, ValueError, "features must be at least 1, got 0"),
    "num_layers": ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    "num_layers of another type": ({"num_layers": 1.5}, TypeError, "num_layers must be an integer"),
    "dropout": ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
    "recurrent_dropout": ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout must lie in"),
    "recurrent_dropout of another type": (
        {"recurrent_dropout": "0.1"},
        TypeError,
        "recurrent_dropout must be a number",
    ),
    "zoneout": ({"zoneout": {"h": 0.1}}, TypeError, "zoneout must be a number"),
    "bidirectional": ({"bidirectional": 1}, TypeError, "bidirectional must be a bool, got 1"),
    "time_major": ({"time_major": None}, TypeError, "time_major must be a bool"),
    "reset_after": ({"reset_after": 1}, TypeError, "reset_after must be a bool"),
    "use_bias": ({"use_bias": 1}, TypeError, "use_bias must be a bool"),
    "gate_fn": ({"gate_fn": "sigmoid"}, TypeError, "gate_fn must be callable"),
    "activation_fn": ({"activation_fn": None}, TypeError, "activation_fn must be callable"),
    "kernel_init": ({"kernel_init": 0.1}, TypeError, "kernel_init must be callable"),
    "dtype": ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype"),
    "param_dtype": ({"param_dtype": None}, TypeError, "param_dtype must be a floating-point dtype"),
    "method": ({"method": "fast"}, ValueError, "method must be one of 'auto'"),
    "update_bias_init": (
        {"use_bias": False, "update_bias_init": gru_jax.initializers.chrono(9)},
        ValueError,
        "needs use_bias=True",
    ),
}


@each_api
@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructor_names_the_bad_argument(api, case):
    changed, error, match = CONSTRUCTORS[case]
    with pytest.raises(error, match=match):
        construct(api, "GRU", **{"features": FEATURES, **changed})


CALLS = {
    "inputs": ({}, {"inputs": jnp.ones(2)}, ValueError, r"inputs must have shape \(\*batch, time, in_features\), got \(2,\)"),
    "complex inputs": ({}, {"inputs": jnp.ones((3, 5, 2), complex)}, TypeError, "inputs must be real"),
    "inputs of another type": ({}, {"inputs": "text"}, TypeError, "inputs must be an array"),
    "initial_carry": ({}, {"initial_carry": jnp.ones((3, 5))}, ValueError, r"initial_carry must .* = \(3, 4\), got shape \(3, 5\)"),
    "stacked carry": ({"num_layers": 2}, {"initial_carry": jnp.ones((3, 3, 4))}, ValueError, r"initial_carry must have shape \(layers·directions, \*batch, features\) = \(2, 3, 4\), got \(3, 3, 4\)"),
    "single carry": ({"num_layers": 2}, {"initial_carry": jnp.ones((3, 4))}, ValueError, r"initial_carry must be a tuple of 2 states, .* = \(2, 3, 4\), got \(3, 4\)"),
    "carry of one": ({"bidirectional": True}, {"initial_carry": (jnp.ones((3, 4)),)}, ValueError, "initial_carry must have 2 states"),
    "second carry": ({"bidirectional": True}, {"initial_carry": (jnp.ones((3, 4)), jnp.ones(5))}, ValueError, r"initial_carry\[1\] must broadcast to \(\*batch, features\) = \(3, 4\), got shape \(5,\)"),
    "seq_lengths dtype": ({}, {"seq_lengths": jnp.ones(3)}, TypeError, "seq_lengths must have an integer dtype"),
    "seq_lengths shape": ({}, {"seq_lengths": jnp.array([1, 2])}, ValueError, r"seq_lengths must have shape \(\*batch,\) = \(3,\)"),
    "seq_lengths": ({}, {"seq_lengths": jnp.array([1, 2, 6])}, ValueError, r"seq_lengths must lie in \[0, T\] = \[0, 5\]"),
    "mask dtype": ({}, {"mask": jnp.ones((3, 5), complex)}, TypeError, "mask must be bool, integer or floating point"),
    "mask": ({}, {"mask": jnp.ones((5, 3), bool)}, ValueError, r"mask must have shape \(\*batch, time\) = \(3, 5\)"),
    "resets": ({}, {"resets": jnp.ones(5, bool)}, ValueError, r"resets must have shape \(\*batch, time\) = \(3, 5\)"),
    "resets of time first": ({"time_major": True}, {"inputs": jnp.ones((5, 3, 2)), "resets": jnp.ones((3, 5), bool)}, ValueError, r"resets must have shape \(time, \*batch\) = \(5, 3\)"),
    "reset_state": ({}, {"resets": jnp.ones((3, 5)), "reset_state": jnp.ones(9)}, ValueError, r"reset_state must broadcast to .* = \(3, 4\), got shape \(9,\)"),
}  # fmt: skip


@each_api
@pytest.mark.parametrize("case", CALLS)
def test_call_names_the_bad_argument(api, case):
    options, call, error, match = CALLS[case]
    given = {"x": inputs(), **call}
    given["x"] = given.pop("inputs", given["x"])
    layer = gru(api, **options)
    with pytest.raises(error, match=match):
        layer(**given)


@each_api
def test_cell_names_the_bad_argument(api):
    cell, variables = flax_cell(api)
    x = jnp.zeros((BATCH, IN_FEATURES))
    for carry, match in [
        (jnp.zeros((2, FEATURES)), r"carry must have shape .* for inputs \(3, 2\), got \(2, 4\)"),
        (0.0, r"carry must have shape \(\*batch, features\), got \(\)"),
    ]:
        with pytest.raises(ValueError, match=match):
            call_cell(cell, variables, carry, x)
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        cell.initialize_carry(*([3] if api == "nnx" else [None, 3]))
    with pytest.raises(TypeError, match="carry_init must be callable"):
        flax_cell(api, carry_init=0)


REFUSED = {
    "cell": ({"cell": linen.GRUCell(4)}, TypeError, r"cell must be .*, got GRUCell"),
    "class": ({"cell": LSTM}, TypeError, r"cell must be .*, got \w+"),
    "recurrent_dropout": (
        {"cell": OWN["heads"], "recurrent_dropout": 0.1},
        ValueError,
        r"recurrent_dropout must be 0 for Heads, whose step takes no recurrent_dropout_mask, got 0.1",
    ),
    "zoneout": ({"zoneout": 1.5}, ValueError, r"zoneout must lie in \[0, 1\), got 1.5"),
    "zoneout of a part": (
        {"zoneout": gru_jax.cells.LSTMState(0.1, "0.1")},
        TypeError,
        r"zoneout\.c must be a number in \[0, 1\), got '0.1'",
    ),
    "method": ({"method": "native"}, ValueError, r"method must be one of 'auto', .*, got 'native'"),
    "method of a cell": ({"cell": MinGRU(), "method": "fast"}, ValueError, r"method must be one of .*'parallel'"),
    "features": ({"features": 0}, ValueError, r"features must be at least 1, got 0"),
    "init_options": ({"init_options": [1]}, TypeError, r"init_options must be a dict of keywords for cell.init"),
    "carry_init": ({"carry_init": "zeros"}, TypeError, r"carry_init must be callable, got 'zeros'"),
    "param_dtype": ({"param_dtype": jnp.int32}, TypeError, r"param_dtype must be a floating-point dtype"),
    "option": ({"colour": "red"}, TypeError, r"unexpected keyword argument 'colour'"),
}


@each_api
@pytest.mark.parametrize("case", REFUSED)
def test_constructor_of_any_layer_names_the_bad_argument(api, case):
    changed, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        construct(api, "RNN", **{"cell": LSTM(), "features": FEATURES, **changed})
