"""What `vmap` makes of the primitives; what they are applied to are NamedTuples of `gru_jax.operands`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from gru_jax.axes import SERIES, Axes, field_axes, leaf_axes
from gru_jax.operands import Operands


def batch(primitive: Primitive, args: Any, dims: Any, *, structure: Any, **params: Any) -> tuple[Any, Any]:
    """Batched weights open a new axis of the weight batch in front; anything else a batch axis behind these.

    Gradients of weights open an axis of the weight batch, too: they are not summed over what is batched.
    """
    operands = jax.tree.unflatten(structure, args)
    each = leaf_axes(operands)
    results = [field_axes(Operands, name) for name in params.get("wrt", ())]
    mapped = [axes for axes, axis in zip(each, dims, strict=True) if axis is not None]
    batches_weights = not all(axes.batch for axes in (*mapped, *results))
    place = 0 if batches_weights else operands.weight_axes

    def new_axis(axes: Axes) -> int | None:
        if axes.batch:
            return place + axes.time
        return 0 if batches_weights else None

    leaves = []
    for x, axes, axis in zip(args, each, dims, strict=True):
        new = new_axis(axes)
        if new is not None:
            x = jnp.expand_dims(x, new) if axis is None else jnp.moveaxis(x, axis, new)
        leaves.append(x)
    out = primitive.bind(*leaves, structure=structure, **params)
    if primitive.multiple_results:
        return out, [new_axis(axes) for axes in results] or [new_axis(SERIES)] * len(out)
    return out, new_axis(SERIES)
