"""Layers over whole sequences, of nnx and of linen alike: a GRU, an LSTM and a user's own cells, against `unroll`."""

import dataclasses
import functools
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx

import gru_jax
from gru_jax import parameters
from gru_jax.cells import GOODFELLOW, LSTM, CellBase
from gru_jax.options import Options
from tests.flax_layers import KEY, Layer, each_api, of_params, rnn, uncached_rnn
from tests.own_cells import OWN
from tests.sequences import (
    BATCH,
    FEATURES,
    IN_FEATURES,
    LENGTHS,
    MASK,
    TIME,
    assert_close,
    composed,
    inputs,
    normal,
    random_kernel,
)

CELLS = {"lstm": LSTM(), **OWN}
RESETS = np.array([[0, 0, 1, 0, 1], [1, 0, 0, 0, 0], [0, 1, 1, 0, 0]], bool)
LENGTH_ARRAY = jnp.array(LENGTHS)
SHORT = (("nnx", "clocked"), ("linen", "lstm"))
each_api_and_cell = pytest.mark.parametrize(
    ("api", "name"),
    [
        pytest.param(api, name, marks=() if (api, name) in SHORT else pytest.mark.long)
        for api in ("nnx", "linen")
        for name in CELLS
    ],
)


def floating(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def with_loss(results):
    carry, outputs = results
    weight = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.sum(weight * jnp.sin(outputs)) + sum(jnp.sum(leaf**2) for leaf in floating(carry)), results


# --- Of any cell ------------------------------------------------------------------------------------------------------


@each_api_and_cell
def test_layers_of_a_cell_are_the_composition_of_unroll(api, name):
    """Both ways and stacked, with a mask and lengths, from a carry; and their gradients by each parameter's path."""
    layer, cell, x = rnn(api, CELLS[name], num_layers=2, bidirectional=True), CELLS[name], inputs()
    zero = cell.initial_state(layer.params[0], (BATCH,), jnp.float64)
    start = jax.tree.map(lambda leaf: leaf + jnp.arange(leaf.size, dtype=leaf.dtype).reshape(leaf.shape) / 8, zero)
    mask = jax.random.bernoulli(jax.random.key(1), 0.8, (BATCH, TIME))

    def ours(layer):
        given = {"mask": mask, "seq_lengths": LENGTH_ARRAY, "initial_carry": (start,) * 4}
        return layer(x, return_carry=True, **given)

    def theirs(params):
        given = {"mask": mask.T, "lengths": LENGTH_ARRAY, "h_0": start}
        carry, outputs = composed(cell, params, x.swapaxes(0, 1), bidirectional=True, **given)
        return carry, outputs.swapaxes(0, 1)

    @jax.jit
    def run():
        grads, results = jax.grad(lambda params: with_loss(theirs(params)), has_aux=True)(layer.params)
        return layer.gradients(lambda layer: with_loss(ours(layer))), (
            list(map(parameters.leaves_by_path, grads)),
            results,
        )

    (grads, results), (expected_grads, expected) = run()
    assert_close(results, expected)
    for ours_, theirs_ in zip(grads, expected_grads, strict=True):
        assert ours_.keys() == theirs_.keys()
        assert_close([ours_[path] for path in theirs_], list(theirs_.values()), 1e-11)


@each_api_and_cell
def test_step_by_step_is_the_sequence_with_any_cell(api, name):
    """From a fresh carry, with resets to a learnt state; and a stacked carry comes back stacked."""
    layer, cell, x = rnn(api, CELLS[name], num_layers=2), CELLS[name], inputs()
    fresh = layer.initialize_carry((BATCH, IN_FEATURES))
    start = jax.tree.map(lambda leaf: leaf[:1] + 1, fresh[0])

    @jax.jit
    def run():
        whole = layer(x, return_carry=True, resets=RESETS, reset_state=start)
        carry, outputs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fresh), []
        for t in range(TIME):
            carry, output = layer.step(carry, x[:, t], resets=RESETS[:, t], reset_state=start)
            outputs.append(output)
        return whole, (carry, jnp.stack(outputs, axis=1))

    (states, outputs), (carry, stepwise) = run()
    assert_close(stepwise, outputs)
    assert_close(carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    assert jax.tree.structure(fresh) == jax.tree.structure(states)
    assert jax.tree.structure(fresh[0]) == jax.tree.structure(cell.initial_state(layer.params[0], (), jnp.float64))


@each_api
def test_every_form_of_a_carry_of_parts(api):
    """A NamedTuple with a leaf of integers; one for all layers as reset_state alone."""
    layer, x = rnn(api, OWN["clocked"], num_layers=2), inputs()
    each = tuple(
        type(state)(state.t + 1 + i, state.h + normal(i, BATCH, FEATURES))
        for i, state in enumerate(layer.initialize_carry((BATCH, IN_FEATURES)))
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    @jax.jit
    def run(each, stacked):
        forms = (each, list(each), stacked)
        return forms, [layer(x, initial_carry=form, return_carry=True) for form in forms]

    forms, results = run(each, stacked)
    for form, (carry, outputs) in zip(forms, results, strict=True):
        assert jax.tree.structure(carry) == jax.tree.structure(form)
        assert_close(outputs, results[0][1], 0)
    assert_close(stacked.t + TIME, results[2][0].t, 0)
    with pytest.raises(ValueError, match=r"initial_carry must be a tuple of 2 states, one for each layer"):
        layer(x, initial_carry=each[0])
    with pytest.raises(TypeError, match=r"initial_carry\[1\] must be a Clock\('t', 'h'\), got tuple"):
        layer(x, initial_carry=(each[0], tuple(each[1])))
    with pytest.raises(ValueError, match=r"initial_carry\[0\]\.h must broadcast to"):
        layer(x, initial_carry=(each[0]._replace(h=jnp.zeros(5)), each[1]))


@each_api
def test_a_random_carry_draws_each_leaf_in_floating_point(api):
    init = jax.nn.initializers.normal(1.0)
    layer = rnn(api, LSTM(), carry_init=init, return_carry=True).module
    clocked = rnn(api, OWN["clocked"], num_layers=2, carry_init=init).module
    shape = (BATCH, IN_FEATURES)
    if api == "nnx":
        state, clocks = layer.initialize_carry(shape, KEY), clocked.initialize_carry(shape, KEY)
    else:
        state, clocks = layer.initialize_carry(KEY, shape), clocked.initialize_carry(KEY, shape)
    assert (state.h != state.c).all()
    assert [clock.t.dtype for clock in clocks] == [jnp.int32, jnp.int32]
    assert (clocks[0].t == 0).all()
    assert (clocks[0].h != clocks[1].h).all()


@each_api
def test_return_layers_and_time_major_with_any_cell(api):
    options = {"num_layers": 2, "bidirectional": True, "return_carry": True}
    layer, x = rnn(api, LSTM(), **options), inputs()
    major = rnn(api, LSTM(), time_major=True, **options)
    first = rnn(api, LSTM(), bidirectional=True)

    @jax.jit
    def run(x):
        given = {"mask": MASK, "resets": RESETS}
        other = {name: flags.T for name, flags in given.items()}
        return (
            layer(x, return_layers=True, **given),
            major(x.swapaxes(0, 1), return_layers=True, **other),
            first(x, **given),
        )

    (carry, outputs), (carry_major, outputs_major), one = run(x)
    assert_close((carry_major, [hs.swapaxes(0, 1) for hs in outputs_major]), (carry, list(outputs)))
    assert_close(one, outputs[0])


@each_api
def test_init_options_and_dtypes(api):
    """They reach `cell.init`; parameters have the dtype asked for, integers are let alone, the state is float32."""
    options = {"use_bias": False, "kernel_init": random_kernel}
    bare = uncached_rnn(api, LSTM(), num_layers=2, dtype=jnp.bfloat16, init_options=options)
    assert [params.bias for params in bare.params] == [None, None]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(bare.params)} == {"float64"}
    carry, outputs = jax.eval_shape(functools.partial(bare, return_carry=True), inputs())
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in jax.tree.leaves(carry)} == {"float32"}
    narrow = rnn(api, OWN["joined"], param_dtype=jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow.params)} == {"bfloat16"}
    assert jax.eval_shape(narrow, inputs().astype(jnp.bfloat16)).dtype == jnp.bfloat16


