"""The nnx modules: parity with Flax's own, options of the layer, precision, initial values."""

import jax.numpy as jnp
import pytest
from flax import nnx

from tests.nnx_layers import make, make_cell
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


def test_mask_and_lengths_agree():
    layer, x = make(num_layers=2, bidirectional=True, return_carry=True), inputs()
    assert_close(layer(x, mask=jnp.asarray(MASK)), layer(x, seq_lengths=jnp.array(LENGTHS)))


def test_masked_inputs_reach_nothing():
    layer, x = make(num_layers=2, bidirectional=True), inputs()
    poisoned = jnp.where(MASK[..., None], x, jnp.nan)
    run = nnx.value_and_grad(lambda model, x: jnp.sum(model(x, mask=jnp.asarray(MASK)) ** 2))
    assert_close(run(layer, poisoned), run(layer, x))


# --- Precision and initial values -------------------------------------------------------------------------------------


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


def test_metadata_reaches_the_variables():
    cell = make_cell(
        kernel_init=nnx.with_metadata(nnx.initializers.lecun_normal(), role="input"),
        recurrent_kernel_metadata={"role": "recurrent"},
        bias_metadata={"role": "bias"},
    )
    variables = (cell.kernel, cell.recurrent_kernel, cell.bias, cell.recurrent_bias)
    assert [variable.role for variable in variables] == ["input", "recurrent", "bias", "bias"]
    assert_close(cell.params, make_cell(kernel_init=nnx.initializers.lecun_normal()).params)
