"""The cell as a value, and its initial parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import initializers
from tests.cases import CELLS

pytestmark = pytest.mark.optimized

KEY = jax.random.key(0)


def test_cells_are_values():
    assert gru_jax.GRU() == gru_jax.CUDNN
    assert hash(gru_jax.GRU(reset_after=False)) == hash(gru_jax.CHO2014)
    assert len(set(CELLS.values())) == 3
    with pytest.raises(AttributeError):
        gru_jax.CUDNN.reset_after = False


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_and_dtypes(cell, dtype):
    params = jax.eval_shape(lambda: CELLS[cell].init(KEY, 3, 4, dtype=dtype))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    assert (params.in_features, params.features) == (3, 4)
    assert params.kernel.shape == (3, 12)
    assert params.recurrent_kernel.shape == (4, 12)
    assert params.bias.shape == (12,)
    assert (params.recurrent_bias is None) != CELLS[cell].reset_after


def test_default_initialisation():
    features = 64
    kernel, recurrent_kernel, bias, recurrent_bias = gru_jax.CUDNN.init(KEY, 400, features, dtype=jnp.float64)
    for block in jnp.split(recurrent_kernel, 3, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(features), atol=1e-12)
    blocks = jnp.split(kernel, 3, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.var(), 1 / 400, rtol=0.05)
    assert len({float(block[0, 0]) for block in blocks}) == 3, "gates are drawn independently"
    assert not bias.any()
    assert not recurrent_bias.any()


def test_glorot_sees_the_fans_of_one_gate():
    init = functools.partial(gru_jax.CUDNN.init, in_features=200, features=100, kernel_init=initializers.glorot_uniform)
    kernel = jax.jit(lambda key: init(key).kernel)(KEY)
    bound = (6 / (200 + 100)) ** 0.5
    assert 0.98 * bound < jnp.abs(kernel).max() <= bound


def test_chrono_spreads_the_time_constants():
    horizon, features = 500, 4000
    params = gru_jax.CUDNN.init(
        KEY, 1, features, recurrent_kernel_init=initializers.zeros, update_bias_init=initializers.chrono(horizon)
    )
    b_r, b_z, b_n = jnp.split(params.bias, 3)
    times = 1 + jnp.exp(b_z)
    assert 2 <= times.min()
    assert times.max() <= horizon
    np.testing.assert_allclose(times.mean(), (2 + horizon) / 2, rtol=0.05)
    np.testing.assert_allclose(jnp.median(times), (2 + horizon) / 2, rtol=0.05)
    assert not b_r.any()
    assert not b_n.any()


def test_a_chrono_unit_forgets_with_its_time_constant():
    """With the weights off, the impulse response decays by σ(b_z) a step: time constant 1 / (1 − σ(b_z))."""
    init = {"update_bias_init": initializers.chrono(50), "recurrent_kernel_init": initializers.zeros}
    params = gru_jax.CUDNN.init(KEY, 1, 3, **init, dtype=jnp.float64)
    params = params._replace(kernel=0 * params.kernel, recurrent_kernel=0 * params.recurrent_kernel)
    _, hs = gru_jax.unroll(gru_jax.CUDNN, params, jnp.zeros((10, 1)), jnp.ones(3))
    keep = jax.nn.sigmoid(params.bias[3:6])
    np.testing.assert_allclose(hs[1:] / hs[:-1], jnp.broadcast_to(keep, (9, 3)), rtol=1e-12)
    np.testing.assert_allclose(1 / (1 - keep), 1 + jnp.exp(params.bias[3:6]), rtol=1e-12)


def test_init_composes_with_vmap_over_seeds():
    keys = jax.random.split(KEY, 5)
    init = lambda key: gru_jax.CUDNN.init(key, 2, 3)  # noqa: E731
    ensemble, last = jax.jit(lambda keys: (jax.vmap(init)(keys), init(keys[4])))(keys)
    assert ensemble.kernel.shape == (5, 2, 9)
    assert jnp.array_equal(ensemble.kernel[4], last.kernel)
