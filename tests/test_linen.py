"""The linen modules: Flax's checkpoints and initial values, options of the layer, lifted transforms."""

import functools

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx

import gru_jax
from gru_jax.linen import GRU, RNN, GRUCell
from tests.sequences import (
    BATCH,
    FEATURES,
    IN_FEATURES,
    LENGTHS,
    MASK,
    TIME,
    assert_close,
    inputs,
    normal,
    random_bias,
    random_kernel,
)

KEY = jax.random.key(0)
FLOAT64 = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64}
LENGTH_ARRAY = jnp.array(LENGTHS)


def make(**options):
    """A layer in float64 whose biases are not zero."""
    return GRU(**{"features": FEATURES, **FLOAT64, **options})


def flax_cell():
    return nn.GRUCell(FEATURES, **FLOAT64)


@functools.cache
def initialised(**options):
    layer = make(**options)
    return layer, jax.jit(layer.init)(KEY, inputs())


def with_gradient(module, variables, x, **call):
    """(carry, outputs) of a module, and the gradient of a fixed function of them, padded outputs left out."""
    weight = normal(9, BATCH, TIME, 1) * (MASK[..., None] if "seq_lengths" in call else 1)

    @jax.jit
    def run(variables, x):
        def loss(variables, x):
            carry, outputs = module.apply(variables, x, return_carry=True, **call)
            return jnp.sum(weight * outputs**2) + sum(jnp.sum(h**3) for h in jax.tree.leaves(carry)), (carry, outputs)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, x)

    grads, (carry, outputs) = run(variables, x)
    return carry, outputs * (weight != 0), grads


# --- Flax's checkpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [{}, {"seq_lengths": LENGTH_ARRAY}], ids=["whole", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_checkpoint_of_flax_gives_the_same_outputs_and_gradients(bidirectional, call):
    x = inputs()
    flax = nn.Bidirectional(nn.RNN(flax_cell()), nn.RNN(flax_cell())) if bidirectional else nn.RNN(flax_cell())
    variables = jax.jit(flax.init)(KEY, x)
    assert_close(
        with_gradient(make(bidirectional=bidirectional), variables, x, **call),
        with_gradient(flax, variables, x, **call),
    )


def test_stacked_checkpoint_holds_flax_s_layers():
    layer, variables = initialised(num_layers=2, bidirectional=True)
    flax, x, carry = nn.Bidirectional(nn.RNN(flax_cell()), nn.RNN(flax_cell()), return_carry=True), inputs(), ()
    assert set(variables["params"]) == {"layers_0", "layers_1"}
    for i in range(2):
        part = {"params": variables["params"][f"layers_{i}"]}
        assert jax.tree.map(jnp.shape, part) == jax.tree.map(jnp.shape, jax.eval_shape(flax.init, KEY, x))
        states, x = jax.jit(flax.apply)(part, x)
        carry += states
    assert_close(
        jax.jit(layer.apply, static_argnames="return_carry")(variables, inputs(), return_carry=True), (carry, x)
    )


def test_the_same_key_draws_flax_s_parameters():
    cell, carry, x = GRUCell(FEATURES), jnp.zeros((BATCH, FEATURES), jnp.float32), inputs().astype(jnp.float32)
    assert_close(cell.init(KEY, carry, x[:, 0]), nn.GRUCell(FEATURES).init(KEY, carry, x[:, 0]), 0)
    assert_close(GRU(FEATURES).init(KEY, x), nn.RNN(nn.GRUCell(FEATURES)).init(KEY, x), 0)


@pytest.mark.parametrize("reset_after", [True, False])
def test_cells_in_flax_s_rnn_and_bidirectional(reset_after):
    def rnn():
        return nn.RNN(GRUCell(FEATURES, reset_after=reset_after, **FLOAT64))

    layer, variables = initialised(bidirectional=True, reset_after=reset_after)
    call = {"seq_lengths": LENGTH_ARRAY}
    flax = nn.Bidirectional(rnn(), rnn())
    assert jax.tree.map(jnp.shape, jax.eval_shape(flax.init, KEY, inputs())) == jax.tree.map(jnp.shape, variables)
    assert_close(with_gradient(layer, variables, inputs(), **call), with_gradient(flax, variables, inputs(), **call))


