"""Weights from and to Flax, Haiku and Equinox: outputs and final states. All frameworks: there and back bit for bit."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import convert
from tests.models import DTYPES, assert_identical, check_same, in_precision_of_test, inputs, model
from tests.sequences import random_kernel

PRECISIONS = ("float32", "float64")
few = settings(max_examples=6, deadline=None)
sizes = {"in_features": st.integers(1, 5), "features": st.integers(1, 6), "seed": st.integers(0, 99)}


@pytest.fixture(autouse=True)
def precision(request, float64):
    yield from in_precision_of_test(request)


# --- Flax -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_linen(dtype, bidirectional):
    m = model(dtype=dtype, bidirectional=bidirectional)
    rnn = linen.RNN(linen.GRUCell(4, param_dtype=jnp.dtype(dtype)), return_carry=True)
    layer = linen.Bidirectional(rnn, rnn.copy(), return_carry=True) if bidirectional else rnn
    variables = convert.to_linen(m)

    def theirs(xs):
        carry, outputs = layer.apply(variables, xs)
        return outputs, carry if bidirectional else (carry,)

    check_same(m, theirs, dtype)
    drawn = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, 2, 3)))
    assert jax.tree.structure(variables) == jax.tree.structure(drawn)
    assert_identical(convert.from_linen(variables), m)
    assert_identical(convert.from_linen(variables["params"]), m)


BOXES = [linen.with_partitioning, linen.with_logical_partitioning]


@pytest.mark.parametrize("box", BOXES, ids=["partitioned", "logically"])
@pytest.mark.parametrize("on_mesh", [False, True], ids=["no mesh", "mesh"])
def test_boxed_parameters_of_linen(box, on_mesh):
    inits = {
        "kernel_init": box(random_kernel, (None, "model")),
        "recurrent_kernel_init": box(random_kernel, ("model", None)),
        "bias_init": box(linen.initializers.normal(), ("model",)),
    }
    layer = gru_jax.linen.GRU(4, num_layers=2, bidirectional=True, **inits)
    variables = layer.init(jax.random.key(0), inputs())
    plain = linen.meta.unbox(variables)
    assert jax.tree.structure(variables) != jax.tree.structure(plain)
    with jax.set_mesh(jax.make_mesh((1,), ("data",))) if on_mesh else contextlib.nullcontext():
        m = layer.model(variables)
    assert_identical(m, layer.model(plain))
    assert_identical(convert.Model.of(layer, variables), m)
    assert_identical(convert.from_linen(variables), m)
    again, given = gru_jax.linen.GRU.from_model(m)
    np.testing.assert_array_equal(again.apply(given, inputs()), layer.apply(variables, inputs()))
    flax = linen.RNN(linen.GRUCell(4, **inits))
    variables = flax.init(jax.random.key(0), inputs())
    assert_identical(convert.from_linen(variables), convert.from_linen(linen.meta.unbox(variables)))


class Tagger(linen.Module):
    """A model of Flax's with two GRUs, one of which runs both ways, and something else."""

    rnn: type = linen.RNN
    cell: type = linen.GRUCell

    @linen.compact
    def __call__(self, xs):
        def rnn(**names):
            return self.rnn(self.cell(4, recurrent_kernel_init=random_kernel, **names))

        xs = linen.Bidirectional(rnn(), rnn())(xs)
        return linen.Dense(5)(rnn(name="encoder")(linen.BatchNorm(use_running_average=True)(xs)))