@each_api
def test_a_layer_of_a_gru_is_the_gru(api):
    layer = rnn(api, GOODFELLOW, num_layers=2)
    twin = of_params(api, GOODFELLOW, layer.params)
    assert_close(layer(inputs(), return_carry=True), twin(inputs(), return_carry=True), 0)
    assert_close(layer.params, twin.params, 0)


@each_api
def test_the_model_of_a_layer_is_the_layer_without_flax(api):
    layer = rnn(api, OWN["clocked"], num_layers=2, bidirectional=True)
    model = layer.module.model if api == "nnx" else layer.module.model(layer.variables)
    assert_close(model(inputs()), layer(inputs(), return_carry=True), 0)
    for write in (gru_jax.convert.to_torch, gru_jax.convert.to_onnx):
        with pytest.raises(TypeError, match=r"model\.stack\.cell must be a gru_jax\.GRU, got Clocked"):
            write(model)


def test_parameters_that_do_not_fit_are_refused_by_path():
    layer, variables = (part := rnn("linen", OWN["joined"])).module, part.variables["params"]["layers_0"]["forward"]
    for wrong, match in [
        ({"gates": variables["gates"], "out": variables["out"]}, "params/layers_0/forward must have scale"),
        (variables | {"bias": jnp.zeros(3)}, "params/layers_0/forward must not have bias"),
    ]:
        given = {"params": {"layers_0": {"forward": wrong}}}
        with pytest.raises(ValueError, match=match):
            layer.model(given)
        with pytest.raises(Exception, match=match):
            layer.apply(given, inputs())
    with pytest.raises(ValueError, match=r"params must have \['layers_0/forward'\] alone"):
        layer.model({"params": {"layers_0": {"forward": variables, "backward": variables}}})
    nnx_layer = rnn("nnx", OWN["joined"])
    with pytest.raises(ValueError, match=r"inputs must have shape .* = \(3, 5, 2\), got \(3, 5, 7\)"):
        nnx_layer(jnp.ones((BATCH, TIME, 7)))
    with pytest.raises(ValueError, match=r"x_t must have shape .* = \(3, 2\), got \(3, 7\)"):
        nnx_layer.step(jnp.zeros((BATCH, FEATURES)), jnp.ones((BATCH, 7)))


