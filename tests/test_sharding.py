"""Several devices: inside `jax.shard_map`, and under `jax.jit` with a sharded batch (eight virtual CPU devices)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gru_jax
from tests.cases import ORACLE, native_is_installed, problem, unroll

pytestmark = pytest.mark.optimized

DEVICES = 8
SPECS = (P(), P(None, "batch"), P("batch"), P("batch"), P(None, "batch"))
WRT = (0, 1, 2, 3)
TOLERANCE = {jnp.float64: 1e-12, jnp.float32: 2e-6}
# float64 is computed by XLA, float32 by the native kernels where they are installed.
CELLS = pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        pytest.param(gru_jax.CUDNN, jnp.float32, id="after-float32"),
        pytest.param(gru_jax.CHO2014, jnp.float64, id="before-float64"),
        pytest.param(gru_jax.CUDNN, jnp.float64, id="after-float64", marks=pytest.mark.long),
        pytest.param(gru_jax.CHO2014, jnp.float32, id="before-float32", marks=pytest.mark.long),
    ],
)


def loss(cell, *args, method="auto"):
    *moving, resets = args
    h_last, hs = unroll(cell, *moving, resets=resets, method=method)
    return jnp.sin(hs).sum() + (h_last**3).sum()


def arguments(cell, dtype):
    p = problem(cell, ("resets",), batch=(2 * DEVICES,), dtype=dtype)
    return *p[:4], p.options["resets"]


def mesh(axis_type):
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(axis_type,))


@functools.cache
def by_scan(cell, dtype):
    """The gradient on one device in float64."""
    args = arguments(cell, dtype)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64 if x.dtype == dtype else x.dtype), args)
    gradient = jax.grad(functools.partial(loss, cell, method="scan"), WRT)
    return jax.device_get(jax.jit(gradient, compiler_options=ORACLE)(*exact))


def check_gradient(compiled, cell, args, dtype):
    """Against the scan's, relative to the largest entry; and where it ran."""
    for got, want in zip(jax.tree.leaves(compiled(*args)), jax.tree.leaves(by_scan(cell, dtype)), strict=True):
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=0, atol=TOLERANCE[dtype] * abs(want).max())
    native = native_is_installed and dtype == jnp.float32
    assert ("gru_jax_states_vjp" in compiled.as_text()) == native


@CELLS
@pytest.mark.parametrize(("check_vma", "kept"), [(True, True), (False, False)])
def test_gradient_of_shard_map(cell, dtype, check_vma, kept, keep):
    keep(kept)
    args = arguments(cell, dtype)

    @jax.shard_map(mesh=mesh(AxisType.Auto), in_specs=SPECS, out_specs=P(), check_vma=check_vma)
    def total(*local):
        return jax.lax.psum(loss(cell, *local), "batch")

    check_gradient(jax.jit(jax.grad(total, WRT)).lower(*args).compile(), cell, args, dtype)


@CELLS
def test_gradient_inside_shard_map_sums_over_devices(cell, dtype):
    args = arguments(cell, dtype)

    @jax.shard_map(mesh=mesh(AxisType.Auto), in_specs=SPECS, out_specs=SPECS[:4])
    def gradient(*local):
        return jax.grad(lambda *a: loss(cell, *a), WRT)(*local)

    check_gradient(jax.jit(gradient).lower(*args).compile(), cell, args, dtype)


@CELLS
@pytest.mark.parametrize(
    ("axis_type", "kept"), [(AxisType.Auto, False), (AxisType.Auto, True), (AxisType.Explicit, True)]
)
def test_a_sharded_batch_is_not_gathered(cell, dtype, axis_type, kept, keep):
    keep(kept)
    args, devices = arguments(cell, dtype), mesh(axis_type)
    with jax.set_mesh(devices):
        sharded = [jax.device_put(arg, NamedSharding(devices, spec)) for arg, spec in zip(args, SPECS, strict=True)]
        compiled = jax.jit(jax.grad(lambda *a: loss(cell, *a), WRT)).lower(*sharded).compile()
    assert "all-gather" not in compiled.as_text()
    assert "all-reduce" in compiled.as_text(), "gradients of the weights are summed over devices"
    check_gradient(compiled, cell, sharded, dtype)
