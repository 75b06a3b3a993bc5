"""The nnx modules: parity with Flax's own, options of the layer, transforms, checkpoints, errors."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import gru_jax
from gru_jax.nnx import GRU, GRUCell
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


def make(seed=0, **options):
    """A layer in float64 whose biases are not zero."""
    options = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64, **options}
    return GRU(**{"in_features": IN_FEATURES, "features": FEATURES, "rngs": nnx.Rngs(seed), **options})


def make_cell(seed=0, **options):
    options = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64, **options}
    return GRUCell(IN_FEATURES, FEATURES, rngs=nnx.Rngs(seed), **options)


def assign(cell, params):
    """Gives a cell the parameters of a `gru_jax.Params`."""
    for name, value in params._asdict().items():
        getattr(cell, name)[...] = value.astype(jnp.float64)


def flax_twin(cell):
    """Flax's own cell with the weights of ours, and ours without the bias that Flax's lacks."""
    twin = nnx.GRUCell(IN_FEATURES, FEATURES, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin.dense_i.kernel[...], twin.dense_i.bias[...] = cell.kernel[...], cell.bias[...]
    twin.dense_h.kernel[...] = cell.recurrent_kernel[...]
    cell.recurrent_bias[...] = jnp.zeros(FEATURES)
    return twin


@nnx.jit
def loss(model, x):
    return jnp.sum(model(x) ** 2)


# --- Parity with Flax -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_layer_and_its_gradient_are_those_of_flax(lengths):
    layer, x = make(), inputs()
    reference = nnx.RNN(flax_twin(layer.cells[0]))
    weight = normal(1, BATCH, TIME, FEATURES) * (1 if lengths is None else MASK[..., None])
    lengths = None if lengths is None else jnp.array(lengths)

    @nnx.jit
    @nnx.value_and_grad(argnums=(0, 1), has_aux=True)
    def run(model, x):
        carry, outputs = model(x, seq_lengths=lengths, return_carry=True)
        return jnp.sum(weight * outputs) + jnp.sum(carry**2), (carry, outputs)

    (value, (carry, outputs)), (grads, grad_x) = run(layer, x)
    (value_flax, (carry_flax, outputs_flax)), (grads_flax, grad_x_flax) = run(reference, x)
    assert_close((value, carry, grad_x), (value_flax, carry_flax, grad_x_flax))
    assert_close(outputs, outputs_flax if lengths is None else outputs_flax * MASK[..., None])
    ours, flax = grads["cells"][0], grads_flax["cell"]
    assert_close(ours["kernel"][...], flax["dense_i"]["kernel"][...])
    assert_close(ours["bias"][...], flax["dense_i"]["bias"][...])
    assert_close(ours["recurrent_kernel"][...], flax["dense_h"]["kernel"][...])


def test_cell_is_flax_s_cell():
    cell = make_cell()
    twin, carry, x = flax_twin(cell), normal(0, BATCH, FEATURES), normal(1, BATCH, IN_FEATURES)
    assert_close(cell(carry, x), twin(carry, x))
    assert isinstance(cell, nnx.RNNCellBase)
    assert cell.num_feature_axes == twin.num_feature_axes
    ours, flax = (inspect.signature(c.__init__).parameters for c in (GRUCell, nnx.GRUCell))
    assert list(ours)[: len(flax)] == list(flax)
    assert [p.kind for p in ours.values()][: len(flax)] == [p.kind for p in flax.values()]


@pytest.mark.parametrize("reset_after", [True, False])
def test_cell_in_flax_s_rnn(reset_after):
    layer, x = make(reset_after=reset_after), inputs()
    rnn = nnx.RNN(layer.cells[0], return_carry=True)
    run = nnx.jit(lambda model: model(x, seq_lengths=jnp.array(LENGTHS)))
    carry, outputs = run(rnn)
    layer.return_carry = True
    assert_close(run(layer), (carry, outputs * MASK[..., None]))


def test_cells_in_flax_s_bidirectional():
    layer, x = make(bidirectional=True), inputs()
    run = nnx.jit(lambda model: model(x, seq_lengths=jnp.array(LENGTHS), return_carry=True))
    carry, outputs = run(nnx.Bidirectional(*map(nnx.RNN, layer.cells)))
    assert_close(run(layer), (carry, outputs * MASK[..., None]))


# --- The options of the layer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reset_after", [False, True])
def test_stack_is_the_composition_of_unroll(reset_after, bidirectional):
    layer = make(num_layers=2, bidirectional=bidirectional, reset_after=reset_after, return_carry=True)
    x = inputs()
    params = [cell.params for cell in layer.cells]
    lengths = jnp.array(LENGTHS)
    carry, outputs = composed(
        gru_jax.GRU(reset_after), params, x.swapaxes(0, 1), bidirectional=bidirectional, lengths=lengths
    )
    assert_close(layer(x, seq_lengths=lengths), (carry, outputs.swapaxes(0, 1)))


def test_layouts_agree():
    layer, x = make(bidirectional=True, return_carry=True), inputs(batch=(2, BATCH))
    mask, resets = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 2, BATCH, TIME))
    carry, outputs = layer(x, mask=mask, resets=resets)
    assert outputs.shape == (2, BATCH, TIME, 2 * FEATURES)
    major = make(bidirectional=True, return_carry=True, time_major=True)
    carry_major, outputs_major = major(
        jnp.moveaxis(x, -2, 0), mask=jnp.moveaxis(mask, -1, 0), resets=jnp.moveaxis(resets, -1, 0)
    )
    assert_close((carry_major, jnp.moveaxis(outputs_major, 0, -2)), (carry, outputs))
    carry_one, outputs_one = layer(x[1, 2], mask=mask[1, 2], resets=resets[1, 2])
    assert_close((carry_one, outputs_one), (tuple(h[1, 2] for h in carry), outputs[1, 2]))


def test_mask_and_lengths_agree():
    layer, x = make(num_layers=2, bidirectional=True, return_carry=True), inputs()
    assert_close(layer(x, mask=jnp.asarray(MASK)), layer(x, seq_lengths=jnp.array(LENGTHS)))


def test_masked_inputs_reach_nothing():
    layer, x = make(num_layers=2, bidirectional=True), inputs()
    poisoned = jnp.where(MASK[..., None], x, jnp.nan)
    run = nnx.value_and_grad(lambda model, x: jnp.sum(model(x, mask=jnp.asarray(MASK)) ** 2))
    assert_close(run(layer, poisoned), run(layer, x))


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (2, True)])
def test_resets_run_every_episode_on_its_own(num_layers, bidirectional):
    layer, x = make(num_layers=num_layers, bidirectional=bidirectional), inputs(batch=())
    for flags in ([0, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]):
        resets = jnp.array(flags, bool)
        assert_close(layer(x, resets=resets), by_episode(layer, x, resets))


def test_initial_carry_continues_a_sequence():
    layer, x = make(num_layers=2, return_carry=True), inputs()
    carry, first = layer(x[:, :3])
    carry, second = layer(x[:, 3:], initial_carry=carry)
    assert_close((carry, jnp.concatenate([first, second], axis=1)), layer(x))


def test_zero_carry_is_the_default():
    x = inputs()
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        layer = make(return_carry=True, **options)
        zero = layer.initialize_carry((BATCH, IN_FEATURES))
        assert_close(layer(x, initial_carry=zero), layer(x))
        assert jax.tree.structure(zero) == jax.tree.structure(layer(x)[0])


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


def test_recurrent_dropout_is_one_mask_per_sequence_and_call():
    layer = GRU(40, 40, recurrent_dropout=0.5, activation_fn=identity, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    assign(layer.cells[0], counting(40))
    x = jnp.zeros((30, TIME, 40))
    run = nnx.jit(lambda model, x: model(x))
    first, second = run(layer, x), run(layer, x)
    assert_one_mask_per_sequence(first, 0.5)
    assert_one_mask_per_sequence(second, 0.5)
    assert (first != second).any()
    layer.eval()
    assert_close(run(layer, x), jnp.broadcast_to(jnp.arange(1.0, TIME + 1)[:, None], x.shape))


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


def test_masks_are_drawn_outside_the_loop():
    layer = make(num_layers=2, dropout=0.5, recurrent_dropout=0.5, method="scan")
    jaxpr = jax.make_jaxpr(lambda x, key: layer(x, rngs=key))(inputs(), jax.random.key(0)).jaxpr
    bodies = list(scan_bodies(jaxpr))
    assert "random_bits" in str(jaxpr)
    assert len(bodies) == 2
    assert not any("random" in str(body) for body in bodies)


def test_dropout_between_layers_is_fresh_for_every_element():
    layer = GRU(40, 40, num_layers=2, dropout=0.25, activation_fn=identity, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    for cell in layer.cells:
        assign(cell, copying(40))
    x = jnp.ones((30, TIME, 40))
    outputs = layer(x)
    kept = np.asarray(outputs != 0)
    np.testing.assert_allclose(outputs[kept], 4 / 3)
    assert abs(kept.mean() - 0.75) < 0.03
    assert (kept[:, 1:] != kept[:, :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.03)
    assert (layer(x) != outputs).any()
    assert_close(layer(x, deterministic=True), x)


def test_last_layer_is_not_dropped():
    x = inputs()
    assert_close(make(dropout=0.5)(x), make()(x))
    assert not jax.tree.leaves(nnx.state(make(dropout=0.5), nnx.RngState))


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


# --- Precision and initial values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"dtype": jnp.bfloat16}, {"param_dtype": jnp.bfloat16}])
def test_bfloat16_keeps_its_state_in_float32(options):
    x = inputs().astype(jnp.bfloat16)
    layer = make(**{"param_dtype": jnp.float32, **options}, return_carry=True, num_layers=2)
    carry, outputs = layer(x)
    assert outputs.dtype == jnp.bfloat16
    assert {h.dtype for h in carry} == {jnp.dtype("float32")}
    wide, wide_x = make(num_layers=2), x.astype(jnp.float64)
    for narrow, target in zip(layer.cells, wide.cells, strict=True):
        assign(target, narrow.params)
    np.testing.assert_allclose(np.asarray(outputs, np.float64), wide(wide_x), atol=3e-2)
    cell = layer.cells[0]
    carry, output = cell(cell.initialize_carry((BATCH, IN_FEATURES)), x[:, 0])
    assert (carry.dtype, output.dtype) == (jnp.float32, jnp.bfloat16)
    assert nnx.RNN(cell)(x).dtype == jnp.bfloat16


def test_dtype_is_promoted_or_forced():
    x = inputs().astype(jnp.float32)
    assert make()(x).dtype == jnp.float64
    assert make(param_dtype=jnp.float32)(x).dtype == jnp.float32
    assert make(dtype=jnp.float32)(inputs()).dtype == jnp.float32
    seen = []

    def promote(args, *, dtype):
        seen.append((len(args), dtype))
        return args

    make_cell(promote_dtype=promote, dtype=jnp.float32)(normal(0, FEATURES), normal(1, IN_FEATURES))
    assert seen == [(3, jnp.float32)] * 2


def test_initial_values():
    cell = GRUCell(200, 30, update_bias_init=gru_jax.initializers.chrono(100), rngs=nnx.Rngs(0))
    for kernel in jnp.split(cell.kernel[...], 3, axis=1):
        assert kernel.std() == pytest.approx(200**-0.5, rel=0.05)
    for kernel in jnp.split(cell.recurrent_kernel[...], 3, axis=1):
        assert_close(kernel @ kernel.T, jnp.eye(30), 1e-5)
    b_r, b_z, b_n = jnp.split(cell.bias[...], 3)
    assert_close((b_r, b_n, cell.recurrent_bias[...]), (jnp.zeros(30),) * 3)
    assert (b_z > 0).all()
    assert b_z.std() > 0
    plain = GRUCell(3, 4, rngs=nnx.Rngs(0))
    assert_close(plain.bias[...], jnp.zeros(12))
    assert {p.dtype for p in jax.tree.leaves(nnx.state(plain))} == {jnp.dtype("float32")}
    bare, before = make(use_bias=False).cells[0], make(reset_after=False).cells[0]
    assert bare.bias is None
    assert bare.recurrent_bias is None
    assert before.recurrent_bias is None
    kernels = [cell.kernel[...] for cell in make(bidirectional=True).cells]
    assert (kernels[0] != kernels[1]).all()


def test_metadata_reaches_the_variables():
    cell = make_cell(
        kernel_init=nnx.with_metadata(nnx.initializers.lecun_normal(), role="input"),
        recurrent_kernel_metadata={"role": "recurrent"},
        bias_metadata={"role": "bias"},
    )
    variables = (cell.kernel, cell.recurrent_kernel, cell.bias, cell.recurrent_bias)
    assert [variable.role for variable in variables] == ["input", "recurrent", "bias", "bias"]
    assert_close(cell.params, make_cell(kernel_init=nnx.initializers.lecun_normal()).params)


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"in_features": 2.0}, TypeError, "in_features must be an integer"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout must lie in"),
        ({"bidirectional": 1}, TypeError, "bidirectional must be a bool, got 1"),
        ({"time_major": None}, TypeError, "time_major must be a bool"),
        ({"reset_after": 1}, TypeError, "reset_after must be a bool"),
        ({"use_bias": 1}, TypeError, "use_bias must be a bool"),
        ({"gate_fn": "sigmoid"}, TypeError, "gate_fn must be callable"),
        ({"activation_fn": None}, TypeError, "activation_fn must be callable"),
        ({"kernel_init": 0.1}, TypeError, "kernel_init must be callable"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be a floating-point dtype"),
        ({"param_dtype": None}, TypeError, "param_dtype must be a floating-point dtype"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto'"),
        ({"use_bias": False, "update_bias_init": gru_jax.initializers.chrono(9)}, ValueError, "needs use_bias=True"),
        ({"rngs": jax.random.key(0)}, TypeError, "rngs must be a flax.nnx.Rngs"),
        ({"rngs": nnx.Rngs(dropout=0)}, ValueError, "rngs must have a stream 'params'"),
        ({"rngs": nnx.Rngs(params=0), "recurrent_dropout": 0.5}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_constructor_names_the_bad_argument(options, error, match):
    with pytest.raises(error, match=match):
        GRU(**{"in_features": IN_FEATURES, "features": FEATURES, "rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize(
    ("options", "call", "error", "match"),
    [
        ({}, {"inputs": jnp.ones(2)}, ValueError, r"inputs must have shape \(\*batch, time, in_features\), got \(2,\)"),
        ({}, {"inputs": jnp.ones((3, 5, 7))}, ValueError, r"inputs must have .* = \(3, 5, 2\), got \(3, 5, 7\)"),
        ({}, {"inputs": jnp.ones((3, 5, 2), complex)}, TypeError, "inputs must be real"),
        ({}, {"inputs": "text"}, TypeError, "inputs must be an array"),
        ({}, {"initial_carry": jnp.ones((3, 5))}, ValueError, r"initial_carry must .* = \(3, 4\), got \(3, 5\)"),
        (
            {"num_layers": 2},
            {"initial_carry": jnp.ones((2, 3, 4))},
            TypeError,
            "initial_carry must be a tuple of 2 arrays",
        ),
        (
            {"bidirectional": True},
            {"initial_carry": (jnp.ones((3, 4)),)},
            ValueError,
            "initial_carry must have 2 arrays",
        ),
        (
            {"bidirectional": True},
            {"initial_carry": (jnp.ones((3, 4)), jnp.ones(4))},
            ValueError,
            r"initial_carry\[1\] must have shape \(\*batch, features\) = \(3, 4\), got \(4,\)",
        ),
        ({}, {"seq_lengths": jnp.ones(3)}, TypeError, "seq_lengths must have an integer dtype"),
        ({}, {"seq_lengths": jnp.array([1, 2])}, ValueError, r"seq_lengths must have shape \(\*batch,\) = \(3,\)"),
        ({}, {"seq_lengths": jnp.array([1, 2, 6])}, ValueError, r"seq_lengths must lie in \[0, T\] = \[0, 5\]"),
        ({}, {"mask": jnp.ones((3, 5))}, TypeError, "mask must have dtype bool"),
        ({}, {"mask": jnp.ones((5, 3), bool)}, ValueError, r"mask must have shape \(\*batch, time\) = \(3, 5\)"),
        ({}, {"resets": jnp.ones(5, bool)}, ValueError, r"resets must have shape \(\*batch, time\) = \(3, 5\)"),
        (
            {"time_major": True},
            {"inputs": jnp.ones((5, 3, 2)), "resets": jnp.ones((3, 5), bool)},
            ValueError,
            r"resets must have shape \(time, \*batch\) = \(5, 3\)",
        ),
        (
            {"recurrent_dropout": 0.5},
            {"rngs": 0},
            TypeError,
            "rngs must be a flax.nnx.Rngs, an RngStream or a PRNG key",
        ),
        ({"recurrent_dropout": 0.5}, {"rngs": nnx.Rngs(params=0)}, ValueError, "rngs must have a stream 'dropout'"),
    ],
)
def test_call_names_the_bad_argument(options, call, error, match):
    with pytest.raises(error, match=match):
        make(**options)(**{"inputs": inputs(), **call})


def test_cell_names_the_bad_argument():
    cell, carry, x = make_cell(), jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, IN_FEATURES))
    with pytest.raises(ValueError, match=r"carry must have shape \(\*batch, features\) = \(3, 4\), got \(3, 2\)"):
        cell(x, x)
    with pytest.raises(ValueError, match=r"inputs must have shape \(\*batch, in_features\) = \(3, 2\), got \(3, 4\)"):
        cell(carry, carry)
    with pytest.raises(
        ValueError, match=r"input_shape must be \(\*batch, in_features\) with in_features = 2, got \(3,\)"
    ):
        cell.initialize_carry((3,))
    with pytest.raises(TypeError, match="input_shape must be a tuple"):
        make().initialize_carry(3)
    with pytest.raises(TypeError, match="carry_init must be callable"):
        make_cell(carry_init=0)
