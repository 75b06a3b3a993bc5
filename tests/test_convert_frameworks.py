"""Weights from and to Keras, Flax, Haiku and Equinox: the same outputs and final states; there and back bit for bit."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import convert
from tests.models import assert_identical, inputs, model

DTYPES = ("float32", "float64")
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
few = settings(max_examples=6, deadline=None)
sizes = {"in_features": st.integers(1, 5), "features": st.integers(1, 6), "seed": st.integers(0, 99)}


@pytest.fixture(autouse=True)
def precision(request, float64):
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


# --- Keras ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "jax"
    module = pytest.importorskip("keras")
    module.saving.register_keras_serializable("tests")(exact_tanh)
    return module


def exact_tanh(x):
    """Keras' own is of single precision on its JAX backend, even in float64."""
    return jnp.tanh(x)


def keras_layer(keras, m, dtype, use_bias):
    stack = m.stack
    activation = exact_tanh if dtype == "float64" else "tanh"
    options = dict(reset_after=stack.cell.reset_after, use_bias=use_bias, return_sequences=True, return_state=True)
    forward = keras.layers.GRU(stack.features, activation, dtype=dtype, **options)
    if not stack.bidirectional:
        return forward
    backward = keras.layers.GRU(stack.features, activation, dtype=dtype, go_backwards=True, **options)
    return keras.layers.Bidirectional(forward, backward_layer=backward, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])
def test_keras(keras, cell, bidirectional, use_bias, dtype):
    m = model(cell, dtype=dtype, use_bias=use_bias, bidirectional=bidirectional)
    layer = keras_layer(keras, m, dtype, use_bias)
    layer.build((None, None, 3))
    layer.set_weights(convert.to_keras(m))

    def theirs(xs):
        outputs, *states = layer(xs)
        return outputs, states

    check_same(m, theirs, dtype)
    assert_identical(convert.from_keras(layer.get_weights(), reset_after=cell.reset_after), m)
    if dtype == "float32":
        assert_identical(convert.from_keras(layer.get_weights(), layer.get_config()), m)


@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])
def test_gradients_are_those_of_keras(keras, cell):
    """With respect to the weights and the inputs; a gradient converts as weights do."""
    m = model(cell, dtype="float64")
    layer = keras_layer(keras, m, "float64", use_bias=True)
    layer.build((None, None, 3))
    state = [variable.value for variable in layer.non_trainable_variables]
    xs = jnp.asarray(inputs(3, dtype="float64"))

    def their_loss(weights, xs):
        (outputs, last), _ = layer.stateless_call(weights, state, xs)
        return jnp.sin(outputs).sum() + (last**3).sum()

    def our_loss(m, xs):
        last, outputs = m(xs)
        return jnp.sin(outputs).sum() + (last**3).sum()

    theirs, their_d_xs = jax.grad(their_loss, (0, 1))(convert.to_keras(m), xs)
    ours, d_xs = jax.grad(our_loss, (0, 1))(m, xs)
    close(d_xs, their_d_xs, "float64")
    theirs = convert.from_keras(theirs)
    features = m.stack.features
    for field in ("kernel", "recurrent_kernel", "recurrent_bias"):
        got, expected = getattr(ours.params[0], field), getattr(theirs.params[0], field)
        assert (got is None) == (expected is None)
        if got is not None:
            close(got, expected, "float64")
    # Both of Keras' biases of r and z move by the gradient of ours, which is their sum.
    scale = np.where(np.arange(3 * features) < 2 * features, 2.0 if cell.reset_after else 1.0, 1.0)
    close(scale * ours.params[0].bias, theirs.params[0].bias, "float64")


def test_layers_of_keras(keras):
    m = model(num_layers=3, bidirectional=True)
    assert [len(layer) for layer in convert.to_keras(m)] == [6, 6, 6]
    assert_identical(convert.from_keras(convert.to_keras(m)), m)


