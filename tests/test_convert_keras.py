"""Weights from and to Keras: outputs, final states and gradients, and what its configuration must say."""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import convert
from tests.models import assert_identical, check_same, close, in_precision_of_test, inputs, model

CELLS = pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])
PRECISIONS = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.fixture(autouse=True)
def precision(request, float64):
    yield from in_precision_of_test(request)


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    module = pytest.importorskip("keras")
    module.saving.register_keras_serializable("tests")(exact_tanh)
    return module


def exact_tanh(x):
    """Keras' own is of single precision on its JAX backend, even in float64."""
    return jnp.tanh(x)


def keras_layers(keras, m, dtype):
    """Layers with the weights of a model."""
    stack = m.stack
    activation = exact_tanh if dtype == "float64" else "tanh"
    options = dict(
        dtype=dtype,
        reset_after=stack.cell.reset_after,
        use_bias=m.use_bias,
        return_sequences=True,
        return_state=True,
        recurrent_initializer="glorot_uniform",
    )
    weights = convert.to_keras(m)
    layers = []
    for i, width in enumerate(stack.widths(m.params[0].in_features)[:: stack.directions]):
        layer = keras.layers.GRU(stack.features, activation, **options)
        if stack.bidirectional:
            backward = keras.layers.GRU(stack.features, activation, go_backwards=True, **options)
            layer = keras.layers.Bidirectional(layer, backward_layer=backward, dtype=dtype)
        layer.build((None, None, width))
        layer.set_weights(weights[i] if stack.num_layers > 1 else weights)
        layers.append(layer)
    return layers


@PRECISIONS
@CELLS
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=4)
def test_keras(keras, dtype, cell, in_features, features, num_layers, bidirectional, use_bias, seed):
    m = model(
        cell,
        in_features,
        features,
        dtype=dtype,
        use_bias=use_bias,
        num_layers=num_layers,
        bidirectional=bidirectional,
        seed=seed,
    )
    layers = keras_layers(keras, m, dtype)

    def theirs(xs):
        for layer in layers:
            xs, *states = layer(xs)
        return xs, states

    check_same(m, theirs, dtype)
    weights, configs = [layer.get_weights() for layer in layers], [layer.get_config() for layer in layers]
    assert_identical(convert.from_keras(weights, reset_after=cell.reset_after), m)
    if num_layers == 1:
        assert_identical(convert.from_keras(*weights, reset_after=cell.reset_after), m)
    if dtype == "float32":
        assert_identical(convert.from_keras(weights, configs), m)


