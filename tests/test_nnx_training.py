"""The nnx modules in training: random numbers, transforms, checkpoints."""

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import gru_jax
from gru_jax.nnx import GRU
from tests.nnx_layers import assign, make, make_cell
from tests.sequences import (
    BATCH,
    FEATURES,
    IN_FEATURES,
    TIME,
    assert_close,
    counting,
    identity,
    inputs,
    normal,
)


@nnx.jit
def loss(model, x):
    return jnp.sum(model(x) ** 2)


# --- Random numbers ---------------------------------------------------------------------------------------------------


def test_without_dropout_there_is_no_random_state_and_nothing_mutates():
    layer, x = make(num_layers=2, bidirectional=True), inputs()
    assert not jax.tree.leaves(nnx.state(layer, nnx.RngState))
    expected = layer(x)
    # Closed over: any mutation would raise TraceContextError at another trace level.
    assert_close(jax.jit(lambda x: layer(x))(x), expected)
    assert_close(jax.vmap(lambda x: layer(x))(x), expected)
    jax.grad(lambda x: jnp.sum(layer(x)))(x)


@pytest.mark.parametrize("keep_rngs", [False, True])
def test_zero_carry_of_a_cell_draws_nothing(keep_rngs):
    cell, rngs = make_cell(keep_rngs=keep_rngs), nnx.Rngs(0)
    zero = cell.initialize_carry((BATCH, IN_FEATURES))
    assert_close(zero, jnp.zeros((BATCH, FEATURES)))
    assert zero.dtype == jnp.float64
    before = jax.tree.leaves(nnx.state((cell, rngs), nnx.RngCount))

    def carry(x):
        given = cell.initialize_carry(x.shape, rngs, nnx.initializers.zeros_init())
        return given + cell.initialize_carry(x.shape) + cell.initialize_carry(x.shape, rngs)

    x = normal(0, BATCH, IN_FEATURES)
    assert_close(jax.jit(carry)(x), zero)
    assert_close(jax.vmap(carry)(x), zero)
    assert_close(jax.grad(lambda x: jnp.sum(carry(x)))(x), jnp.zeros_like(x))
    assert_close(jax.tree.leaves(nnx.state((cell, rngs), nnx.RngCount)), before)


def test_random_carry_has_the_meaning_it_has_in_flax():
    cell = make_cell(carry_init=nnx.initializers.normal(1.0), keep_rngs=True)
    first, second = (cell.initialize_carry((BATCH, IN_FEATURES)) for _ in range(2))
    assert first.shape == (BATCH, FEATURES)
    assert (first != second).all()
    given = [cell.initialize_carry((BATCH, IN_FEATURES), nnx.Rngs(7)) for _ in range(2)]
    assert_close(*given)
    ones = cell.initialize_carry((BATCH, IN_FEATURES), nnx.Rngs(7).carry, nnx.initializers.ones_init())
    assert_close(ones, jnp.ones((BATCH, FEATURES)))
    with pytest.raises(ValueError, match="rngs must be given where carry_init is not zeros"):
        make_cell(carry_init=nnx.initializers.normal()).initialize_carry((BATCH, IN_FEATURES))


