"""The nnx modules: parity with Flax's own, options of the layer, precision, initial values."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gru_jax
from gru_jax.nnx import GRUCell
from tests.nnx_layers import assign, make, make_cell
from tests.sequences import (
    BATCH,
    FEATURES,
    IN_FEATURES,
    LENGTHS,
    MASK,
    TIME,
    assert_close,
    by_episode,
    composed,
    inputs,
    normal,
)


def flax_twin(cell):
    """Flax's own cell with the weights of ours, and ours without the bias that Flax's lacks."""
    twin = nnx.GRUCell(IN_FEATURES, FEATURES, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin.dense_i.kernel[...], twin.dense_i.bias[...] = cell.kernel[...], cell.bias[...]
    twin.dense_h.kernel[...] = cell.recurrent_kernel[...]
    cell.recurrent_bias[...] = jnp.zeros(FEATURES)
    return twin


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