@PRECISIONS
@CELLS
def test_gradients_are_those_of_keras(keras, dtype, cell):
    """With respect to the weights and the inputs; a gradient converts as weights do."""
    m = model(cell, dtype=dtype)
    (layer,) = keras_layers(keras, m, dtype)
    state = [variable.value for variable in layer.non_trainable_variables]
    xs = jnp.asarray(inputs(3, dtype=dtype))

    def their_loss(weights, xs):
        (outputs, last), _ = layer.stateless_call(weights, state, xs)
        return jnp.sin(outputs).sum() + (last**3).sum()

    def our_loss(m, xs):
        last, outputs = m(xs)
        return jnp.sin(outputs).sum() + (last**3).sum()

    theirs, their_d_xs = jax.jit(jax.grad(their_loss, (0, 1)))(convert.to_keras(m), xs)
    ours, d_xs = jax.jit(jax.grad(our_loss, (0, 1)))(m, xs)
    (theirs,), (ours,) = convert.from_keras(theirs).params, ours.params
    # Both of Keras' biases of r and z move by the gradient of ours, which is their sum.
    scale = np.where(np.arange(12) < 8, 2.0 if cell.reset_after else 1.0, 1.0)
    tolerance = 2e-5 if dtype == "float32" else 1e-12
    for got, expected in zip(
        jax.tree.leaves((d_xs, ours._replace(bias=scale * ours.bias))),
        jax.tree.leaves((their_d_xs, theirs)),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def test_a_cell_in_the_rnn_of_keras(keras):
    m = model()
    layer = keras.layers.RNN(keras.layers.GRUCell(4), return_sequences=True)
    layer.build((None, None, 3))
    layer.set_weights(convert.to_keras(m))
    close(layer(inputs()), m(inputs())[1], "float32")
    assert_identical(convert.from_keras(layer.get_weights(), layer.get_config()), m)


def test_two_biases_of_keras_become_one():
    weights = convert.to_keras(model())
    second = np.random.default_rng(0).normal(size=12)
    first = weights[2][0]
    got = convert.from_keras([*weights[:2], np.stack([first, second.astype(np.float32)])]).params[0]
    z_r_n = first + np.where(np.arange(12) < 8, second.astype(np.float32), 0)
    np.testing.assert_array_equal(got.bias, np.concatenate([z_r_n[4:8], z_r_n[:4], z_r_n[8:]]))
    np.testing.assert_array_equal(got.recurrent_bias, second[8:].astype(np.float32))


# --- What a configuration says ----------------------------------------------------------------------------------------

CARRIED = (
    *("celu", "elu", "exponential", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "linear", "log_sigmoid"),
    *("mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "sparse_plus", "sparse_sigmoid"),
    *("squareplus", "swish", "tanh"),
)
NOT_CARRIED = (
    *("glu", "log_softmax", "softmax", "sparsemax"),  # not elementwise
    *("gelu", "leaky_relu"),  # with other constants than JAX's
    *("hard_shrink", "soft_shrink", "tanh_shrink", "threshold"),  # not in JAX
)


def test_the_table_of_activations_is_complete(keras):
    assert sorted(CARRIED + NOT_CARRIED) == sorted(keras.src.activations.ALL_OBJECTS_DICT)


@pytest.mark.parametrize("name", CARRIED)
def test_activations_are_those_of_keras(keras, name):
    """At every option; of two steps, unrolled, so that nothing is compiled anew for each."""
    weights, xs = convert.to_keras(model(dtype="float32")), inputs(time=2)
    for option in ("activation", "recurrent_activation"):
        layer = keras.layers.GRU(4, **{option: name}, unroll=True)
        layer.build((None, 2, 3))
        layer.set_weights(weights)
        m = convert.from_keras(weights, layer.get_config())
        h_t = jnp.zeros((4, 4), jnp.float32)
        for t in range(2):
            h_t = m.stack.cell.step(m.params[0], h_t, xs[:, t])
        np.testing.assert_allclose(h_t, layer(xs), rtol=2e-6, atol=2e-6)
        assert_identical(convert.from_keras(convert.to_keras(m, layer.get_config()), layer.get_config()), m)
        if name not in ("tanh", "sigmoid"):
            with pytest.raises(ValueError, match=r"cell must be gru_jax\.CUDNN or"):
                convert.to_keras(m)


@pytest.mark.parametrize("name", NOT_CARRIED)
@pytest.mark.parametrize(("option", "instead"), [("activation", "activation_fn"), ("recurrent_activation", "gate_fn")])
def test_activations_that_jax_has_not_are_refused(name, option, instead):
    with pytest.raises(ValueError, match=rf"config\['{option}'\] must be one of .*, got '{name}'; .* as {instead}"):
        convert.from_keras(WEIGHTS, {option: name})


def test_an_activation_that_is_refused_is_given_to_the_layer(keras):
    layer = keras.layers.GRU(4, activation="leaky_relu", return_sequences=True)
    layer.build((None, None, 3))
    m = convert.from_keras(layer.get_weights(), layer.get_config() | {"activation": "tanh"})
    ours = gru_jax.nnx.GRU.from_model(m, activation_fn=functools.partial(jax.nn.leaky_relu, negative_slope=0.2))
    close(ours(inputs()), layer(inputs()), "float32")


MASK = jnp.arange(5) < jnp.array([5, 3, 1, 4])[:, None]
OPTIONS = {
    "whole sequences": [{"return_sequences": True}],
    "last output": [{"return_sequences": False}],
    "state": [{"return_state": True}],
    "unroll": [{"unroll": True}],
    "dropout": [{"dropout": 0.5, "recurrent_dropout": 0.5}],
    "masked outputs": [{"return_sequences": True, "zero_output_for_mask": True}],
    "masked outputs of another value": [{"return_sequences": True, "zero_output_for_mask": False}],
    "backwards": [{"go_backwards": True}],
    "first layer backwards": [{"go_backwards": True, "return_sequences": True}, {"return_sequences": False}],
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_carry(keras, case):
    options = OPTIONS[case]
    layers = [keras.layers.GRU(4, **given) for given in options]
    mask = MASK if "masked" in case or case == "backwards" else None
    ys = inputs()
    for layer in layers:
        ys = layer(ys, mask=mask, training=False)
    weights, configs = [layer.get_weights() for layer in layers], [layer.get_config() for layer in layers]
    m = convert.from_keras(weights, configs)
    carry, outputs = m(inputs(), mask=mask)
    if "return_state" in options[0]:
        ys, state = ys
        close(carry, state, "float32")
    if options[-1].get("return_sequences"):
        close(outputs, ys if mask is None else np.where(MASK[..., None], ys, 0), "float32")
    else:
        close(carry[-1] if len(layers) > 1 else carry, ys, "float32")
    assert m.stack.reverse == ("backwards" in case)
    if len(layers) == 1:
        assert_identical(convert.from_keras(convert.to_keras(m, configs[0]), configs[0]), m)


def test_the_outputs_of_a_layer_that_goes_backwards(keras):
    """Keras returns the last step first; what is refused says how they are had."""
    layer = keras.layers.GRU(4, go_backwards=True, return_sequences=True)
    layer.build((None, None, 3))
    m = convert.from_keras(layer.get_weights(), layer.get_config() | {"return_sequences": False})
    close(jnp.flip(m(inputs())[1], -2), layer(inputs()), "float32")


def test_time_major_of_keras_2():
    m = convert.from_keras(WEIGHTS, {"time_major": True, "implementation": 2, "recurrent_activation": "sigmoid"})
    assert m.stack == dataclasses.replace(model().stack, time_major=True)


def test_a_configuration_of_a_layer_with_its_class(keras):
    layer = keras.layers.GRU(4, activation="relu")
    layer.build((None, None, 3))
    m = convert.from_keras(layer.get_weights(), keras.layers.serialize(layer))
    assert m.stack.cell == gru_jax.GRU(candidate=jax.nn.relu)


def test_a_layer_that_is_another_is_not_given_weights():
    for options, config, message in [
        ({}, {"activation": "relu"}, r"model\.stack\.cell must be what config says"),
        ({"cell": gru_jax.GRU(candidate=jax.nn.relu)}, {}, r"model\.stack\.cell must be what config says"),
        ({"reverse": True}, {}, r"model\.stack\.reverse must be what config says, False, got True"),
        ({}, {"units": 5}, r"config\['units'\] must be 4, got 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert.to_keras(model(**options), config)


WEIGHTS = convert.to_keras(model())
BOTH = {"merge_mode": "concat", "layer": {"config": {}}, "backward_layer": {"config": {"go_backwards": True}}}
BAD = {
    "number": (([*WEIGHTS, *WEIGHTS, *WEIGHTS],), "weights must be kernel, .* got 9 arrays"),
    "none": (([],), "weights must be kernel, .* got 0 arrays"),
    "shape": (
        ([WEIGHTS[0][:, :5], *WEIGHTS[1:]],),
        r"weights\.kernel must have shape \(in_features, 3·features\) = \(3, 12\), got \(3, 5\)",
    ),
    "shape of a layer": (([WEIGHTS, WEIGHTS],), r"weights\[1\]\.kernel must have shape .* = \(4, 12\), got \(3, 12\)"),
    "backward": (
        ([*WEIGHTS, *WEIGHTS[:2], WEIGHTS[2][:, :5]],),
        r"weights\[backward\]\.bias\[0\] must have shape \(3·features,\) = \(12,\), got \(5,\)",
    ),
    "bias": (([*WEIGHTS[:2], np.ones((3, 12))],), r"nothing but what .* got \['weights\.bias\[2\]'\] too"),
    "activation": ((WEIGHTS, {"activation": {"class_name": "LeakyReLU"}}), r"config\['activation'\] must be one of"),
    "gate": (
        (WEIGHTS, {"recurrent_activation": "hard_sigmoid", "time_major": False}),
        r"config\['recurrent_activation'\] must not be 'hard_sigmoid' in Keras 2",
    ),
    "activations of two layers": (
        ([WEIGHTS, [WEIGHTS[1], *WEIGHTS[1:]]], [{"activation": "relu"}, {"activation": "elu"}]),
        r"config\['activation'\] must be 'relu', got 'elu'",
    ),
    "backwards": (
        (WEIGHTS, {"go_backwards": True, "return_sequences": True}),
        r"\['return_sequences'\] must be False with go_backwards=True, got True: Keras returns the last step",
    ),
    "backwards above": (
        ([WEIGHTS, [WEIGHTS[1], *WEIGHTS[1:]]], [{}, {"go_backwards": True}]),
        r"config\['go_backwards'\] must be False, got True",
    ),
    "last output to another layer": (
        ([WEIGHTS, [WEIGHTS[1], *WEIGHTS[1:]]], [{"return_sequences": False}, {}]),
        r"config\[0\]\['return_sequences'\] must be True below another layer, got False",
    ),
    "stateful": ((WEIGHTS, {"stateful": True}), r"config\['stateful'\] must be False, got True.*initial_carry"),
    "sum": (([*WEIGHTS, *WEIGHTS], BOTH | {"merge_mode": "sum"}), r"\['merge_mode'\] must be 'concat', got 'sum'"),
    "mul": (([*WEIGHTS, *WEIGHTS], BOTH | {"merge_mode": "mul"}), r"\['merge_mode'\] must be 'concat', got 'mul'"),
    "ave": (([*WEIGHTS, *WEIGHTS], BOTH | {"merge_mode": "ave"}), r"\['merge_mode'\] must be 'concat', got 'ave'"),
    "no merge": (([*WEIGHTS, *WEIGHTS], BOTH | {"merge_mode": None}), r"\['merge_mode'\] must be 'concat', got None"),
    "backward activation": (
        ([*WEIGHTS, *WEIGHTS], BOTH | {"backward_layer": {"config": {"activation": "relu"}}}),
        r"config\['activation'\] must be 'tanh', got 'relu'",
    ),
    "cell": ((WEIGHTS, {"cell": {"config": {"activation": "softmax"}}}), "must be one of .*, got 'softmax'"),
    "LSTM": (([np.ones((3, 16)), np.ones((4, 16)), np.ones(16)],), r"weights\.recurrent_kernel .* is of an LSTM"),
    "SimpleRNN": (([np.ones((3, 4)), np.ones((4, 4)), np.ones(4)],), "is of a simple recurrent network"),
    "directions": (([*WEIGHTS, *WEIGHTS], {"units": 4}), "config must be of a layer with 2 directions"),
    "units": ((WEIGHTS, {"units": 5}), r"config\['units'\] must be 4, got 5"),
    "use_bias": ((WEIGHTS, {"use_bias": False}), r"config\['use_bias'\] must be True, got False"),
    "reset": ((WEIGHTS, {"reset_after": False}), r"config\['reset_after'\] must be True, got False"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_refused(case):
    given, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        convert.from_keras(*given)


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match=r"weights must be a list, as layer\.get_weights\(\) is, got ndarray"):
        convert.from_keras(WEIGHTS[0])
    for weights, config in [(WEIGHTS, [{}]), ([WEIGHTS], [{}, {}]), ([WEIGHTS, WEIGHTS], {})]:
        with pytest.raises(TypeError, match="config must be a mapping, or of a stack a list of"):
            convert.from_keras(weights, config)