def test_a_gru_of_a_model_of_linen():
    variables = Tagger().init(jax.random.key(0), inputs())
    params = variables["params"]
    m = convert.from_linen(variables, path="encoder")
    assert_identical(m, convert.from_linen(params["encoder"]))
    assert_identical(m, convert.from_linen(params, path="/encoder/"))
    assert_identical(m, convert.from_linen(variables, path="params/encoder"))
    both = {"forward_rnn": {"cell": params["GRUCell_0"]}, "backward_rnn": {"cell": params["GRUCell_1"]}}
    deeper = {"params": {"net": {"rnn": {"layers_0": both}, "head": params["Dense_0"]}}}
    assert_identical(convert.from_linen(deeper, path="net/rnn"), convert.from_linen(both))
    for tree, path, message in [
        (variables, "", r"variables must have params only, got \['batch_stats"),
        (params, "", r"path must say which .* one of \['GRUCell_0', 'GRUCell_1', 'encoder'\]"),
        (deeper, "", r"path must say which .* one of \['net/rnn'\]"),
        (params, "GRUCell_2", r"must have parameters under path 'GRUCell_2'; paths of GRUs in it: \['GRUCell_0', 'GRU"),
        (params, "Dense_0", r"variables under 'Dense_0': hr\.kernel must be there"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert.from_linen(tree, path=path)


def test_our_layer_takes_the_weights_of_the_one_it_replaces():
    """The tree of a model whose loop is ours, from a checkpoint of one whose loop was Flax's, and back."""
    xs = jnp.asarray(inputs())
    variables = Tagger().init(jax.random.key(0), xs)
    ours = Tagger(gru_jax.linen.RNN, gru_jax.linen.GRUCell)
    drawn = ours.init(jax.random.key(0), xs)
    assert jax.tree.structure(variables) == jax.tree.structure(drawn)
    np.testing.assert_allclose(ours.apply(variables, xs), Tagger().apply(variables, xs), atol=1e-6)

    class Replaced(linen.Module):
        @linen.compact
        def __call__(self, xs):
            xs = gru_jax.linen.GRU(4, bidirectional=True)(xs)
            return linen.Dense(5)(gru_jax.linen.GRU(4)(linen.BatchNorm(use_running_average=True)(xs)))

    params = dict(variables["params"])
    both = {f"{way}_rnn": {"cell": params.pop(f"GRUCell_{i}")} for i, way in enumerate(("forward", "backward"))}
    params["GRU_0"] = convert.to_linen(convert.from_linen(both))["params"]
    params["GRU_1"] = convert.to_linen(convert.from_linen({"encoder": params.pop("encoder")}, path="encoder"))["params"]
    outputs = Replaced().apply(variables | {"params": params}, xs)
    np.testing.assert_allclose(outputs, Tagger().apply(variables, xs), atol=1e-6)


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
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, jax.eval_shape(layer.init, jax.random.key(0), xs)
    )
    assert_identical(convert.from_linen(variables, cell=cell), m)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_nnx(dtype, bidirectional):
    m = model(dtype=dtype, bidirectional=bidirectional)
    m = without_recurrent_bias(m)

    def rnn():
        options = {"recurrent_kernel_init": random_kernel, "param_dtype": jnp.dtype(dtype), "rngs": nnx.Rngs(0)}
        return nnx.RNN(nnx.GRUCell(3, 4, **options), return_carry=True, rngs=nnx.Rngs(0))

    layer = nnx.Bidirectional(rnn(), rnn(), return_carry=True, rngs=nnx.Rngs(0)) if bidirectional else rnn()
    nnx.update(layer, nnx.State(convert.to_nnx(m)))

    def theirs(xs):
        carry, outputs = layer(xs)
        return outputs, carry if bidirectional else (carry,)

    check_same(m, theirs, dtype)
    assert_identical(convert.from_nnx(nnx.state(layer, nnx.Param)), m)
    assert_identical(convert.from_nnx(nnx.to_pure_dict(nnx.state(layer, nnx.Param))), m)


def test_variables_of_nnx_with_metadata():
    """What annotates a variable stays with the target."""
    partitioned = nnx.with_partitioning(nnx.initializers.normal(), (None, "model"))

    def rnn(seed):
        options = {"kernel_init": partitioned, "recurrent_kernel_init": partitioned, "rngs": nnx.Rngs(seed)}
        with nnx.use_eager_sharding(False):
            return nnx.RNN(nnx.GRUCell(3, 4, **options), rngs=nnx.Rngs(seed))

    layer, target = rnn(0), rnn(1)
    m = convert.from_nnx(nnx.state(layer, nnx.Param))
    nnx.update(target, nnx.State(convert.to_nnx(m)))
    assert target.cell.dense_i.kernel.get_metadata()["out_sharding"] == (None, "model")
    np.testing.assert_allclose(target(inputs()), layer(inputs()), atol=1e-6)
    assert_identical(convert.from_nnx(nnx.state(target, nnx.Param)), m)


def test_a_gru_of_a_model_of_nnx():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs), rngs=rngs)])
            self.head = nnx.Linear(4, 2, rngs=rngs)

    net = Net(nnx.Rngs(0))
    state = nnx.state(net, nnx.Param)
    assert_identical(convert.from_nnx(state, path="layers/0"), convert.from_nnx(nnx.state(net.layers[0], nnx.Param)))
    with pytest.raises(ValueError, match=r"state must be of one GRU, or path must say .* one of \['layers/0'\]"):
        convert.from_nnx(state)


