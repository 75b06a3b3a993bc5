"""The roles of the axes of what a recurrence is applied to, annotated at the fields of its NamedTuples."""

import dataclasses
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Axes:
    """Which axes an array has: ([T,] *weight_batch, [*batch,] *own).

    The weight batch is that of weights under `vmap`, usually none; other arrays have axes for it, too. Any axis of
    weight batch and batch may have size 1 where another array is wider, so that a Jacobian over many tangents holds the
    coefficients once.

    Attributes:
      time: 1 with a time axis, else 0.
      batch: whether it has axes for sequences; weights have none.
      own: the number of axes behind these.
    """

    time: int
    batch: bool
    own: int

    def batch_axes(self, ndim: int) -> range:
        """Which axes of an array of that rank are of the weight batch and the batch."""
        return range(self.time, ndim - self.own)


SERIES = Axes(time=1, batch=True, own=1)
"""(T, *weight_batch, *batch, K)."""
STATE = Axes(time=0, batch=True, own=1)
"""(*weight_batch, *batch, K)."""
MATRIX = Axes(time=0, batch=False, own=2)
"""(*weight_batch, J, K)."""
VECTOR = Axes(time=0, batch=False, own=1)
"""(*weight_batch, K)."""


def field_axes(tuple_type: Any, name: str) -> Axes:
    """The axes with which a field of a NamedTuple is annotated."""
    return tuple_type.__annotations__[name].__metadata__[0]


def leaf_axes(operands: Any) -> list[Axes]:
    """The axes of each array of a NamedTuple, in the order of `jax.tree.leaves`; None holds none."""
    found: list[Axes] = []
    for name, value in operands._asdict().items():
        if isinstance(value, tuple):
            found += leaf_axes(value)
        elif value is not None:
            found.append(field_axes(type(operands), name))
    return found


def batch_shape(operands: Any) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The sizes of weight batch and batch, and how an explicit mesh shards each: as the first sharded array.

    Args:
      operands: a NamedTuple of arrays, or of their types.
    """
    types = [x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x) for x in jax.tree.leaves(operands)]
    typed = list(zip(types, leaf_axes(operands), strict=True))
    ndim = max(len(axes.batch_axes(aval.ndim)) for aval, axes in typed if axes.batch)
    sizes: list[int] = [1] * ndim
    spec: list[Any] = [None] * ndim
    for aval, axes in typed:
        for i, axis in enumerate(axes.batch_axes(aval.ndim)):
            if aval.shape[axis] != 1:
                sizes[i] = aval.shape[axis]
                spec[i] = spec[i] or aval.sharding.spec[axis]
    return tuple(sizes), tuple(spec)
