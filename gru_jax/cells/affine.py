"""Affine maps of packed gates: of inputs, and of states; weights may have been batched by `vmap`."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import policy

# The projected input: one array (..., H) for each gate. Arrays of their own rather than one packed, because XLA on CPU
# does not vectorise gate arithmetic over slices of a packed array inside a loop.
Projected = tuple[jax.Array, ...]


def split(packed: jax.Array, parts: int = 3) -> list[jax.Array]:
    """The gates of a packed array (..., parts·H), each (..., H)."""
    return jnp.split(packed, parts, axis=-1)


def project(
    kernel: jax.Array, bias: jax.Array | None, x: jax.Array, dtype: Any, lead: int = 0, parts: int = 3
) -> Projected:
    """The projected input x W + b of each gate.

    Args:
      kernel: W, (*group, D, parts·H); see `product` for the group axes.
      bias: b, (*group, *batch, parts·H), broadcastable; or None.
      x: (*lead, *group, *batch, D).
      dtype: of the result.
      lead: the number of axes of x before the group axes.
      parts: the number of gates.

    Returns:
      An array (*lead, *group, *batch, H) for each gate.
    """
    rows = math.prod(x.shape[:-1])
    if lead == 0 or (
        isinstance(rows, int) and rows <= policy.ONE_PROJECTION_MAX_ROWS
    ):  # no int in an export for any size
        projected = split(product(x, kernel, lead, dtype), parts)
    else:
        projected = [product(x, kernel_g, lead, dtype) for kernel_g in split(kernel, parts)]
    if bias is not None:
        biases = split(lifted(bias, x.ndim).astype(dtype), parts)
        projected = [x_g + bias_g for x_g, bias_g in zip(projected, biases, strict=True)]
    return tuple(projected)


def biased(h_g: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A recurrent product (*batch, H) plus its bias (H,), if it has one."""
    return h_g if bias is None else h_g + lifted(bias, h_g.ndim).astype(h_g.dtype)


def lifted(x: jax.Array, ndim: int) -> jax.Array:
    """x with leading axes of size 1 up to `ndim` of them, so that it may meet an array of that rank.

    NumPy would add them by itself, but not under ``jax_numpy_rank_promotion="raise"``.
    """
    return jax.lax.expand_dims(x, range(ndim - x.ndim))


def product(h: jax.Array, kernel: jax.Array, lead: int = 0, dtype: Any = None) -> jax.Array:
    """h U in the dtype of U, accumulated in `dtype`.

    Args:
      h: (*lead, *group, *batch, H).
      kernel: (*group, H, K). Group axes belong to weights that were batched by `vmap`; usually there are none. A group
        axis may have size 1 in either.
      lead: the number of axes of h before the group axes.
      dtype: of the result; by default that of h.

    Returns:
      (*lead, *group, *batch, K).
    """
    dtype = h.dtype if dtype is None else dtype

    def dot(h: jax.Array, kernel: jax.Array) -> jax.Array:
        result = jnp.matmul(_rows(h).astype(kernel.dtype), kernel, preferred_element_type=dtype)
        return result.reshape(*h.shape[:-1], kernel.shape[-1])

    for group in reversed(range(kernel.ndim - 2)):
        dot = _over_group(dot, lead, h.shape[lead + group], kernel.shape[group])
    return dot(h, kernel)


def _over_group(dot: Callable[..., jax.Array], lead: int, h_size: int, kernel_size: int) -> Callable[..., jax.Array]:
    """`dot` mapped over a group axis, of which either operand may have only one."""
    if h_size == 1 or kernel_size == 1:
        axes = (lead if h_size > 1 else None, 0 if kernel_size > 1 else None)

        def squeezed(h: jax.Array, kernel: jax.Array) -> jax.Array:
            h = h if h_size > 1 else jnp.squeeze(h, lead)
            kernel = kernel if kernel_size > 1 else jnp.squeeze(kernel, 0)
            if axes == (None, None):
                return jnp.expand_dims(dot(h, kernel), lead)
            return jax.vmap(dot, in_axes=axes, out_axes=lead)(h, kernel)

        return squeezed
    return jax.vmap(dot, in_axes=(lead, 0), out_axes=lead)


def _rows(h: jax.Array) -> jax.Array:
    """h (..., H) with its leading axes merged, where no axis of it can be sharded: a merged one would be gathered.

    In the gradient of a kernel, XLA on CPU contracts one axis up to twice as fast as time and batch, which it first
    copies into another layout.
    """
    return h.reshape(-1, h.shape[-1]) if merges() else h


def merges() -> bool:
    """Whether no axis can be sharded, so that axes may be merged into one."""
    return jax.device_count() == 1 and jax.sharding.get_abstract_mesh().empty
