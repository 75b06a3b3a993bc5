"""Zoneout of layers of nnx and of linen: its expectation, its masks, and converters, which refuse it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax.cells import LSTM, CellBase
from tests.flax_layers import each_api, gru, rnn
from tests.own_cells import OWN
from tests.sequences import BATCH, IN_FEATURES, TIME, assert_close, composed, inputs

CELLS = {"lstm": LSTM(), "gru": gru_jax.CUDNN, "clocked": OWN["clocked"]}
RATES = {"lstm": gru_jax.cells.LSTMState(0.1, 0.5), "gru": 0.3, "clocked": 0.4}


@each_api
@pytest.mark.parametrize("name", RATES)
def test_zoneout_is_its_expectation_where_nothing_is_random(api, name):
    """In a call, by steps, and as a model; and like `unroll` of each layer."""
    cell, x = CELLS[name], inputs()
    layer = rnn(api, cell, num_layers=2, zoneout=RATES[name])
    model = layer.module.model if api == "nnx" else layer.module.model(layer.variables)

    @jax.jit
    def run():
        whole = layer(x, return_carry=True, deterministic=True)
        carry, outputs = layer.initialize_carry((BATCH, IN_FEATURES)), []
        for t in range(TIME):
            carry, output = layer.step(carry, x[:, t])
            outputs.append(output)
        expected = composed(cell, layer.params, x.swapaxes(0, 1), bidirectional=False, zoneout=RATES[name])
        return whole, (carry, jnp.stack(outputs, axis=1)), model(x), expected

    whole, stepwise, of_model, (carry, outputs) = run()
    assert_close(whole, (carry, outputs.swapaxes(0, 1)))
    assert_close(stepwise, whole)
    assert_close(of_model, whole)


@each_api
def test_zoneout_draws_a_mask_for_every_step_and_unit(api):
    """Of a cell that counts, x = 1 a step, units count the steps at which they are not held."""
    width, steps = 40, 50
    layer = rnn(api, Counter(), features=width, bidirectional=True, num_layers=1, zoneout=0.25)
    x = jnp.ones((2, steps, IN_FEATURES))
    run = jax.jit(lambda key: layer(x, key=key))
    first, second = np.asarray(run(jax.random.key(0))), np.asarray(run(jax.random.key(1)))
    moved = np.diff(first[..., :width], axis=1)
    assert set(np.unique(moved)) == {0.0, 1.0}
    assert abs(moved.mean() - 0.75) < 0.03
    assert (moved[0] != moved[1]).any()  # sequences
    assert (moved[:, 1:] != moved[:, :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.05)  # steps
    assert (moved[..., 1:] != moved[..., :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.05)  # units
    assert (moved[:, ::-1] != -np.diff(first[..., width:], axis=1)).any()  # directions
    assert (first != second).any()
    assert_close(run(jax.random.key(0)), first, 0)


@dataclasses.dataclass(frozen=True)
class Counter(CellBase):
    """Counts steps."""

    def init(self, key, in_features, features, /):
        return jnp.zeros((in_features, features))

    def step(self, params, h, x, /):
        return h + 1


@each_api
def test_converters_refuse_zoneout(api):
    layer = gru(api, zoneout=0.1)
    model = layer.module.model if api == "nnx" else layer.module.model(layer.variables)
    for write, target in [
        (gru_jax.convert.to_torch, "torch.nn.GRU"),
        (gru_jax.convert.to_keras, "keras.layers.GRU"),
        (gru_jax.convert.to_onnx, "ONNX"),
    ]:
        with pytest.raises(ValueError, match=rf"model\.stack\.zoneout must be 0 for {target}, got 0.1"):
            write(model)
