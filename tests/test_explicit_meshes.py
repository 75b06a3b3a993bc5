"""Meshes as `jax.make_mesh` makes them by default, with explicit axes: every method gives what one device gives.

The batch is sharded over one axis or several; sharded features and weights are gathered, as each step needs all
of them, and their gradients come back as they were; time that is sharded is refused.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import gru_jax
from gru_jax.cells import (
    DREAMER,
    LSTM,
    MGU,
    BlockGRU,
    Elman,
    Leaky,
    LSTMState,
    MinGRU,
    RefineGRU,
)
from tests.cases import native_is_installed, normal_init

# Sizes of the mesh; of the batch; how xs, h_0 and the weights are sharded; and how the outputs are then.
LAYOUTS = {
    "batch": ((8,), (8,), P(None, "a"), P("a"), P(), P(None, "a", None)),
    "two batch axes": ((2, 4), (2, 4), P(None, "a", "b"), P("a", "b"), P(), P(None, "a", "b", None)),
    "batch over both": ((2, 4), (8,), P(None, ("a", "b")), P(("a", "b")), P(), P(None, ("a", "b"), None)),
    "batch and features": ((2, 4), (8,), P(None, "a", "b"), P("a", "b"), P(None, "b"), P(None, "a", None)),
    "inputs alone": ((8,), (8,), P(None, "a"), P(), P(), P(None, "a", None)),
    "state alone": ((8,), (8,), P(), P("a"), P(None, "a"), P(None, "a", None)),
}
METHODS = [(gru_jax.CUDNN, "fused"), (gru_jax.CUDNN, "scan"), (MinGRU(), "parallel"), (LSTM(), "fused")]
METHODS += [(gru_jax.CUDNN, "native")] if native_is_installed else []
OTHERS = [(cell, "scan") for cell in (Elman(), Leaky(), MGU(), MinGRU(), RefineGRU(), gru_jax.CHO2014)]
OTHERS += [(cell, "fused") for cell in (DREAMER, BlockGRU(2))]
OTHERS += [(gru_jax.GOODFELLOW, "fused"), *[(gru_jax.CHO2014, "native")] * native_is_installed]
TABLE = [(*one, layout) for one in METHODS for layout in LAYOUTS]
TABLE += [(*one, "batch and features") for one in OTHERS]


def derivatives(cell, method, options, second):
    """A function of (params, xs, h_0): outputs, gradient and jvp, and if `second` the jvp of the gradient."""

    def run(params, xs, h_0):
        h_0 = LSTMState(h_0, h_0) if isinstance(cell, LSTM) else h_0
        return gru_jax.unroll(cell, params, xs, h_0, method=method, **options)

    def total(*args):
        outputs = run(*args)
        return sum(jnp.sin(x.astype(jnp.float32)).sum() for x in jax.tree.leaves(outputs)), outputs

    def everything(*args):
        gradient = jax.grad(total, (0, 1, 2), has_aux=True)
        moving = jax.tree.map(jnp.cos, args)
        first = *gradient(*args), jax.jvp(run, args, moving)[1]
        return (*first, jax.jvp(gradient, args, moving)[1]) if second else first

    return jax.jit(everything)


def problem(cell, dtype, reverse, batch):
    """(params, xs, h_0), and the options of `unroll`: the same numbers, however the batch of eight is laid out."""
    keys = jax.random.split(jax.random.key(0), 5)
    params = cell.init(keys[0], 4, 8, bias_init=normal_init, recurrent_kernel_init=normal_init, dtype=dtype)
    xs, h_0 = jax.random.normal(keys[1], (3, 8, 4), dtype), jax.random.normal(keys[2], (8, 8), dtype)
    mask, resets = (jax.random.bernoulli(key, p, (3, 8)) for key, p in zip(keys[3:], (0.8, 0.3), strict=True))
    options = {"mask": mask.reshape(3, *batch), "resets": resets.reshape(3, *batch), "lengths": jnp.full(batch, 2)}
    return (params, xs.reshape(3, *batch, 4), h_0.reshape(*batch, 8)), options | {"reverse": reverse}


@functools.cache
def on_one_device(cell, dtype, reverse, second):
    """What every method and layout is to give: by the scan."""
    args, options = problem(cell, dtype, reverse, (8,))
    return jax.device_get(derivatives(cell, "scan", options, second)(*args))


def check_explicit(cell, method, layout, dtype, reverse=False, second=False):
    sizes, batch, of_xs, of_h_0, of_weights, expected_spec = LAYOUTS[layout]
    expected = on_one_device(cell, dtype, reverse, second)
    (params, xs, h_0), options = problem(cell, dtype, reverse, batch)
    with jax.set_mesh(jax.make_mesh(sizes, ("a", "b")[: len(sizes)])):
        placed = jax.tree.map(lambda x: jax.device_put(x, P(*of_weights[: x.ndim]) if x.ndim > 1 else P()), params)
        args = placed, jax.device_put(xs, of_xs), jax.device_put(h_0, of_h_0)
        got = derivatives(cell, method, options, second)(*args)
        gradients, (_, outputs) = got[:2]
        assert jax.typeof(outputs).sharding.spec == expected_spec
        for gradient, given in zip(jax.tree.leaves(gradients[0]), jax.tree.leaves(placed), strict=True):
            assert jax.typeof(gradient).sharding.spec == jax.typeof(given).sharding.spec
    atol = {jnp.float64: 1e-11, jnp.float32: 2e-5, jnp.bfloat16: 0.1}[dtype]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=atol * max(1, abs(b).max(initial=0)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("cell", "method", "layout"), TABLE, ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
def test_explicit_meshes(cell, method, layout):
    check_explicit(cell, method, layout, jnp.float32, reverse=layout == "batch")


def test_features_of_everything_over_an_explicit_mesh():
    check_explicit(gru_jax.CUDNN, "fused", "batch and features", jnp.float64)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["two batch axes", "batch and features"])
def test_second_order_over_an_explicit_mesh(layout):
    check_explicit(gru_jax.CUDNN, "fused", layout, jnp.float64, second=True)


@pytest.mark.long
@pytest.mark.parametrize("method", ["scan", "fused"])
def test_an_explicit_mesh_in_bfloat16(method):
    check_explicit(gru_jax.CUDNN, method, "batch", jnp.bfloat16)


@pytest.mark.long
@pytest.mark.parametrize("method", ["scan", "fused", *["native"] * native_is_installed])
def test_an_ensemble_over_an_explicit_mesh(method):
    """Weights that are mapped, and sharded over the ensemble."""
    keys = jax.random.split(jax.random.key(0), 8)
    ensemble = jax.vmap(lambda key: gru_jax.CUDNN.init(key, 4, 8, dtype=jnp.float32))(keys)
    xs = jax.random.normal(jax.random.key(1), (3, 2, 4), jnp.float32)

    @jax.jit
    def gradients(ensemble, xs):
        return jax.vmap(
            jax.grad(lambda params: jnp.sin(gru_jax.unroll(gru_jax.CUDNN, params, xs, method=method)[1]).sum())
        )(ensemble)

    expected = gradients(ensemble, xs)
    with jax.set_mesh(jax.make_mesh((8,), ("a",))):
        got = gradients(jax.device_put(ensemble, P("a")), xs)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=1e-5)


@pytest.mark.parametrize("cell", [gru_jax.CUDNN, LSTM()], ids=["gru", "lstm"])
def test_a_scan_of_steps_over_an_explicit_mesh(cell):
    """Of features and weights that are sharded: the state comes back as it was, so that a scan may carry it."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = cell.init(keys[0], 4, 8, recurrent_kernel_init=normal_init, dtype=jnp.float64)
    xs, resets = jax.random.normal(keys[1], (3, 8, 4)), jax.random.bernoulli(keys[2], 0.3, (3, 8))

    @jax.jit
    def run(params, state, xs):
        step = functools.partial(cell.step, reset_state=jax.tree.map(lambda x: x + 1, state))
        return jax.lax.scan(lambda h, x: 2 * (step(params, h, x[0], resets=x[1]),), state, (xs, resets))

    state = cell.initial_state(params, (8,))
    expected = run(params, state, xs)
    with jax.set_mesh(jax.make_mesh((2, 4), ("a", "b"))):
        put = functools.partial(jax.tree.map, lambda x: jax.device_put(x, P(*("a", "b")[: x.ndim])))
        got = run(put(params), jax.device_put(state, P("a")), jax.device_put(xs, P(None, "a", "b")))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=1e-12)


