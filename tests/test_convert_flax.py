"""Weights from and to Flax, its own modules and ours: outputs and final states."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import gru_jax
from gru_jax import convert
from tests.models import assert_identical, check_same, in_precision_of_test, inputs, model, without_recurrent_bias
from tests.sequences import random_kernel

PRECISIONS = ("float32", "float64")
few = settings(max_examples=6, deadline=None)
sizes = {"in_features": st.integers(1, 5), "features": st.integers(1, 6), "seed": st.integers(0, 99)}


@pytest.fixture(autouse=True)
def precision(request, float64):
    yield from in_precision_of_test(request)


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


each_model = given(
    st.sampled_from([gru_jax.CUDNN, gru_jax.CHO2014, gru_jax.GOODFELLOW]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.fixed_dictionaries(sizes),
)


@few
@each_model
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
@each_model
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
