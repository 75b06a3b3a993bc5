"""The linen modules: Flax's checkpoints and initial values, options of the layer, lifted transforms."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
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
    assert_one_mask_per_sequence,
    by_episode,
    composed,
    copying,
    counting,
    identity,
    inputs,
    normal,
    random_bias,
    random_kernel,
    scan_bodies,
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


def tree(params):
    """The tree of one cell from a `gru_jax.Params`."""
    kernels = dict(zip(("ir", "iz", "in"), jnp.split(params.kernel, 3, axis=1), strict=True))
    kernels |= dict(zip(("hr", "hz", "hn"), jnp.split(params.recurrent_kernel, 3, axis=1), strict=True))
    biases = dict(zip(("ir", "iz", "in"), jnp.split(params.bias, 3), strict=True)) | {"hn": params.recurrent_bias}
    return {name: {"kernel": k} | ({"bias": biases[name]} if name in biases else {}) for name, k in kernels.items()}


def packed(cell):
    """`gru_jax.Params` from the tree of one cell, written out."""
    kernel = jnp.concatenate([cell[name]["kernel"] for name in ("ir", "iz", "in")], axis=1)
    recurrent = jnp.concatenate([cell[name]["kernel"] for name in ("hr", "hz", "hn")], axis=1)
    bias = jnp.concatenate([cell[name]["bias"] for name in ("ir", "iz", "in")])
    return gru_jax.Params(kernel, recurrent, bias, cell["hn"].get("bias"))


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


def test_cell_is_flax_s_cell():
    carry, x = normal(0, BATCH, FEATURES), normal(1, BATCH, IN_FEATURES)
    ours = GRUCell(FEATURES, **FLOAT64)
    variables = flax_cell().init(KEY, carry, x)
    assert_close(ours.apply(variables, carry, x), flax_cell().apply(variables, carry, x))
    assert isinstance(ours, nn.RNNCellBase)
    assert ours.num_feature_axes == 1
    names = [list(inspect.signature(c).parameters) for c in (GRUCell, nn.GRUCell)]
    fields = [name for name in names[1] if name not in ("parent", "name")]
    assert names[0][: len(fields)] == fields


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


@pytest.mark.parametrize("reset_after", [False, True])
def test_stack_is_the_composition_of_unroll(reset_after):
    layer, variables = initialised(num_layers=2, reset_after=reset_after, return_carry=True)
    params = [packed(variables["params"][f"layers_{i}"]["cell"]) for i in range(2)]
    mask = jax.random.bernoulli(KEY, 0.7, (BATCH, TIME))
    carry, outputs = composed(
        gru_jax.GRU(reset_after), params, inputs().swapaxes(0, 1), bidirectional=False, mask=mask.T, resets=~mask.T
    )
    assert_close(jax.jit(layer.apply)(variables, inputs(), mask=mask, resets=~mask), (carry, outputs.swapaxes(0, 1)))


def test_time_major_agrees():
    layer, variables = initialised(bidirectional=True)
    x, resets = inputs(), jax.random.bernoulli(KEY, 0.3, (BATCH, TIME))
    major = make(bidirectional=True, time_major=True)
    outputs = jax.jit(major.apply)(variables, x.swapaxes(0, 1), resets=resets.T, seq_lengths=LENGTH_ARRAY)
    expected = jax.jit(layer.apply)(variables, x, resets=resets, seq_lengths=LENGTH_ARRAY)
    assert_close(outputs.swapaxes(0, 1), expected)
    assert_close(jax.jit(layer.apply)(variables, x[0], resets=resets[0]), expected[0])


def test_resets_run_every_episode_on_its_own():
    layer, variables = initialised(num_layers=2, bidirectional=True)
    x, resets = inputs(batch=()), jnp.array([False, True, False, False, True])
    run = jax.jit(layer.apply)
    assert_close(run(variables, x, resets=resets), by_episode(lambda part: run(variables, part), x, resets))


def test_initial_carry_continues_a_sequence():
    layer, variables = initialised(num_layers=2, return_carry=True)
    run, x = jax.jit(layer.apply), inputs()
    zero = layer.initialize_carry(None, (BATCH, IN_FEATURES))
    carry, first = run(variables, x[:, :3], initial_carry=zero)
    carry, second = run(variables, x[:, 3:], initial_carry=carry)
    assert_close((carry, jnp.concatenate([first, second], axis=1)), run(variables, x))


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
        *((place, LENGTH_ARRAY) for place in ("setup", "compact", "named", "both ways", "rematerialised")),
        ("both ways", None),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_rnn_loads_a_model_s_checkpoint_unchanged(place, lengths):
    x, weight = inputs(), 1 if lengths is None else MASK[..., None]
    flax, ours = Model(nn.RNN, nn.GRUCell, place), Model(RNN, GRUCell, place)
    variables = jax.jit(flax.init)(KEY, x)
    assert_close(jax.jit(ours.init)(KEY, x), variables, 0)

    def run(model):
        def loss(variables, x):
            outputs = model.apply(variables, x, lengths) * weight
            return jnp.sum(outputs**2), outputs

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x)

    assert_close(run(ours), run(flax))


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


def test_recurrent_dropout_is_one_mask_per_sequence_and_call():
    layer = GRU(40, recurrent_dropout=0.5, activation_fn=identity)
    variables, x = {"params": {"cell": tree(counting(40))}}, jnp.zeros((30, TIME, 40))
    run = jax.jit(lambda key: layer.apply(variables, x, rngs={"dropout": key}))
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert_one_mask_per_sequence(first, 0.5)
    assert_one_mask_per_sequence(second, 0.5)
    assert (first != second).any()
    assert_close(run(jax.random.key(0)), first)
    expected = jnp.broadcast_to(jnp.arange(1.0, TIME + 1)[:, None], x.shape)
    assert_close(layer.apply(variables, x, deterministic=True), expected)


def test_masks_are_drawn_outside_the_loop():
    layer, variables = initialised(num_layers=2, dropout=0.5, recurrent_dropout=0.5, method="scan")
    jaxpr = jax.make_jaxpr(lambda key: layer.apply(variables, inputs(), rngs={"dropout": key}))(KEY).jaxpr
    bodies = list(scan_bodies(jaxpr))
    assert "random_bits" in str(jaxpr)
    assert len(bodies) == 2
    assert not any("random" in str(body) for body in bodies)


def test_dropout_between_layers_is_fresh_for_every_element():
    layer = GRU(40, num_layers=2, dropout=0.25, activation_fn=identity)
    variables = {"params": {f"layers_{i}": {"cell": tree(copying(40))} for i in range(2)}}
    x = jnp.ones((30, TIME, 40))
    outputs = jax.jit(layer.apply)(variables, x, rngs={"dropout": KEY})
    kept = np.asarray(outputs != 0)
    np.testing.assert_allclose(outputs[kept], 4 / 3)
    assert abs(kept.mean() - 0.75) < 0.03
    assert (kept[:, 1:] != kept[:, :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.03)


def test_dropout_needs_its_stream_only_when_it_drops():
    layer, variables = initialised(num_layers=2, dropout=0.5)
    plain = jax.jit(make(num_layers=2).apply)(variables, inputs())
    assert_close(jax.jit(make(num_layers=2, dropout=0.5, deterministic=True).apply)(variables, inputs()), plain)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        layer.apply(variables, inputs())


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


@pytest.mark.parametrize("options", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}])
def test_bfloat16_keeps_its_state_in_float32(options):
    x = inputs().astype(jnp.bfloat16)
    options = {"param_dtype": jnp.float32, **options}
    layer = make(**options, return_carry=True)
    variables = layer.init(KEY, x)
    carry, outputs = layer.apply(variables, x)
    assert (carry.dtype, outputs.dtype) == (jnp.float32, jnp.bfloat16)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    np.testing.assert_allclose(np.asarray(outputs, np.float64), make().apply(wide, x.astype(jnp.float64)), atol=3e-2)
    assert nn.RNN(GRUCell(FEATURES, **options)).apply(variables, x).dtype == jnp.bfloat16


def test_initial_values():
    layer = GRU(30, num_layers=2, update_bias_init=gru_jax.initializers.chrono(100))
    params = layer.init(KEY, jnp.zeros((1, 200)))["params"]
    first = params["layers_0"]["cell"]
    for gate in "rzn":
        assert first["i" + gate]["kernel"].std() == pytest.approx(200**-0.5, rel=0.05)
        kernel = first["h" + gate]["kernel"]
        assert_close(kernel @ kernel.T, jnp.eye(30), 1e-5)
    assert_close((first["ir"]["bias"], first["in"]["bias"], first["hn"]["bias"]), (jnp.zeros(30),) * 3)
    assert (first["iz"]["bias"] > 0).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_partitioning_reaches_the_parameters():
    names = ("in", "hidden")
    layer = make(kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), names))
    variables = jax.eval_shape(layer.init, KEY, inputs())
    assert nn.get_partition_spec(variables)["params"]["cell"]["in"]["kernel"] == jax.sharding.PartitionSpec(*names)