def test_two_biases_of_keras_become_one():
    m = model()
    weights = convert.to_keras(m)
    second = np.random.default_rng(0).normal(size=12).astype(np.float32)
    first = weights[2][0]
    got = convert.from_keras([*weights[:2], np.stack([first, second])]).params[0]
    z_r_n = first + np.where(np.arange(12) < 8, second, 0)
    np.testing.assert_array_equal(got.bias, np.concatenate([z_r_n[4:8], z_r_n[:4], z_r_n[8:]]))
    np.testing.assert_array_equal(got.recurrent_bias, second[8:])


# --- Flax -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linen(dtype, bidirectional):
    m = model(dtype=dtype, bidirectional=bidirectional)
    rnn = linen.RNN(linen.GRUCell(4, param_dtype=jnp.dtype(dtype)), return_carry=True)
    layer = linen.Bidirectional(rnn, rnn.copy(), return_carry=True) if bidirectional else rnn
    variables = convert.to_linen(m)

    def theirs(xs):
        carry, outputs = layer.apply(variables, xs)
        return outputs, carry if bidirectional else (carry,)

    check_same(m, theirs, dtype)
    assert jax.tree.structure(variables) == jax.tree.structure(layer.init(jax.random.key(0), jnp.ones((1, 2, 3))))
    assert_identical(convert.from_linen(variables), m)
    assert_identical(convert.from_linen(variables["params"]), m)


@few
@given(
    st.sampled_from([gru_jax.CUDNN, gru_jax.CHO2014, gru_jax.GOODFELLOW]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.fixed_dictionaries(sizes),
)
def test_our_linen_layer(cell, num_layers, bidirectional, use_bias, drawn):
    m = model(cell, num_layers=num_layers, bidirectional=bidirectional, use_bias=use_bias, **drawn)
    layer, variables = gru_jax.linen.GRU.from_model(m)
    xs = inputs(drawn["in_features"])
    for ours, theirs in zip(
        jax.tree.leaves(m(xs)), jax.tree.leaves(layer.apply(variables, xs, return_carry=True)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, layer.init(jax.random.key(0), xs))
    assert_identical(convert.from_linen(variables, cell=cell), m)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nnx(dtype, bidirectional):
    m = model(dtype=dtype, bidirectional=bidirectional)
    m = without_recurrent_bias(m)

    def rnn():
        return nnx.RNN(
            nnx.GRUCell(3, 4, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0)), return_carry=True, rngs=nnx.Rngs(0)
        )

    layer = nnx.Bidirectional(rnn(), rnn(), return_carry=True, rngs=nnx.Rngs(0)) if bidirectional else rnn()
    nnx.update(layer, nnx.State(convert.to_nnx(m)))

    def theirs(xs):
        carry, outputs = layer(xs)
        return outputs, carry if bidirectional else (carry,)

    check_same(m, theirs, dtype)
    assert_identical(convert.from_nnx(nnx.state(layer, nnx.Param)), m)
    assert_identical(convert.from_nnx(nnx.to_pure_dict(nnx.state(layer, nnx.Param))), m)


def without_recurrent_bias(m):
    params = tuple(p._replace(recurrent_bias=np.zeros_like(p.recurrent_bias)) for p in m.params)
    return convert.Model(params, m.stack)


@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])
def test_our_cell_in_the_rnn_of_nnx(cell):
    made = gru_jax.nnx.GRUCell(
        3, 4, reset_after=cell.reset_after, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(1)
    )
    got = convert.from_nnx(nnx.state(nnx.RNN(made, rngs=nnx.Rngs(0)), nnx.Param), cell=cell)
    assert_identical(got, convert.Model((made.params,), got.stack))
    assert got.stack.cell == cell


