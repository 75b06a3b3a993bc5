"""Meshes with explicit axes, on which an array's type says how it is sharded."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec, reshard


def align_shardings(
    xs: jax.Array, params: Any, sequences: Any, states: Any, time_axes: int = 1
) -> tuple[jax.Array, Any, Any, Any]:
    """The operands of a recurrence, sharded alike, if the mesh has explicit axes; otherwise unchanged.

    The batch is sharded as in the first array that shards it. Features and weights are gathered: each step needs all.

    Args:
      xs: (*time, *batch, in_features).
      params: a tree of arrays without time and batch.
      sequences: a tree of arrays (*time, *batch, 1).
      states: a tree of arrays (*batch, features).
      time_axes: the number of time axes, 1 or 0.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return xs, params, sequences, states
    spec: list[Any] = [None] * (xs.ndim - 1 - time_axes)
    specs = [_typed_spec(x)[time_axes:-1] for x in (xs, *jax.tree.leaves(sequences))]
    specs += [_typed_spec(x)[:-1] for x in jax.tree.leaves(states)]
    for entries in specs:
        for axis, entry in enumerate(entries):
            if spec[axis] is None and mesh_axes([entry]).isdisjoint(mesh_axes(spec)):
                spec[axis] = entry

    def resharded(*entries: Any) -> Callable[[jax.Array], jax.Array]:
        to = PartitionSpec(*entries)
        return lambda x: x if _typed_spec(x) == (*to, *[None] * (x.ndim - len(to))) else reshard(x, to)

    place_sequence = resharded(*[None] * time_axes, *spec, None)
    return (
        place_sequence(xs),
        jax.tree.map(resharded(), params),
        jax.tree.map(place_sequence, sequences),
        jax.tree.map(resharded(*spec, None), states),
    )


def varying_axes(value: jax.Array) -> frozenset[Any]:
    """The mesh axes of a surrounding `jax.shard_map` along which a value may differ."""
    return jax.typeof(value).manual_axis_type.varying


def mark_varying(tree: Any, *others: Any) -> Any:
    """A tree whose leaves are marked as varying over the mesh axes over which any leaf, or one of `others`, varies.

    The carry of a loop must have the same type before and after each step.
    """
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves((tree, others))))
    return jax.tree.map(lambda x: jax.lax.pcast(x, tuple(sorted(axes - varying_axes(x))), to="varying"), tree)


def _typed_spec(x: jax.Array) -> tuple[Any, ...]:
    """For each axis of an array, the axes of an explicit mesh over which it is sharded."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def mesh_axes(spec: Iterable[Any]) -> set[Any]:
    """The axes of the mesh that a partition names."""
    return {axis for entry in spec if entry for axis in (entry if isinstance(entry, tuple) else (entry,))}
