"""Weights from and to Haiku and Equinox: outputs and final states. All frameworks: there and back bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import convert
from tests.models import DTYPES, assert_identical, check_same, in_precision_of_test, model, without_recurrent_bias

PRECISIONS = ("float32", "float64")
few = settings(max_examples=6, deadline=None)
sizes = {"in_features": st.integers(1, 5), "features": st.integers(1, 6), "seed": st.integers(0, 99)}


@pytest.fixture(autouse=True)
def precision(request, float64):
    yield from in_precision_of_test(request)


# --- Haiku and Equinox ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("dtype", PRECISIONS)
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
    drawn = jax.eval_shape(function.init, jax.random.key(0), jnp.ones((1, 1, 3), dtype))
    assert jax.tree.structure(params) == jax.tree.structure(drawn)
    assert_identical(convert.from_haiku(params), m)
    assert_identical(convert.from_haiku(params["gru"]), convert.Model(m.params[:1], model(gru_jax.CHO2014).stack))
    assert_identical(convert.from_haiku(list(params.values())), m)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", PRECISIONS)
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


def test_many_layers_of_haiku_are_in_the_order_of_their_numbers():
    m = model(gru_jax.CHO2014, num_layers=12)
    params = convert.to_haiku(m, "net_3/~/gru")
    assert_identical(convert.from_haiku(dict(sorted(params.items()))), m)


def test_layers_of_equinox():
    m = model(num_layers=2)
    assert_identical(convert.from_equinox(convert.to_equinox(m)), m)


# --- Every framework --------------------------------------------------------------------------------------------------

ROUND_TRIPS = {
    "torch": (gru_jax.CUDNN, convert.to_torch, convert.from_torch),
    "torch cell": (gru_jax.CUDNN, functools.partial(convert.to_torch, cell=True), convert.from_torch),
    "keras": (gru_jax.CUDNN, convert.to_keras, convert.from_keras),
    "keras before": (gru_jax.CHO2014, convert.to_keras, functools.partial(convert.from_keras, reset_after=False)),
    "linen": (gru_jax.CUDNN, convert.to_linen, convert.from_linen),
    "our nnx": (gru_jax.CUDNN, functools.partial(convert.to_nnx, recurrent_bias=True), convert.from_nnx),
    "haiku": (gru_jax.CHO2014, convert.to_haiku, convert.from_haiku),
    "equinox": (gru_jax.CUDNN, convert.to_equinox, convert.from_equinox),
}
ONE_LAYER, FORWARD, WITH_BIAS = {"torch cell", "our nnx"}, {"torch cell", "haiku", "equinox"}, {"haiku"}


@pytest.mark.parametrize("framework", ROUND_TRIPS)
@given(st.integers(1, 3), st.booleans(), st.booleans(), st.sampled_from(DTYPES), st.fixed_dictionaries(sizes))
@settings(deadline=None, max_examples=25)
def test_there_and_back_bit_for_bit(framework, num_layers, bidirectional, use_bias, dtype, drawn):
    cell, to, back = ROUND_TRIPS[framework]
    m = model(
        cell,
        num_layers=1 if framework in ONE_LAYER else num_layers,
        bidirectional=bidirectional and framework not in FORWARD,
        use_bias=use_bias or framework in WITH_BIAS,
        dtype=dtype,
        **drawn,
    )
    assert_identical(back(to(m)), m)


@pytest.mark.parametrize("framework", ROUND_TRIPS)
def test_equations_that_a_framework_has_not_are_refused(framework):
    _, to, _ = ROUND_TRIPS[framework]
    if framework in ("linen", "our nnx"):  # whose cells take any activations
        assert to(model(gru_jax.GOODFELLOW))
        return
    with pytest.raises(ValueError, match=r"model\.stack\.cell must be gru_jax\.(CUDNN|CHO2014)"):
        to(model(gru_jax.GOODFELLOW))


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        (convert.to_keras, {"reverse": True}, r"model\.stack\.reverse must be False for keras"),
        (
            functools.partial(convert.to_torch, cell=True),
            {"num_layers": 2},
            "num_layers must be 1 for torch.nn.GRUCell",
        ),
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
    "linen nothing": (
        lambda: convert.from_linen({}),
        r"variables: hr\.kernel must be there, of shape \(features, features\), got \[\]",
    ),
    "linen another collection": (
        lambda: convert.from_linen({"params": LINEN, "batch_stats": {"mean": np.ones(4)}}),
        r"variables must have params only, got \['batch_stats\.mean'\] too",
    ),
    "nnx integers": (
        lambda: convert.from_nnx(changed(NNX, ("cell", "dense_i", "bias"), np.ones(12, int))),
        r"state: cell\.dense_i\.bias must be floating point, got int64",
    ),
    "nnx streams": (
        lambda: convert.from_nnx(changed(NNX, ("rngs", "count"), np.ones(()))),
        r"state must have the parameters of one GRU only, got \['rngs\.count'\] too",
    ),
    "nnx keys": (
        lambda: convert.from_nnx(changed(NNX, ("rngs", "key"), jax.random.key(0))),
        r"state must have the parameters of one GRU only, got \['rngs\.key'\] too",
    ),
    "haiku shape": (
        lambda: convert.from_haiku(changed(HAIKU, ("gru", "b"), np.ones(4))),
        r"params: gru\.b must have shape \(3·features,\) = \(12,\), got \(4,\)",
    ),
    "haiku another module": (
        lambda: convert.from_haiku(changed(HAIKU, ("linear", "w"), np.ones((4, 4)))),
        r"differ in their numbers only, got \['gru', 'linear'\]",
    ),
    "haiku order": (
        lambda: convert.from_haiku({"encoder/gru": HAIKU["gru"], "decoder/gru": HAIKU["gru"]}),
        r"differ in their numbers only, got \['encoder/gru', 'decoder/gru'\]: a list of their own dicts",
    ),
    "haiku nothing": (lambda: convert.from_haiku({}), "there must be the weights of one cell at least, got none"),
    "equinox unknown": (
        lambda: convert.from_equinox(changed(EQUINOX, ("bias_z",), np.ones(4))),
        r"must have nothing but what its equations need, got \['cells\[0\]\.bias_z'\] too",
    ),
    "equinox shape": (
        lambda: convert.from_equinox(changed(EQUINOX, ("bias_n",), np.ones(12))),
        r"cells\[0\]\.bias_n must have shape \(features,\) = \(4,\), got \(12,\)",
    ),
}


FLAX_LSTM = {name: {"kernel": np.ones((4, 4))} for name in ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho")}
OTHER_CELLS = {
    "linen": (lambda: convert.from_linen({"cell": FLAX_LSTM}), "the cell in variables: cell is of an LSTM"),
    "linen in a model": (lambda: convert.from_linen({"rnn": FLAX_LSTM}, path="rnn"), "variables under 'rnn' is of an"),
    "nnx": (lambda: convert.from_nnx({"cell": FLAX_LSTM}), "the cell in state: cell is of an LSTM"),
    "nnx in one": (
        lambda: convert.from_nnx({"cell": {"dense_h": {"kernel": np.ones((4, 16))}}}),
        r"state: cell\.dense_h\.kernel of shape \(4, 16\) is of an LSTM",
    ),
    "haiku": (
        lambda: convert.from_haiku({"net/lstm/linear": {"w": np.ones((7, 16)), "b": np.ones(16)}}),
        "module 'net/lstm/linear' is of an LSTM",
    ),
    "equinox": (
        lambda: convert.from_equinox({"weight_hh": np.ones((16, 4)), "weight_ih": np.ones((16, 3))}),
        r"cells\[0\]\.weight_hh of shape \(16, 4\) is of an LSTM",
    ),
}


@pytest.mark.parametrize("case", OTHER_CELLS)
def test_what_is_of_an_lstm_is_said_to_be_so(case):
    convert_it, message = OTHER_CELLS[case]
    with pytest.raises(ValueError, match=rf"{message}.* gru_jax\.cells\.LSTM .* in the order i, f, g, o"):
        convert_it()


@pytest.mark.parametrize("case", BAD)
def test_bad_weights_are_refused(case):
    convert_it, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        convert_it()


def test_what_is_no_mapping_is_refused():
    for convert_it, message in [
        (
            convert.from_torch,
            r"state_dict must be .* from module\.state_dict\(\) or torch\.load\(path, weights_only=True\)",
        ),
        (convert.from_linen, r"variables must be .* from layer\.init"),
        (convert.from_nnx, r"state must be .* from nnx\.state\(layer, nnx\.Param\)"),
        (convert.from_haiku, r"params must be .* from init"),
    ]:
        with pytest.raises(TypeError, match=rf"{message}, got Stack"):
            convert_it(model().stack)
