"""Several devices: inside `jax.shard_map`, and under `jax.jit` with a sharded batch (eight virtual CPU devices)."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gru_jax
from tests.cases import problem

DEVICES = 8
SPECS = (P(), P(None, "batch"), P("batch"), P(None, "batch"))
CELLS = pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014], ids=["after", "before"])


def loss(cell, params, xs, h_0, resets, method="fused"):
    h_last, hs = gru_jax.unroll(cell, params, xs, h_0, resets=resets, method=method)
    return jnp.sin(hs).sum() + (h_last**3).sum()


def arguments(cell):
    p = problem(cell, ("resets",), batch=(DEVICES,))
    return *p[:3], p.options["resets"]


def mesh(axis_type):
    return jax.make_mesh((DEVICES,), ("batch",), axis_types=(axis_type,))


def gradient_on_one_device(cell, args):
    return jax.jit(jax.grad(lambda *a: loss(cell, *a, method="scan"), (0, 1, 2)))(*args)


@CELLS
@pytest.mark.parametrize("check_vma", [True, False])
def test_gradient_of_shard_map(cell, check_vma):
    args = arguments(cell)

    @jax.shard_map(mesh=mesh(AxisType.Auto), in_specs=SPECS, out_specs=P(), check_vma=check_vma)
    def total(*local):
        return jax.lax.psum(loss(cell, *local), "batch")

    expected = gradient_on_one_device(cell, args)
    chex.assert_trees_all_close(jax.jit(jax.grad(total, (0, 1, 2)))(*args), expected, atol=1e-12)


@CELLS
def test_gradient_inside_shard_map_sums_over_devices(cell):
    args = arguments(cell)

    @jax.shard_map(mesh=mesh(AxisType.Auto), in_specs=SPECS, out_specs=SPECS[:3])
    def gradient(*local):
        return jax.grad(lambda *a: loss(cell, *a), (0, 1, 2))(*local)

    expected = gradient_on_one_device(cell, args)
    chex.assert_trees_all_close(jax.jit(gradient)(*args), expected, atol=1e-12)


@CELLS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_is_not_gathered(cell, axis_type):
    args, devices = arguments(cell), mesh(axis_type)
    expected = gradient_on_one_device(cell, args)
    with jax.set_mesh(devices):
        sharded = [jax.device_put(arg, NamedSharding(devices, spec)) for arg, spec in zip(args, SPECS, strict=True)]
        compiled = jax.jit(jax.grad(lambda *a: loss(cell, *a), (0, 1, 2))).lower(*sharded).compile()
        assert "all-gather" not in compiled.as_text()
        chex.assert_trees_all_close(compiled(*sharded), expected, atol=1e-12)