def test_time_that_is_sharded_is_refused():
    params = gru_jax.CUDNN.init(jax.random.key(0), 2, 4)
    layer = gru_jax.nnx.GRU(2, 4, rngs=nnx.Rngs(0))
    whole = jnp.ones((8, 8, 2))
    with jax.set_mesh(jax.make_mesh((8,), ("a",))):
        xs, batch_first = jax.device_put(whole, P("a")), jax.device_put(whole, P(None, "a"))
        flags = jax.device_put(jnp.ones((8, 8), bool), P("a"))
        with pytest.raises(ValueError, match=r"xs must not be sharded over time, its axis 0, got .*'a'"):
            gru_jax.unroll(gru_jax.CUDNN, params, xs)
        with pytest.raises(ValueError, match=r"mask must not be sharded over time, its axis 0, got .*'a'"):
            jax.jit(lambda flags: gru_jax.unroll(gru_jax.CUDNN, params, whole, mask=flags))(flags)
        with pytest.raises(ValueError, match=r"inputs must not be sharded over time, its axis 1, got .*'a'"):
            layer(batch_first)
        with pytest.raises(ValueError, match=r"resets must not be sharded over time, its axis 1, got .*'a'"):
            layer(whole, resets=jax.device_put(jnp.ones((8, 8), bool), P(None, "a")))
