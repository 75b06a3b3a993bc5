"""The GRU of nnx and of linen alike: options of the layer, dropout, precision, initial values, Flax's cell."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import gru_jax
from tests.flax_layers import FLOAT64, KEY, call_cell, each_api, flax_cell, gru, of_params
from tests.sequences import (
    BATCH,
    FEATURES,
    IN_FEATURES,
    LENGTHS,
    TIME,
    assert_close,
    assert_one_mask_per_sequence,
    composed,
    copying,
    counting,
    identity,
    inputs,
    normal,
    scan_bodies,
)

IDENTITY = gru_jax.GRU(candidate=identity)
BOTH = {"num_layers": 2, "bidirectional": True}

# --- The options of the layer -----------------------------------------------------------------------------------------


@each_api
@pytest.mark.parametrize(("reset_after", "bidirectional"), [(True, False), (False, True)])
def test_stack_is_the_composition_of_unroll(api, reset_after, bidirectional):
    layer, x = gru(api, num_layers=2, bidirectional=bidirectional, reset_after=reset_after), inputs()
    mask = jax.random.bernoulli(KEY, 0.7, (BATCH, TIME))
    lengths = jnp.array(LENGTHS)

    @jax.jit
    def run():
        ours = layer(x, seq_lengths=lengths, mask=mask, return_carry=True)
        given = {"bidirectional": bidirectional, "lengths": lengths, "mask": mask.T}
        return ours, composed(gru_jax.GRU(reset_after), layer.params, x.swapaxes(0, 1), **given)

    ours, (carry, outputs) = run()
    assert_close(ours, (carry, outputs.swapaxes(0, 1)))


@each_api
def test_layouts_agree(api):
    """Time first or behind the batch, and with no batch axis or several."""
    layer, x = gru(api, bidirectional=True), inputs(batch=(2, BATCH))
    major = gru(api, bidirectional=True, time_major=True)
    mask, resets = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 2, BATCH, TIME))

    @jax.jit
    def run():
        moved = {"mask": jnp.moveaxis(mask, -1, 0), "resets": jnp.moveaxis(resets, -1, 0)}
        return (
            layer(x, mask=mask, resets=resets, return_carry=True),
            major(jnp.moveaxis(x, -2, 0), **moved, return_carry=True),
            layer(x[1, 2], mask=mask[1, 2], resets=resets[1, 2], return_carry=True),
        )

    (carry, outputs), (carry_major, outputs_major), one = run()
    assert outputs.shape == (2, BATCH, TIME, 2 * FEATURES)
    assert_close((carry_major, jnp.moveaxis(outputs_major, 0, -2)), (carry, outputs))
    assert_close(one, (tuple(h[1, 2] for h in carry), outputs[1, 2]))


@each_api
def test_initial_carry_continues_a_sequence(api):
    """And a zero carry is the default."""
    layer, x = gru(api, num_layers=2), inputs()
    zero = layer.initialize_carry((BATCH, IN_FEATURES))

    @jax.jit
    def run():
        carry, first = layer(x[:, :3], initial_carry=zero, return_carry=True)
        carry, second = layer(x[:, 3:], initial_carry=carry, return_carry=True)
        return (carry, jnp.concatenate([first, second], axis=1)), layer(x, return_carry=True)

    parts, whole = run()
    assert_close(parts, whole)
    assert jax.tree.structure(zero) == jax.tree.structure(whole[0])
    assert not any(state.any() for state in zero)


@each_api
def test_outputs_of_every_layer(api):
    """Those of a stack without the layers above, before dropout."""
    layer, x = gru(api, num_layers=3, bidirectional=True), inputs()
    dropped = gru(api, num_layers=3, bidirectional=True, dropout=0.5)

    @jax.jit
    def run():
        expected, xs = [], x.swapaxes(0, 1)
        for i in range(3):
            _, xs = composed(gru_jax.CUDNN, layer.params[2 * i : 2 * i + 2], xs, bidirectional=True)
            expected.append(xs.swapaxes(0, 1))
        every = layer(x, return_layers=True, return_carry=True)
        return every, expected, layer(x, return_carry=True), dropped(x, return_layers=True, key=KEY)

    (carry, outputs), expected, last, under_dropout = run()
    assert_close(list(outputs), expected)
    assert_close((carry, outputs[-1]), last)
    assert_close(under_dropout[0], outputs[0])
    assert (under_dropout[1] != outputs[1]).any()
    assert (under_dropout[0] != 0).all()


# --- Dropout ----------------------------------------------------------------------------------------------------------


@each_api
def test_recurrent_dropout_is_one_mask_per_sequence_and_call(api):
    layer, x = of_params(api, IDENTITY, [counting(40)], recurrent_dropout=0.5), jnp.zeros((30, TIME, 40))
    run = jax.jit(lambda key: layer(x, key=key))
    first, second = run(jax.random.key(0)), run(jax.random.key(1))
    assert_one_mask_per_sequence(first, 0.5)
    assert_one_mask_per_sequence(second, 0.5)
    assert (first != second).any()
    assert_close(run(jax.random.key(0)), first)
    expected = jnp.broadcast_to(jnp.arange(1.0, TIME + 1)[:, None], x.shape)
    assert_close(layer(x, deterministic=True), expected)


@each_api
def test_masks_are_drawn_outside_the_loop(api):
    layer = gru(api, num_layers=2, dropout=0.5, recurrent_dropout=0.5, method="scan")
    jaxpr = jax.make_jaxpr(lambda key: layer(inputs(), key=key))(KEY).jaxpr
    bodies = list(scan_bodies(jaxpr))
    assert "random_bits" in str(jaxpr)
    assert len(bodies) == 2
    assert not any("random" in str(body) for body in bodies)


@each_api
def test_dropout_between_layers_is_fresh_for_every_element(api):
    layer, x = of_params(api, IDENTITY, [copying(40)] * 2, dropout=0.25), jnp.ones((30, TIME, 40))
    run = jax.jit(lambda key: layer(x, key=key))
    outputs = run(KEY)
    kept = np.asarray(outputs != 0)
    np.testing.assert_allclose(outputs[kept], 4 / 3)
    assert abs(kept.mean() - 0.75) < 0.03
    assert (kept[:, 1:] != kept[:, :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.03)
    assert (run(jax.random.key(1)) != outputs).any()
    assert_close(layer(x, deterministic=True), x)


@each_api
def test_dropout_of_one_layer_warns(api):
    make = {
        "nnx": functools.partial(gru_jax.nnx.GRU, IN_FEATURES, FEATURES, rngs=nnx.Rngs(params=0)),
        "linen": functools.partial(gru_jax.linen.GRU, FEATURES),
    }[api]
    with pytest.warns(UserWarning, match=r"dropout=0.9 drops nothing with num_layers=1") as caught:
        layer = make(dropout=0.9)
    assert [warning.filename for warning in caught] == [__file__]
    x = jnp.ones((2, TIME, IN_FEATURES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither a call warns, nor does what drops something
        if api == "nnx":
            assert layer(x).shape == (2, TIME, FEATURES)  # without a stream for dropout
        else:
            variables = layer.init(jax.random.key(0), x)
            assert_close(layer.apply(variables, x), layer.apply(variables, x, deterministic=True), 0)
        make(recurrent_dropout=0.0)
        if api == "linen":
            make(num_layers=2, dropout=0.5)
            make(recurrent_dropout=0.5)


# --- Precision and initial values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api", "options"),
    [("nnx", {"dtype": jnp.bfloat16}), ("linen", {"param_dtype": jnp.bfloat16})],
    ids=["nnx", "linen"],
)
def test_bfloat16_keeps_its_state_in_float32(api, options):
    x = inputs().astype(jnp.bfloat16)
    layer = gru(api, **{"param_dtype": jnp.float32, **options}, num_layers=2)
    carry, outputs = jax.jit(lambda: layer(x, return_carry=True))()
    assert outputs.dtype == jnp.bfloat16
    assert {h.dtype for h in carry} == {jnp.dtype("float32")}
    wide = of_params(api, gru_jax.CUDNN, [jax.tree.map(lambda leaf: leaf.astype(jnp.float64), p) for p in layer.params])
    np.testing.assert_allclose(np.asarray(outputs, np.float64), wide(x.astype(jnp.float64)), atol=3e-2)
    cell, variables = flax_cell(api, **{"param_dtype": jnp.float32, **options})
    carry = jnp.zeros((BATCH, FEATURES), jnp.float32)
    carry, output = jax.eval_shape(lambda: call_cell(cell, variables, carry, x[:, 0]))
    assert (carry.dtype, output.dtype) == (jnp.float32, jnp.bfloat16)
    rnn = (
        nnx.RNN(cell) if api == "nnx" else lambda x: linen.RNN(cell).apply({"params": {"cell": variables["params"]}}, x)
    )
    assert rnn(x).dtype == jnp.bfloat16


@each_api
def test_initial_values(api):
    chrono = gru_jax.initializers.chrono(100)
    if api == "nnx":
        params = gru_jax.nnx.GRU(200, 30, num_layers=2, update_bias_init=chrono, rngs=nnx.Rngs(0)).params
    else:
        layer = gru_jax.linen.GRU(30, num_layers=2, update_bias_init=chrono)
        params = layer.model(layer.init(KEY, jnp.zeros((1, 200)))).params
    for kernel in np.split(params[0].kernel, 3, axis=1):
        assert kernel.std() == pytest.approx(200**-0.5, rel=0.05)
    for kernel in np.split(params[0].recurrent_kernel, 3, axis=1):
        assert_close(kernel @ kernel.T, np.eye(30), 1e-5)
    b_r, b_z, b_n = np.split(params[0].bias, 3)
    assert_close((b_r, b_n, params[0].recurrent_bias), (np.zeros(30),) * 3)
    assert (b_z > 0).all()
    assert b_z.std() > 0
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    (bare,), (before,) = gru(api, use_bias=False).params, gru(api, reset_after=False).params
    assert (bare.bias, bare.recurrent_bias, before.recurrent_bias) == (None,) * 3
    kernels = [params.kernel for params in gru(api, bidirectional=True).params]
    assert (kernels[0] != kernels[1]).all()


# --- Flax's cell ------------------------------------------------------------------------------------------------------


def twin_of(cell, variables):
    """Flax's own cell with the same weights; that of nnx has no recurrent bias, and ours is given none."""
    if variables is not None:
        return linen.GRUCell(FEATURES, **FLOAT64)
    twin = nnx.GRUCell(IN_FEATURES, FEATURES, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    twin.dense_i.kernel[...], twin.dense_i.bias[...] = cell.kernel[...], cell.bias[...]
    twin.dense_h.kernel[...] = cell.recurrent_kernel[...]
    cell.recurrent_bias[...] = jnp.zeros(FEATURES)
    return twin


@each_api
def test_cell_is_flax_s_cell(api):
    cell, variables = flax_cell(api)
    twin, given = twin_of(cell, variables), (normal(0, BATCH, FEATURES), normal(1, BATCH, IN_FEATURES))
    assert_close(call_cell(cell, variables, *given), call_cell(twin, variables, *given))
    assert isinstance(cell, nnx.RNNCellBase if api == "nnx" else linen.RNNCellBase)
    assert cell.num_feature_axes == twin.num_feature_axes
    ours, flax = (inspect.signature(type(c).__init__).parameters.values() for c in (cell, twin))
    flax = [p for p in flax if p.name not in ("parent", "name")]
    assert [p.name for p in ours][: len(flax)] == [p.name for p in flax]
    assert [p.kind for p in ours][: len(flax)] == [p.kind for p in flax]