def test_every_layer_and_direction_has_its_own_recurrent_mask():
    layer = GRU(
        40,
        40,
        bidirectional=True,
        recurrent_dropout=0.5,
        activation_fn=identity,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    for cell in layer.cells:
        assign(cell, counting(40))
    (forward, backward), _ = layer(jnp.zeros((3, TIME, 40)), return_carry=True)
    assert (forward != backward).any()


def test_last_layer_is_not_dropped():
    x = inputs()
    with pytest.warns(UserWarning, match=r"dropout=0.5 drops nothing with num_layers=1"):
        layer = make(dropout=0.5)
    assert_close(layer(x), make()(x))
    assert not jax.tree.leaves(nnx.state(layer, nnx.RngState))


def test_eval_and_train_and_call_arguments():
    layer, x = make(num_layers=2, dropout=0.5, recurrent_dropout=0.5), inputs()
    model = nnx.Sequential(layer)
    plain = make(num_layers=2)(x)
    assert (model(x) != plain).any()
    model.eval()
    assert layer.deterministic
    assert_close(model(x), plain)
    assert (layer(x, deterministic=False) != plain).any()
    model.train()
    assert_close(layer(x, deterministic=True), plain)
    assert_close(nnx.view(model, deterministic=True)(x), plain)
    assert (model(x) != model(x)).any()
    for rngs in (
        lambda: nnx.Rngs(3),
        lambda: nnx.Rngs(dropout=3),
        lambda: nnx.Rngs(3).dropout,
        lambda: jax.random.key(3),
    ):
        assert_close(layer(x, rngs=rngs()), layer(x, rngs=rngs()))


# --- Transforms -------------------------------------------------------------------------------------------------------


@pytest.fixture
def random_layer():
    return make(num_layers=2, bidirectional=True, dropout=0.3, recurrent_dropout=0.3)


def test_nnx_jit_and_split_merge_draw_the_same(random_layer):
    x = inputs()
    graphdef, state = nnx.split(random_layer)

    @jax.jit
    def pure(state, x):
        model = nnx.merge(graphdef, state)
        return model(x), nnx.state(model)

    first, state = pure(state, x)
    second, _ = pure(state, x)
    run = nnx.jit(lambda model, x: model(x))
    assert_close(run(random_layer, x), first)
    assert_close(random_layer(x), second)
    assert (first != second).any()


def test_value_and_grad_agrees_with_differences(random_layer):
    random_layer.eval()
    x, cell = inputs(), random_layer.cells[2]
    value, grads = nnx.jit(nnx.value_and_grad(loss))(random_layer, x)
    assert value == pytest.approx(float(loss(random_layer, x)), rel=1e-12)
    for name in ("kernel", "recurrent_kernel", "bias", "recurrent_bias"):
        variable = getattr(cell, name)
        kept, direction = variable[...], normal(5, *variable[...].shape)
        ends = []
        for step in (1e-5, -1e-5):
            variable[...] = kept + step * direction
            ends.append(loss(random_layer, x))
        variable[...] = kept
        slope = jnp.sum(grads["cells"][2][name][...] * direction)
        assert slope == pytest.approx(float(ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_ensemble_by_nnx_vmap():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def ensemble(rngs):
        return make(rngs=rngs, num_layers=2, dropout=0.5)

    models, x = ensemble(nnx.Rngs(0)), inputs()
    assert models.cells[0].kernel.shape == (3, IN_FEATURES, 3 * FEATURES)
    run = nnx.vmap(lambda model, x: model(x), in_axes=(0, None))
    assert (run(models, x)[0] != run(models, x)[0]).any()
    models.eval()
    graphdef, states = nnx.split(models)
    each = [nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], states)) for i in range(3)]
    assert_close(run(models, x), jnp.stack([model(x) for model in each]))
    assert (each[0](x) != each[1](x)).any()
    grads = nnx.vmap(nnx.grad(loss), in_axes=(0, None))(models, x)
    assert_close(grads["cells"][0]["kernel"][...][2], nnx.grad(loss)(each[2], x)["cells"][0]["kernel"][...])


def test_nnx_scan_over_layers():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def layers(rngs):
        return make(in_features=FEATURES, rngs=rngs)

    models, x = layers(nnx.Rngs(0)), normal(0, BATCH, TIME, FEATURES)
    scanned = nnx.scan(lambda x, model: model(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, models)
    graphdef, states = nnx.split(models)
    for i in range(3):
        x = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], states))(x)
    assert_close(scanned, x)


@pytest.mark.parametrize("policy", [None, gru_jax.save_states])
def test_remat(random_layer, policy):
    random_layer.eval()
    x = inputs()
    remat = nnx.remat(lambda model, x: model(x), policy=policy)
    expected = nnx.grad(loss, argnums=(0, 1))(random_layer, x)
    got = nnx.grad(lambda model, x: jnp.sum(remat(model, x) ** 2), argnums=(0, 1))(random_layer, x)
    assert_close(jax.tree.leaves(got), jax.tree.leaves(expected))


def test_optimizer_reduces_the_loss():
    model, x = make(num_layers=2, recurrent_dropout=0.1), inputs()
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model, x)
        optimizer.update(model, grads)
        return value

    before = loss(model, x)
    for _ in range(20):
        train(model, optimizer)
    model.eval()
    assert loss(model, x) < 0.5 * before


def test_orbax_restores_weights_and_random_state(tmp_path, random_layer):
    x = inputs()
    graphdef, state = nnx.split(random_layer)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        other = make(1, num_layers=2, bidirectional=True, dropout=0.3, recurrent_dropout=0.3)
        restored = checkpointer.restore(tmp_path / "state", nnx.state(other))
    assert_close(nnx.merge(graphdef, restored)(x), random_layer(x))
