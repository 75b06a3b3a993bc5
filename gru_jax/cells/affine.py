"""Affine maps of packed gates, of inputs and of states. `vmap` may have batched the weights."""

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
    kernel: jax.Array, bias: jax.Array | None, x: jax.Array, dtype: Any, time_axes: int = 0, parts: int = 3
) -> Projected:
    """The projected input x W + b of each gate.

    Args:
      kernel: W, (*weight_batch, D, parts·H); see `product` for the weight-batch axes.
      bias: b, (*weight_batch, *batch, parts·H), broadcastable; or None.
      x: (*time, *weight_batch, *batch, D).
      dtype: of the result.
      time_axes: the number of time axes, which come before the weight-batch axes.
      parts: the number of gates.

    Returns:
      An array (*time, *weight_batch, *batch, H) for each gate.
    """
    rows = math.prod(x.shape[:-1])
    # The number of rows is no int in an export for any size.
    if time_axes == 0 or (isinstance(rows, int) and rows <= policy.ONE_PROJECTION_MAX_ROWS):
        projected = split(product(x, kernel, time_axes, dtype), parts)
    else:
        projected = [product(x, kernel_g, time_axes, dtype) for kernel_g in split(kernel, parts)]
    if bias is not None:
        biases = split(lifted(bias, x.ndim).astype(dtype), parts)
        projected = [x_g + bias_g for x_g, bias_g in zip(projected, biases, strict=True)]
    return tuple(projected)


def biased(h_g: jax.Array, bias: jax.Array | None) -> jax.Array:
    """A recurrent product (*batch, H) plus its bias (H,), if it has one."""
    return h_g if bias is None else h_g + lifted(bias, h_g.ndim).astype(h_g.dtype)


def lifted(x: jax.Array, ndim: int) -> jax.Array:
    """x with leading axes of size 1, so that it has `ndim` axes.

    Broadcasting would add them, but not under ``jax_numpy_rank_promotion="raise"``.
    """
    return jax.lax.expand_dims(x, range(ndim - x.ndim))


def product(h: jax.Array, kernel: jax.Array, time_axes: int = 0, dtype: Any = None) -> jax.Array:
    """h U in the dtype of U, accumulated in `dtype`.

    Args:
      h: (*time, *weight_batch, *batch, H).
      kernel: (*weight_batch, H, K). Weight-batch axes come from a `vmap` over weights; usually there are none. They may
        have size 1 in either operand.
      time_axes: the number of time axes, which come before the weight-batch axes.
      dtype: of the result; by default that of h.

    Returns:
      (*time, *weight_batch, *batch, K).
    """
    dtype = h.dtype if dtype is None else dtype

    def dot(h: jax.Array, kernel: jax.Array) -> jax.Array:
        result = jnp.matmul(_rows(h).astype(kernel.dtype), kernel, preferred_element_type=dtype)
        return result.reshape(*h.shape[:-1], kernel.shape[-1])

    for axis in reversed(range(kernel.ndim - 2)):
        dot = _over_weight_batch(dot, time_axes, h.shape[time_axes + axis], kernel.shape[axis])
    return dot(h, kernel)


def _over_weight_batch(
    dot: Callable[..., jax.Array], time_axes: int, h_size: int, kernel_size: int
) -> Callable[..., jax.Array]:
    """`dot` mapped over a weight-batch axis, which may have size 1 in either operand."""
    if h_size == 1 or kernel_size == 1:
        axes = (time_axes if h_size > 1 else None, 0 if kernel_size > 1 else None)

        def squeezed(h: jax.Array, kernel: jax.Array) -> jax.Array:
            h = h if h_size > 1 else jnp.squeeze(h, time_axes)
            kernel = kernel if kernel_size > 1 else jnp.squeeze(kernel, 0)
            if axes == (None, None):
                return jnp.expand_dims(dot(h, kernel), time_axes)
            return jax.vmap(dot, in_axes=axes, out_axes=time_axes)(h, kernel)

        return squeezed
    return jax.vmap(dot, in_axes=(time_axes, 0), out_axes=time_axes)


def _rows(h: jax.Array) -> jax.Array:
    """h (..., H) with its leading axes merged, if none can be sharded: a merged axis would be gathered.

    In the gradient of a kernel, XLA on a CPU contracts one axis up to twice as fast as time and batch, which it first
    copies into another layout.
    """
    return h.reshape(-1, h.shape[-1]) if can_merge_axes() else h


def can_merge_axes() -> bool:
    """Whether axes may be merged: whether none can be sharded."""
    return jax.device_count() == 1 and jax.sharding.get_abstract_mesh().empty