def test_trees_without_some_biases():
    _, variables = initialised(reset_after=False)
    assert set(variables["params"]["cell"]["hn"]) == {"kernel"}
    assert set(variables["params"]["cell"]["in"]) == {"kernel", "bias"}
    _, variables = initialised(use_bias=False)
    assert {frozenset(gate) for gate in variables["params"]["cell"].values()} == {frozenset({"kernel"})}


# --- The options of the layer -----------------------------------------------------------------------------------------


def test_carry_of_a_cell():
    shape = (BATCH, IN_FEATURES)
    assert_close(GRUCell(FEATURES).initialize_carry(None, shape), jnp.zeros((BATCH, FEATURES)))
    drawn = GRUCell(FEATURES, carry_init=nn.initializers.normal(1.0)).initialize_carry(KEY, shape)
    assert_close(drawn, nn.GRUCell(FEATURES, carry_init=nn.initializers.normal(1.0)).initialize_carry(KEY, shape))


# --- In the place of Flax's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [FEATURES, FEATURES + 2])
def test_a_cell_is_as_wide_as_its_carry(width):
    """As in Flax, whose examples have cells of other features; in its RNN too."""
    x = inputs()
    start = normal(5, BATCH, width)
    ours, flax = GRUCell(FEATURES, **FLOAT64), flax_cell()
    variables = flax.init(KEY, start, x[:, 0])
    assert jax.tree.structure(ours.init(KEY, start, x[:, 0])) == jax.tree.structure(variables)
    assert_close(ours.init(KEY, start, x[:, 0]), variables, 0)
    assert_close(ours.apply(variables, start, x[:, 0]), flax.apply(variables, start, x[:, 0]))
    expected = nn.RNN(flax).apply({"params": {"cell": variables["params"]}}, x, initial_carry=start)
    for rnn in (nn.RNN(ours), RNN(ours)):
        got = jax.jit(rnn.apply)({"params": {"cell": variables["params"]}}, x, initial_carry=start)
        assert_close(got, expected)


@pytest.mark.parametrize(
    ("carry", "x"), [((4,), (3, 2)), ((1, 4), (3, 2)), ((3, 4), (2,)), ((5, 3, 4), (3, 2)), ((4,), (2,))], ids=str
)
def test_batch_axes_of_a_cell_broadcast(carry, x):
    carry, x = normal(0, *carry), normal(1, *x)
    variables = nn.GRUCell(4, **FLOAT64).init(KEY, carry, x)
    expected = nn.GRUCell(4).apply(variables, carry, x)
    assert_close(GRUCell(4).apply(variables, carry, x), expected)
    cell = gru_jax.nnx.GRUCell(2, 4, rngs=nnx.Rngs(0))
    assert cell(carry, x)[0].shape == expected[0].shape


