"""Of what shape the results of the primitives are; what they are applied to are NamedTuples of `gru_jax.operands`."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from gru_jax.axes import batch_shape, field_axes
from gru_jax.cells import GRU
from gru_jax.operands import Operands


def residual_count(cell: GRU) -> int:
    """How many preactivations a step has: q only where the reset gate acts after the product."""
    return 4 if cell.reset_after else 3


def states_avals(*avals: Any, structure: Any, cell: GRU, saves_residuals: bool, **params: Any) -> list[Any]:
    """hs and, if they are saved, the preactivations."""
    o = jax.tree.unflatten(structure, avals)
    return [_like_states(o, o.xs, o.h_0)] * (1 + saves_residuals * residual_count(cell))


def states_jvp_aval(*avals: Any, structure: Any, **params: Any) -> Any:
    """The tangent of hs, shaped like hs."""
    operands = jax.tree.unflatten(structure, avals)
    return _like_states(operands, operands.hs, operands.hs)


def linear_recurrence_aval(*avals: Any, structure: Any, **params: Any) -> Any:
    """What is shaped like the source, with all batch axes."""
    operands = jax.tree.unflatten(structure, avals)
    return _like_states(operands, operands.source, operands.source)


def _like_states(operands: Any, series: Any, state: Any) -> Any:
    """As many steps as `series`, the features and dtype of `state`, and all batch axes; sharded like the operands."""
    sizes, spec = batch_shape(operands)
    shape = (series.shape[0], *sizes, state.shape[-1])
    sharding = _sharding(operands, series.sharding.spec[0], *spec, None)
    return series.update(shape=shape, dtype=state.dtype, weak_type=False, sharding=sharding)


def states_vjp_avals(*avals: Any, structure: Any, wrt: tuple[str, ...], **params: Any) -> list[Any]:
    """The cotangents of the operands in `wrt`, with all batch axes."""
    operands = jax.tree.unflatten(structure, avals)
    sizes, spec = batch_shape(operands)
    outs = []
    for name in wrt:
        aval, axes = getattr(operands.primals, name), field_axes(Operands, name)

        def full(own: Any, batch: tuple[Any, ...], axes: Any = axes) -> tuple[Any, ...]:
            batch = batch if axes.batch else batch[: operands.weight_axes]
            return (*own[: axes.time], *batch, *own[len(own) - axes.own :])

        sharding = _sharding(operands, *full(aval.sharding.spec, spec))
        outs.append(aval.update(shape=full(aval.shape, sizes), weak_type=False, sharding=sharding))
    return outs


def _sharding(operands: Any, *spec: Any) -> NamedSharding:
    """As `spec` says, on the mesh of the operands, which some of them may not know."""
    meshes = (aval.sharding.mesh for aval in jax.tree.leaves(operands))
    return NamedSharding(next((mesh for mesh in meshes if not mesh.empty), AbstractMesh((), ())), PartitionSpec(*spec))
