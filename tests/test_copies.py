"""Copies are what they are copies of: equal, as fast, saved and converted alike, however they were made."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import export
from jax._src import monitoring

import gru_jax
from gru_jax import activations, cells, convert, initializers

cloudpickle = pytest.importorskip("cloudpickle")

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "cloudpickle": lambda value: cloudpickle.loads(cloudpickle.dumps(value)),
}
VALUES = {
    "CUDNN": gru_jax.CUDNN,
    "CHO2014": gru_jax.CHO2014,
    "GOODFELLOW": gru_jax.GOODFELLOW,
    "relu": gru_jax.GRU(gate=jax.nn.hard_sigmoid, candidate=jax.nn.relu),
    "elman": cells.Elman(),
    "leaky": cells.Leaky(10.0, candidate=jax.nn.sigmoid),
    "chrono": initializers.chrono(100),
    "linen": gru_jax.linen.GRU(4, num_layers=2, update_bias_init=initializers.chrono(9)),
    "linen cell": gru_jax.linen.GRUCell(4),
}
SIGMOIDS = (jax.nn.sigmoid, jax.lax.logistic, nn.sigmoid, nnx.sigmoid, lambda x: jax.nn.sigmoid(x))
TANHS = (jnp.tanh, jax.nn.tanh, jax.lax.tanh, nn.tanh, nnx.tanh, np.tanh, jax.jit(lambda x: jnp.tanh(x)))


@jax.custom_jvp
def straight_through(x):
    return jax.nn.relu(x)


straight_through.defjvp(lambda primals, tangents: (jax.nn.relu(*primals), *tangents))
OTHERS = {
    "scaled": lambda x: jnp.tanh(2 * x),
    "by hand": lambda x: 1 / (1 + jnp.exp(-x)),
    "a tuple": lambda x: (jnp.tanh(x),),
    "cast": lambda x: jnp.tanh(x.astype(jnp.float32)).astype(x.dtype),
    "wrapped": functools.wraps(jax.nn.sigmoid)(lambda x: jax.nn.sigmoid(2 * x)),
    "own derivative": jax.custom_jvp(jnp.tanh),
    "rectified, with a slope of one": straight_through,
    "accuracy": functools.partial(jax.lax.tanh, accuracy=jax.lax.AccuracyMode.HIGHEST),
    "raises": lambda x: 1 / 0,
}


@pytest.mark.parametrize("clone", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_copy_is_equal(value, clone):
    twin = clone(value)
    assert twin == value
    assert hash(twin) == hash(value)


@pytest.mark.parametrize("function", SIGMOIDS)
def test_a_sigmoid_is_one_by_whatever_name(function):
    assert gru_jax.GRU(gate=function) == gru_jax.CUDNN
    assert gru_jax.GRU(gate=copy.deepcopy(function)) == gru_jax.CUDNN


@pytest.mark.parametrize("function", TANHS)
def test_a_tanh_is_one_by_whatever_name(function):
    assert gru_jax.GRU(candidate=function) == gru_jax.CUDNN
    assert gru_jax.GRU(candidate=copy.deepcopy(function)) == gru_jax.CUDNN


@pytest.mark.parametrize("clone", [copy.deepcopy, COPIES["cloudpickle"], lambda function: lambda x: function(x)])
def test_a_function_of_jax_is_known_by_whatever_copy(clone):
    for name, function in activations.FUNCTIONS.items():
        assert activations.canonical(clone(function)) == activations.Named(name)


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_other_functions_stay_as_they_are(function):
    assert activations.canonical(function) is function


@pytest.mark.parametrize("clone", [nnx.clone, *COPIES.values()])
def test_a_copied_layer_is_as_good(clone, tmp_path):
    layer, xs = gru_jax.nnx.GRU(3, 4, num_layers=2, rngs=nnx.Rngs(0)), jnp.ones((2, 5, 3))
    twin = clone(layer)
    assert twin.stack == layer.stack
    assert gru_jax.lowerings(lambda xs: twin(xs))(xs) == gru_jax.lowerings(lambda xs: layer(xs))(xs)
    np.testing.assert_array_equal(twin(xs), layer(xs))
    convert.save(tmp_path / "twin.safetensors", twin.model)
    assert convert.load(tmp_path / "twin.safetensors").stack == layer.stack
    for write in (convert.to_torch, convert.to_keras):
        jax.tree.map(np.testing.assert_array_equal, write(twin.model), write(layer.model))
    model = clone(layer.model) if clone is not nnx.clone else layer.model
    assert jax.tree.structure(model) == jax.tree.structure(layer.model)
    # A target network's moving average.
    averaged = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, nnx.state(layer), nnx.state(twin))
    jax.tree.map(np.testing.assert_array_equal, averaged, nnx.state(layer))
    assert nnx.graphdef(twin) == nnx.graphdef(layer)


def test_the_cell_within_flax_rnn_is_copied_too():
    rnn, xs = nnx.RNN(gru_jax.nnx.GRUCell(3, 4, rngs=nnx.Rngs(0))), jnp.ones((2, 5, 3), jnp.float32)
    twin = copy.deepcopy(rnn)
    assert twin.cell.equations == gru_jax.CUDNN
    np.testing.assert_array_equal(twin(xs), rnn(xs))


@pytest.fixture
def compiled():
    """A function that says how many programs were compiled since the fixture began."""
    durations = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            durations.append(duration)

    monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(durations)
    monitoring.unregister_event_duration_listener(listen)


MAKE = {
    "lecun and orthogonal": lambda: {
        "kernel_init": nnx.initializers.lecun_normal(),
        "recurrent_kernel_init": nnx.initializers.orthogonal(),
    },
    "chrono": lambda: {"update_bias_init": initializers.chrono(100)},
    "boxed": lambda: {"kernel_init": nnx.with_metadata(nnx.initializers.uniform(0.1), note="kept")},
    "of an array": lambda: {"bias_init": nnx.initializers.constant(np.arange(4.0))},
    "a lambda": lambda: {"bias_init": lambda key, shape, dtype: 0.1 * jax.random.normal(key, shape, dtype)},
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_remade_initializer_compiles_nothing(make, compiled):
    def cell():
        return gru_jax.nnx.GRUCell(3, 4, rngs=nnx.Rngs(0), **make())

    cell(), cell()
    before = compiled()
    for _ in range(5):
        cell()
    assert compiled() == before


def test_params_and_states_are_arguments_of_exported_functions():
    new = cells.DREAMER, cells.BlockGRU(2), cells.DiagonalGRU()
    for kind in (gru_jax.CUDNN, cells.LSTM(), cells.Leaky(), cells.MinGRU(), *new):
        params = kind.init(jax.random.key(0), 3, 4)
        xs, state = jnp.ones((5, 2, 3)), kind.initial_state(params, (2,))
        run = jax.jit(functools.partial(gru_jax.unroll, kind))
        again = export.deserialize(export.export(run)(params, xs, state).serialize())
        close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
        jax.tree.map(close, again.call(params, xs, state), run(params, xs, state))


def test_a_zero_carry_is_one_by_whatever_name():
    for init in (initializers.zeros, nnx.initializers.constant(0.0), lambda key, shape, dtype: jnp.zeros(shape, dtype)):
        cell = gru_jax.nnx.GRUCell(3, 4, carry_init=init, rngs=nnx.Rngs(0))
        assert not cell.initialize_carry((2, 3)).any()
    assert not initializers.is_zeros(lambda key, shape, dtype: jnp.arange(shape[-1], dtype=dtype))
