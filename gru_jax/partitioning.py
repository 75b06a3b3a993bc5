"""How opaque calls are shared out among devices: by weight batch and batch, as their operands are sharded."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec

from gru_jax.axes import SERIES, Axes, field_axes, leaf_axes
from gru_jax.meshes import mesh_axes
from gru_jax.operands import Operands


def devices(context: Any) -> int | None:
    """Over how many devices a computation is yet to be partitioned; None if they are not known."""
    if (mesh := getattr(context, "mesh", None)) is not None:
        return 1 if set(mesh.axis_names) == set(context.manual_axes) else None
    if context.num_devices == 1:
        return 1
    return context.num_devices if context.device_assignment and context.abstract_mesh is not None else None


def prepare(*primitives: Primitive) -> None:
    """Asks JAX to name the devices while it lowers these primitives, as `custom_partitioning` needs."""
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        from jax._src import dispatch  # there is no public way

        dispatch.prim_requires_devices_during_lowering.update(primitives)


def no_mesh() -> contextlib.AbstractContextManager[Any]:
    """Within it arrays have no sharding in their types, whatever mesh surrounds the computation.

    The calls of the kernels fold axes, which a mesh with explicit axes refuses where several are sharded.
    """
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def partitioned(
    call: Callable[..., list[jax.Array]], operands: Any, wrt: tuple[str, ...] | None, results: int
) -> Callable[..., Any]:
    """`call` on each device's share of weight batch and batch; cotangents of weights are summed over devices.

    Args:
      call: takes the arrays of `operands` and returns a list of arrays.
      operands: a NamedTuple of `gru_jax.operands`, of arrays or types.
      wrt: of which operands it returns the cotangents; None if it returns what is shaped like the states.
      results: how many arrays it returns.
    """
    sources = leaf_axes(operands)
    outputs = [SERIES] * results if wrt is None else [field_axes(Operands, name) for name in wrt]
    weight_axes = operands.weight_axes

    def partition(mesh: Any, args: Any, results: Any) -> Any:
        spec = _shared_spec([*zip(sources, args, strict=True), *zip(outputs, results, strict=True)])
        summed = tuple(mesh_axes(spec[weight_axes:]))

        def local(*args: jax.Array) -> list[jax.Array]:
            with no_mesh():
                outs = call(*args)
                if not summed:
                    return outs
                return [x if axes.batch else jax.lax.psum(x, summed) for axes, x in zip(outputs, outs, strict=True)]

        def placed(which: list[Axes], shapes: Any) -> list[NamedSharding]:
            return [NamedSharding(mesh, _spec(axes, x.shape, spec)) for axes, x in zip(which, shapes, strict=True)]

        return mesh, local, placed(outputs, results), tuple(placed(sources, args))

    on_devices = custom_partitioning(lambda *args: call(*args))
    on_devices.def_partition(partition, sharding_rule=functools.partial(_sharding_rule, sources, outputs))
    return on_devices


def _shared_spec(arrays: list[tuple[Axes, Any]]) -> list[Any]:
    """How weight batch and batch are sharded, from the first operand or result that says so."""
    spec: list[Any] = [None] * max(len(axes.batch_axes(x.ndim)) for axes, x in arrays)
    for axes, x in arrays:
        for i, axis in enumerate(axes.batch_axes(x.ndim)):
            if spec[i] is None and x.shape[axis] > 1 and axis < len(x.sharding.spec):
                spec[i] = x.sharding.spec[axis]
    return spec


def _spec(axes: Axes, shape: tuple[int, ...], spec: list[Any]) -> PartitionSpec:
    entries = [None] * len(shape)
    for i, axis in enumerate(axes.batch_axes(len(shape))):
        entries[axis] = spec[i] if shape[axis] > 1 else None
    return PartitionSpec(*entries)


def _sharding_rule(
    sources: list[Axes], outputs: list[Axes], mesh: Any, operands: Any, results: Any
) -> tuple[str, dict[str, Any]]:
    """Which axes of operands and results go together, for Shardy; all but weight batch and batch are to be whole."""
    fresh, whole = itertools.count(), []

    def factors(axes: Axes, shape: Any) -> Iterator[str]:
        shared = axes.batch_axes(len(shape))
        for axis, size in enumerate(shape):
            if axis in shared and size > 1:
                yield f"b{axis - shared.start}"
            else:
                whole.append(f"w{next(fresh)}")
                yield whole[-1]

    sides = [
        ", ".join(" ".join(factors(axes, x.shape)) for axes, x in zip(which, values, strict=True))
        for which, values in ((sources, operands), (outputs, results))
    ]
    return " -> ".join(sides), {"need_replication_factors": tuple(whole)}