def test_nnx_modes_and_transforms_with_any_cell():
    """Split and merged, in evaluation, seen by `nnx.view`; dropout between layers needs its stream."""
    layer = gru_jax.nnx.RNN(OWN["heads"], IN_FEATURES, FEATURES, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    x = inputs()
    first, second = layer(x), layer(x)
    assert (first != second).any()
    calm = layer(x, deterministic=True)
    assert_close(nnx.view(layer, deterministic=True)(x), calm, 0)
    layer.eval()
    assert_close(nnx.jit(lambda layer, x: layer(x))(layer, x), calm)
    graph, state = nnx.split(layer)
    assert_close(nnx.merge(graph, state)(x), calm, 0)
    with pytest.raises(ValueError, match="rngs must have a stream 'dropout'"):
        gru_jax.nnx.RNN(OWN["heads"], IN_FEATURES, FEATURES, num_layers=2, dropout=0.5, rngs=nnx.Rngs(params=0))


@pytest.mark.long
def test_linen_transforms_with_any_cell():
    kind = linen.vmap(
        gru_jax.linen.RNN, in_axes=None, axis_size=2, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    ensemble, x = kind(OWN["heads"], FEATURES, param_dtype=jnp.float64), inputs()
    variables = ensemble.init(KEY, x)
    one = gru_jax.linen.RNN(OWN["heads"], FEATURES)
    expected = [one.apply(jax.tree.map(lambda leaf, i=i: leaf[i], variables), x) for i in range(2)]
    assert_close(ensemble.apply(variables, x), jnp.stack(expected))
    assert (expected[0] != expected[1]).any()
    rematerialised = linen.remat(gru_jax.linen.RNN)(OWN["heads"], FEATURES)
    own = jax.tree.map(lambda leaf: leaf[0], variables)
    grads = [jax.grad(lambda v, m=m: jnp.sum(m.apply(v, x) ** 2))(own) for m in (one, rematerialised)]
    assert_close(grads[1], grads[0])


def test_signatures_show_every_option():
    fields = {field.name for field in dataclasses.fields(Options)}
    for kind in (gru_jax.nnx.RNN, gru_jax.nnx.GRU):
        parameters_ = inspect.signature(kind.__init__).parameters
        assert fields <= parameters_.keys()
        assert parameters_["num_layers"].default == 1
    assert {"gate_fn", "reset_after", "update_bias_init"} <= parameters_.keys()
    for kind in (gru_jax.linen.RNN, gru_jax.linen.GRU):
        assert fields <= {field.name for field in dataclasses.fields(kind)}


@pytest.mark.long
def test_an_ensemble_and_a_checkpoint_of_any_cell_in_nnx(tmp_path):
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def ensemble(rngs):
        return gru_jax.nnx.RNN(OWN["clocked"], IN_FEATURES, FEATURES, rngs=rngs)

    models, x = ensemble(nnx.Rngs(0)), inputs().astype(jnp.float32)
    run = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
    graph, states = nnx.split(models)
    each = [nnx.merge(graph, jax.tree.map(lambda leaf, i=i: leaf[i], states)) for i in range(2)]
    assert_close(run(models, x), jnp.stack([model(x) for model in each]), 1e-6)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(each[0]))
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", nnx.state(each[1]))
    nnx.update(each[1], restored)
    assert_close(each[1](x), each[0](x), 0)


def test_importing_a_layer_imports_no_converter():
    code = (
        "import sys, gru_jax.nnx, gru_jax.linen\n"
        "assert not [name for name in sys.modules if name.startswith('gru_jax.convert')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Inputs of integers -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Embedding(CellBase):
    """Its inputs are rows of a table."""

    def init(self, key, in_features, features, /):
        return jax.random.normal(key, (7, features))

    def initial_state(self, params, batch, dtype, /):
        return jnp.zeros((*batch, params.shape[-1]), dtype)

    def step(self, params, h, x, /):
        return (h + params[x[..., 0]]) / 2


@each_api
def test_inputs_of_integers_stay_so_and_outputs_are_none(api):
    x, options = jax.random.randint(KEY, (BATCH, TIME, 1), 0, 7), {"features": FEATURES, "dtype": jnp.bfloat16}
    if api == "nnx":
        layer = Layer(gru_jax.nnx.RNN(Embedding(), 1, rngs=nnx.Rngs(0), **options))
    else:
        module = gru_jax.linen.RNN(Embedding(), **options)
        layer = Layer(module, module.init(KEY, x))
    outputs = layer(x)
    carry, first = layer.step(layer.initialize_carry((BATCH, 1)), x[:, 0])
    assert (outputs.dtype, first.dtype, carry.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    (table,) = layer.params
    assert_close(first, (table.astype(jnp.bfloat16)[x[:, 0, 0]] / 2).astype(jnp.bfloat16), 1e-2)
    assert_close(outputs[:, 0], first, 0)