@few
@given(
    st.sampled_from([gru_jax.CUDNN, gru_jax.CHO2014, gru_jax.GOODFELLOW]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.fixed_dictionaries(sizes),
)
def test_our_nnx_layer(cell, num_layers, bidirectional, use_bias, drawn):
    m = model(cell, num_layers=num_layers, bidirectional=bidirectional, use_bias=use_bias, **drawn)
    layer = gru_jax.nnx.GRU.from_model(m)
    xs = inputs(drawn["in_features"])
    for ours, theirs in zip(jax.tree.leaves(m(xs)), jax.tree.leaves(layer(xs, return_carry=True)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert_identical(layer.model, m)


# --- Haiku and Equinox ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_haiku(dtype, num_layers):
    hk = pytest.importorskip("haiku")
    m = model(gru_jax.CHO2014, dtype=dtype, num_layers=num_layers)

    def run(xs):
        core = hk.DeepRNN([hk.GRU(4) for _ in range(num_layers)]) if num_layers > 1 else hk.GRU(4)
        start = jax.tree.map(lambda x: x.astype(xs.dtype), core.initial_state(xs.shape[1]))
        return hk.dynamic_unroll(core, xs, start)

    function = hk.without_apply_rng(hk.transform(run))
    params = convert.to_haiku(m)

    def theirs(xs):
        outputs, state = function.apply(params, xs)
        return outputs, (state[-1] if num_layers > 1 else state,)

    check_same(m, theirs, dtype, time_major=True)
    drawn = function.init(jax.random.key(0), jnp.ones((1, 1, 3), dtype))
    assert jax.tree.structure(params) == jax.tree.structure(drawn)
    assert_identical(convert.from_haiku(params), m)
    assert_identical(convert.from_haiku(params["gru"]), convert.Model(m.params[:1], model(gru_jax.CHO2014).stack))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equinox(dtype, use_bias):
    eqx = pytest.importorskip("equinox")
    m = model(dtype=dtype, use_bias=use_bias)
    (arrays,) = convert.to_equinox(m)
    cell = eqx.nn.GRUCell(3, 4, use_bias=use_bias, dtype=jnp.dtype(dtype), key=jax.random.key(0))
    cell = eqx.tree_at(lambda c: [getattr(c, name) for name in arrays], cell, [jnp.asarray(x) for x in arrays.values()])

    def theirs(xs):
        def step(h_tm1, x_t):
            h_t = jax.vmap(cell)(x_t, h_tm1)
            return h_t, h_t

        last, outputs = jax.lax.scan(step, jnp.zeros((xs.shape[1], 4), dtype), xs)
        return outputs, (last,)

    check_same(m, theirs, dtype, time_major=True)
    assert_identical(convert.from_equinox(cell), m)
    assert_identical(convert.from_equinox(arrays), m)


def test_layers_of_equinox():
    m = model(num_layers=2)
    assert_identical(convert.from_equinox(convert.to_equinox(m)), m)


# --- Every framework --------------------------------------------------------------------------------------------------

ROUND_TRIPS = {
    "torch": (gru_jax.CUDNN, convert.to_torch, convert.from_torch),
    "keras": (gru_jax.CUDNN, convert.to_keras, convert.from_keras),
    "keras before": (gru_jax.CHO2014, convert.to_keras, convert.from_keras),
    "linen": (gru_jax.CUDNN, convert.to_linen, convert.from_linen),
    "haiku": (gru_jax.CHO2014, convert.to_haiku, convert.from_haiku),
    "equinox": (gru_jax.CUDNN, convert.to_equinox, convert.from_equinox),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("framework", ROUND_TRIPS)
def test_there_and_back_bit_for_bit(framework, dtype):
    cell, to, back = ROUND_TRIPS[framework]
    m = model(cell, dtype=dtype)
    assert_identical(back(to(m)), m)


@pytest.mark.parametrize("framework", ROUND_TRIPS)
def test_equations_that_a_framework_has_not_are_refused(framework):
    if framework == "linen":
        pytest.skip("its cell takes any activations")
    _, to, _ = ROUND_TRIPS[framework]
    with pytest.raises(ValueError, match=r"model\.stack\.cell must be gru_jax\.(CUDNN|CHO2014)"):
        to(model(gru_jax.GOODFELLOW))


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        (convert.to_keras, {"reverse": True}, r"model\.stack\.reverse must be False for keras"),
        (convert.to_nnx, {"num_layers": 2}, r"model\.stack\.num_layers must be 1"),
        (convert.to_nnx, {}, "recurrent_bias must be zero: this framework's cell has none"),
        (convert.to_haiku, {"cell": gru_jax.CHO2014, "bidirectional": True}, "bidirectional must be False for hk.GRU"),
        (convert.to_equinox, {"bidirectional": True}, "bidirectional must be False for eqx"),
    ],
)
def test_models_that_a_framework_cannot_hold_are_refused(to, options, message):
    with pytest.raises(ValueError, match=message):
        to(model(**options))


def changed(tree, path, value):
    """A copy of nested dicts with one leaf replaced, added, or removed if value is None."""
    key, *rest = path
    copy = dict(tree)
    if rest:
        copy[key] = changed(tree.get(key, {}), rest, value)
    elif value is None:
        del copy[key]
    else:
        copy[key] = value
    return copy


LINEN, HAIKU = convert.to_linen(model())["params"], convert.to_haiku(model(gru_jax.CHO2014))
NNX = convert.to_nnx(without_recurrent_bias(model()))
(EQUINOX,) = convert.to_equinox(model())
KERAS = convert.to_keras(model())
BAD = {
    "linen shape": (
        lambda: convert.from_linen(changed(LINEN, ("cell", "hz", "kernel"), np.ones((4, 5)))),
        r"variables: cell\.hz\.kernel must have shape \(features, features\) = \(4, 4\), got \(4, 5\)",
    ),
    "linen missing": (
        lambda: convert.from_linen(changed(LINEN, ("cell", "hn", "bias"), None)),
        r"variables: cell\.hn\.bias must be there, of shape \(features,\) = \(4,\)",
    ),
    "linen unknown": (
        lambda: convert.from_linen(changed(LINEN, ("cell", "hq", "kernel"), np.ones((4, 4)))),
        r"must have nothing but what its equations need, got \['variables: cell\.hq\.kernel'\] too",
    ),
    "linen another module": (
        lambda: convert.from_linen(changed(LINEN, ("Dense_0", "kernel"), np.ones((4, 4)))),
        r"variables must have the parameters of one GRU only, got \['Dense_0\.kernel'\] too",
    ),
    "linen nothing": (lambda: convert.from_linen({}), r"variables: hr\.kernel must be a matrix, got \[\]"),
    "nnx integers": (
        lambda: convert.from_nnx(changed(NNX, ("cell", "dense_i", "bias"), np.ones(12, int))),
        r"state: cell\.dense_i\.bias must be floating point, got int64",
    ),
    "nnx streams": (
        lambda: convert.from_nnx(changed(NNX, ("rngs", "count"), np.ones(()))),
        r"state must have the parameters of one GRU only, got \['rngs\.count'\] too",
    ),
    "haiku shape": (
        lambda: convert.from_haiku(changed(HAIKU, ("gru", "b"), np.ones(4))),
        r"params: gru\.b must have shape \(3·features,\) = \(12,\), got \(4,\)",
    ),
    "haiku another module": (
        lambda: convert.from_haiku(changed(HAIKU, ("linear", "w"), np.ones((4, 4)))),
        r"params: linear\.w_i must be there",
    ),
    "equinox shape": (
        lambda: convert.from_equinox(changed(EQUINOX, ("bias_n",), np.ones(12))),
        r"cells\[0\]\.bias_n must have shape \(features,\) = \(4,\), got \(12,\)",
    ),
    "keras number": (lambda: convert.from_keras([*KERAS, *KERAS, *KERAS]), "got 9 arrays"),
    "keras shape": (
        lambda: convert.from_keras([KERAS[0][:, :5], *KERAS[1:]]),
        r"weights\[0\]\.kernel must have shape \(in_features, 3·features\) = \(3, 12\), got \(3, 5\)",
    ),
    "keras bias": (lambda: convert.from_keras([*KERAS[:2], np.ones((3, 12))]), r"weights\[0\]\.bias"),
    "keras activation": (
        lambda: convert.from_keras(KERAS, {"activation": "relu"}),
        r"config\['activation'\] must be 'tanh', got 'relu'",
    ),
    "keras backwards": (
        lambda: convert.from_keras(KERAS, {"go_backwards": True}),
        r"config\['go_backwards'\] must be False, got True",
    ),
    "keras merge": (
        lambda: convert.from_keras([*KERAS, *KERAS], {"merge_mode": "sum", "layer": {"config": {}}}),
        r"config\['merge_mode'\] must be 'concat', got 'sum'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_refused(case):
    convert_it, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        convert_it()