def without_recurrent_bias(m):
    params = tuple(p._replace(recurrent_bias=np.zeros_like(p.recurrent_bias)) for p in m.params)
    return convert.Model(params, m.stack)


@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])
def test_our_cell_in_the_rnn_of_nnx(cell):
    made = gru_jax.nnx.GRUCell(
        3,
        4,
        reset_after=cell.reset_after,
        recurrent_kernel_init=random_kernel,
        bias_init=nnx.initializers.normal(),
        rngs=nnx.Rngs(1),
    )
    got = convert.from_nnx(nnx.state(nnx.RNN(made, rngs=nnx.Rngs(0)), nnx.Param), cell=cell)
    assert_identical(got, convert.Model((made.params,), got.stack))
    assert got.stack.cell == cell


@pytest.mark.parametrize("bidirectional", [False, True])
def test_into_our_cell_in_the_rnn_of_nnx(bidirectional):
    """It has the recurrent bias that Flax's own lacks."""
    m = model(bidirectional=bidirectional)
    rnns = [
        nnx.RNN(gru_jax.nnx.GRUCell(3, 4, recurrent_kernel_init=random_kernel, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
        for _ in m.params
    ]
    layer = nnx.Bidirectional(*rnns, rngs=nnx.Rngs(0)) if bidirectional else rnns[0]
    nnx.update(layer, nnx.State(convert.to_nnx(m, recurrent_bias=True)))
    np.testing.assert_allclose(layer(inputs()), m(inputs())[1], atol=1e-6)
    assert_identical(convert.from_nnx(nnx.state(layer, nnx.Param)), m)


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


def test_a_layer_has_options_that_weights_do_not_say():
    m = model(num_layers=2)
    changes = {"time_major": True, "dropout": 0.5, "dtype": jnp.dtype("bfloat16")}
    layer = gru_jax.nnx.GRU.from_model(m, **changes)
    linen_layer, variables = gru_jax.linen.GRU.from_model(m, **changes)
    changed = convert.Model(m.params, dataclasses.replace(m.stack, **changes))
    assert_identical(layer.model, changed)
    assert_identical(linen_layer.model(variables), changed)
    with pytest.raises(ValueError, match=r"model\.params must have 3 members"):
        gru_jax.nnx.GRU.from_model(m, num_layers=3)
    with pytest.raises(TypeError, match="from_model has no option colour, only return_carry, gate_fn, activation_fn, "):
        gru_jax.linen.GRU.from_model(m, colour="red")


def test_a_layer_has_other_equations_than_its_model():
    m, cell = model(use_bias=False), gru_jax.GRU(False, jax.nn.hard_sigmoid, jax.nn.relu)
    changes = {"gate_fn": cell.gate, "activation_fn": cell.candidate, "reset_after": False}
    expected = convert.Model(m.params, dataclasses.replace(m.stack, cell=cell))
    layer, variables = gru_jax.linen.GRU.from_model(m, **changes)
    assert_identical(layer.model(variables), expected)
    assert_identical(gru_jax.nnx.GRU.from_model(m, **changes).model, expected)
    with pytest.raises(ValueError, match="recurrent_bias must be None: this GRU has none"):
        gru_jax.nnx.GRU.from_model(model(), reset_after=False)


def test_a_model_of_a_layer_or_a_cell():
    cell, m = gru_jax.CHO2014, model(gru_jax.CHO2014)
    linen_layer, variables = gru_jax.linen.GRU.from_model(m)
    for source in [(m,), (gru_jax.nnx.GRU.from_model(m),), (linen_layer, variables), (cell, m.params[0])]:
        assert_identical(convert.Model.of(*source), m)
    assert convert.Model((m.params[0]._replace(bias=None),), m.stack).use_bias is False
    for source, message in [
        ((cell,), "params must be gru_jax.cells.Params, as cell.init returns them, got NoneType"),
        ((linen_layer,), "variables must be a mapping of names to arrays, from layer.init, got NoneType"),
        ((m, variables), "params must be None with a Model"),
        ((m.params,), "model must be a gru_jax.convert.Model, a layer or a cell, got tuple"),
        ((convert.Model((variables,), m.stack),), r"model\.params\[0\] must be gru_jax.cells.Params, .*, got dict"),
    ]:
        with pytest.raises(TypeError, match=message):
            convert.Model.of(*source)


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
