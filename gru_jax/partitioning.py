"""How calls of the native kernels are shared out among devices: by groups and batch, as their operands are sharded."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec

from gru_jax.meshes import mesh_axes
from gru_jax.recurrence import TIMELESS, WEIGHTS


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
    call: Callable[..., Any], names: tuple[str, ...], outputs: tuple[str, ...], several: bool
) -> Callable[..., Any]:
    """`call` on each device's share of the groups and the batch; cotangents of weights are summed over devices.

    Args:
      call: takes arrays and returns a list of them if `several`, otherwise one.
      names: of what it takes.
      outputs: of what it returns; in a gradient, the names of what it is with respect to.
      several: see `call`.
    """

    def specs(shapes: Any, which: tuple[str, ...], spec: list[Any], groups: int) -> list[PartitionSpec]:
        return [_spec(name, x.shape, spec, groups) for name, x in zip(which, shapes, strict=True)]

    def partition(mesh: Any, args: Any, result: Any) -> Any:
        results = result if several else (result,)
        groups = args[names.index("recurrent_kernel")].ndim - 2
        spec = _shared_spec((*zip(names, args, strict=True), *zip(outputs, results, strict=True)), groups)
        summed = tuple(mesh_axes(spec[groups:]))

        def local(*args: jax.Array) -> Any:
            with no_mesh():
                outs = call(*args)
                if not several or not summed:
                    return outs
                named = zip(outputs, outs, strict=True)
                return [jax.lax.psum(x, summed) if name in WEIGHTS else x for name, x in named]

        placed = [NamedSharding(mesh, s) for s in specs(results, outputs, spec, groups)]
        taken = tuple(NamedSharding(mesh, s) for s in specs(args, names, spec, groups))
        return mesh, local, placed if several else placed[0], taken

    on_devices = custom_partitioning(lambda *args: call(*args))
    on_devices.def_partition(partition, sharding_rule=functools.partial(_sharding_rule, names, outputs))
    return on_devices


def _lead_axes(name: str, ndim: int, groups: int) -> range:
    """The axes of an operand that are group or batch axes."""
    if name in WEIGHTS:
        return range(groups)
    return range(0 if name in TIMELESS else 1, ndim - 1)


def _shared_spec(named: Any, groups: int) -> list[Any]:
    """How the group and batch axes are sharded, from the first operand or result that says so."""
    spec: list[Any] = [None] * max(len(_lead_axes(name, x.ndim, groups)) for name, x in named)
    for name, x in named:
        for i, axis in enumerate(_lead_axes(name, x.ndim, groups)):
            if spec[i] is None and x.shape[axis] > 1 and axis < len(x.sharding.spec):
                spec[i] = x.sharding.spec[axis]
    return spec


def _spec(name: str, shape: tuple[int, ...], spec: list[Any], groups: int) -> PartitionSpec:
    entries = [None] * len(shape)
    for i, axis in enumerate(_lead_axes(name, len(shape), groups)):
        entries[axis] = spec[i] if shape[axis] > 1 else None
    return PartitionSpec(*entries)


def _sharding_rule(
    names: tuple[str, ...], outputs: tuple[str, ...], mesh: Any, operands: Any, results: Any
) -> tuple[str, dict[str, Any]]:
    """Which axes of operands and results go together, for Shardy; all but groups and batch are to be whole."""
    groups = len(operands[names.index("recurrent_kernel")].shape) - 2
    fresh, whole = itertools.count(), []

    def factors(name: str, shape: Any) -> Iterator[str]:
        lead = _lead_axes(name, len(shape), groups)
        for axis, size in enumerate(shape):
            if axis in lead and size > 1:
                yield f"b{axis - lead.start}"
            else:
                whole.append(f"w{next(fresh)}")
                yield whole[-1]

    sides = [
        ", ".join(" ".join(factors(name, x.shape)) for name, x in zip(which, values, strict=True))
        for which, values in ((names, operands), (outputs, results))
    ]
    return " -> ".join(sides), {"need_replication_factors": tuple(whole)}