class Model(nn.Module):
    """One place where Flax's RNN may stand, with a name or without."""

    rnn: type
    cell: type
    place: str

    def setup(self):
        if self.place == "setup":
            self.encoder = self.rnn(self.cell(FEATURES, **FLOAT64))

    @nn.compact
    def __call__(self, x, lengths=None):
        def rnn(name=None, **options):
            return self.rnn(self.cell(FEATURES, **FLOAT64, name=name), **options)

        if self.place == "setup":
            return self.encoder(x, seq_lengths=lengths)
        if self.place == "named":
            return rnn("encoder", reverse=True)(x, seq_lengths=lengths)
        if self.place == "both ways":
            return nn.Bidirectional(rnn(), rnn())(x, seq_lengths=lengths)
        if self.place == "rematerialised":
            return nn.remat(self.rnn)(self.cell(FEATURES, **FLOAT64))(x, seq_lengths=lengths)
        return rnn(time_major=True, reverse=True, keep_order=True)(x.swapaxes(0, 1), seq_lengths=lengths).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("place", "lengths"),
    [
        *((place, LENGTH_ARRAY) for place in ("setup", "both ways", "rematerialised")),
        *(pytest.param(place, LENGTH_ARRAY, marks=pytest.mark.long) for place in ("compact", "named")),
        pytest.param("both ways", None, marks=pytest.mark.long),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_rnn_loads_a_model_s_checkpoint_unchanged(place, lengths):
    """With the outputs it had; and the gradient, where what runs it changes that."""
    x, weight = inputs(), 1 if lengths is None else MASK[..., None]
    flax, ours = Model(nn.RNN, nn.GRUCell, place), Model(RNN, GRUCell, place)

    @jax.jit
    def run():
        variables = flax.init(KEY, x)

        def loss(variables, x, model):
            outputs = model.apply(variables, x, lengths) * weight
            return jnp.sum(outputs**2), outputs

        results = jax.grad(loss, (0, 1), has_aux=True) if place == "rematerialised" else loss
        return [(model.init(KEY, x), results(variables, x, model)) for model in (flax, ours)]

    (drawn, expected), (ours_drawn, got) = run()
    assert_close(ours_drawn, drawn, 0)
    assert_close(got, expected)


def test_rnn_begins_with_the_carry_of_its_cell():
    cell = {"carry_init": nn.initializers.normal(1.0), **FLOAT64}
    flax, ours = nn.RNN(nn.GRUCell(FEATURES, **cell)), RNN(GRUCell(FEATURES, **cell))
    variables = flax.init(KEY, inputs())
    for call in ({}, {"init_key": jax.random.key(7)}):
        expected = flax.apply(variables, inputs(), return_carry=True, **call)
        assert_close(ours.apply(variables, inputs(), return_carry=True, **call), expected)


def test_rnn_takes_masks_and_resets_as_the_layer_does():
    layer, variables = initialised()
    given = {"mask": MASK, "resets": ~MASK, "reset_state": normal(3, FEATURES)}
    assert_close(RNN(GRUCell(FEATURES)).apply(variables, inputs(), **given), layer.apply(variables, inputs(), **given))
    drawn = RNN(GRUCell(FEATURES, carry_init=nn.initializers.normal(1.0)))
    with pytest.raises(ValueError, match="reset_state must be given with resets where carry_init is not zeros"):
        drawn.apply(variables, inputs(), resets=MASK)


# --- Dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_needs_its_stream_only_when_it_drops():
    layer, variables = initialised(num_layers=2, dropout=0.5)
    plain = jax.jit(make(num_layers=2).apply)(variables, inputs())
    assert_close(jax.jit(make(num_layers=2, dropout=0.5, deterministic=True).apply)(variables, inputs()), plain)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        layer.apply(variables, inputs())


def test_rnn_of_a_cell_is_one_layer_of_it():
    """Options that the cell has are not said twice; those of sequences are the layer's, recurrent dropout too."""
    cell = GRUCell(FEATURES)
    for options, match in [
        ({"cell": nn.GRUCell(FEATURES)}, "cell must be one of gru_jax.cells or a gru_jax.linen.GRUCell, got GRUCell"),
        ({"num_layers": 2}, "num_layers must be 1 with a GRUCell, which is one cell, got 2"),
        ({"features": 3}, "features must be None with a GRUCell"),
        ({"dtype": jnp.bfloat16}, "dtype must be that of the GRUCell, None, got"),
    ]:
        with pytest.raises((TypeError, ValueError), match=match):
            RNN(**{"cell": cell, **options})
    layer, variables = initialised(recurrent_dropout=0.5)
    rnn = RNN(cell, recurrent_dropout=0.5)
    given = {"rngs": {"dropout": KEY}}
    assert_close(rnn.apply(variables, inputs(), **given), layer.apply(variables, inputs(), **given))
    assert (rnn.apply(variables, inputs(), **given) != rnn.apply(variables, inputs(), deterministic=True)).any()


def test_outputs_of_any_cell_stay_beside_their_inputs():
    """Unless `keep_order` is False, as it is in Flax."""
    layer = RNN(gru_jax.cells.LSTM(), FEATURES, reverse=True)
    variables = layer.init(KEY, inputs())
    forward = RNN(gru_jax.cells.LSTM(), FEATURES).apply(variables, inputs()[:, ::-1])
    assert_close(layer.apply(variables, inputs()), forward[:, ::-1], 1e-6)
    assert_close(layer.apply(variables, inputs(), keep_order=False), forward, 1e-6)
    assert_close(layer.apply(variables, inputs()[:, ::-1], reverse=False), forward, 1e-6)


# --- Transforms -------------------------------------------------------------------------------------------------------


def test_ensemble_by_nn_vmap():
    ensemble = nn.vmap(
        GRU, in_axes=None, axis_size=3, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}
    )(FEATURES, num_layers=2, dropout=0.5, **FLOAT64)
    x = inputs()
    variables = ensemble.init({"params": KEY, "dropout": KEY}, x)
    layer = GRU(FEATURES, num_layers=2, deterministic=True)
    each = [layer.apply(jax.tree.map(lambda a, i=i: a[i], variables), x) for i in range(3)]
    assert (each[0] != each[1]).any()
    dropped = ensemble.apply(variables, x, rngs={"dropout": KEY})
    assert dropped.shape == (3, BATCH, TIME, FEATURES)
    calm = nn.vmap(GRU, in_axes=None, axis_size=3, variable_axes={"params": 0})(FEATURES, num_layers=2)
    assert_close(calm.apply(variables, x), jnp.stack(each))


def test_nn_scan_of_the_cell_over_time():
    layer, variables = initialised(return_carry=True)
    scanned = nn.scan(GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
    cell_variables = {"params": variables["params"]["cell"]}
    zero = jnp.zeros((BATCH, FEATURES))
    assert_close(scanned(FEATURES).apply(cell_variables, zero, inputs()), jax.jit(layer.apply)(variables, inputs()))


def test_nn_scan_over_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return GRU(FEATURES, recurrent_dropout=0.2, name="gru", **FLOAT64)(x), None

    deep = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=2)()
    x = normal(0, BATCH, TIME, FEATURES)
    (expected, _), variables = deep.init_with_output({"params": KEY, "dropout": KEY}, x, None)
    assert expected.shape == x.shape
    calm = GRU(FEATURES)
    layers = [jax.tree.map(lambda a, i=i: a[i], variables["params"]["gru"]) for i in range(2)]
    stacked = GRU(FEATURES, num_layers=2).apply({"params": {f"layers_{i}": p for i, p in enumerate(layers)}}, x)
    assert_close(calm.apply({"params": layers[1]}, calm.apply({"params": layers[0]}, x)), stacked)
    assert (expected != stacked).any()


@pytest.mark.parametrize("policy", [None, gru_jax.save_states])
def test_nn_remat(policy):
    options = {"num_layers": 2, "bidirectional": True, "return_carry": True}
    layer, variables = initialised(**options)
    remat = nn.remat(GRU, policy=policy)(FEATURES, param_dtype=jnp.float64, **options)

    def gradient(module):
        return jax.jit(jax.grad(lambda v, x: jnp.sum(module.apply(v, x)[1] ** 2), argnums=(0, 1)))(variables, inputs())

    assert_close(gradient(remat), gradient(layer))


def test_training_reduces_the_loss():
    layer, variables = initialised(num_layers=2, recurrent_dropout=0.1)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(variables, state, key):
        def loss(variables):
            return jnp.sum(layer.apply(variables, inputs(), rngs={"dropout": key}) ** 2)

        value, grads = jax.value_and_grad(loss)(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    state, values = optimizer.init(variables), []
    for i in range(20):
        variables, state, value = train(variables, state, jax.random.key(i))
        values.append(value)
    assert values[-1] < 0.5 * values[0]


def test_orbax_restores_parameters(tmp_path):
    layer, variables = initialised(num_layers=2, bidirectional=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", variables)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "params", jax.tree.map(jnp.zeros_like, variables))
    assert_close(restored, variables, 0)
    run = jax.jit(layer.apply)
    assert_close(run(restored, inputs()), run(variables, inputs()), 0)


# --- Precision and initial values -------------------------------------------------------------------------------------


def test_partitioning_reaches_the_parameters():
    names = ("in", "hidden")
    layer = make(kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), names))
    variables = jax.eval_shape(layer.init, KEY, inputs())
    assert nn.get_partition_spec(variables)["params"]["cell"]["in"]["kernel"] == jax.sharding.PartitionSpec(*names)
