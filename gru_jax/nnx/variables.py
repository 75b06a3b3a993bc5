"""Variables and random streams of the nnx modules."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gru_jax import initializers
from gru_jax.initializers import Initializer

Streams = nnx.Rngs | nnx.RngStream | jax.Array
"""Sources of randomness that a call takes."""


def check_rngs(rngs: Any, stream: str) -> None:
    """Checks that `rngs` is an `nnx.Rngs` with a stream of this name, or with a default stream."""
    if not isinstance(rngs, nnx.Rngs):
        raise TypeError(f"rngs must be a flax.nnx.Rngs, got {type(rngs).__name__}")
    if stream not in rngs and "default" not in rngs:
        raise ValueError(f"rngs must have a stream {stream!r} or 'default', got {sorted(rngs)}")


def draw_key(rngs: Any, stream: str) -> jax.Array:
    """A key from the `rngs` argument of a call."""
    if isinstance(rngs, nnx.Rngs):
        check_rngs(rngs, stream)
        return rngs[stream]()
    if isinstance(rngs, nnx.RngStream):
        return rngs()
    if isinstance(rngs, jax.Array):
        return rngs
    raise TypeError(f"rngs must be a flax.nnx.Rngs, an RngStream or a PRNG key, got {type(rngs).__name__}")


def carry_key(carry_init: Initializer | None, rngs: Any) -> jax.Array | None:
    """A key for carry_init; None for zeros, which need none."""
    if initializers.is_zeros(carry_init):
        return None
    if rngs is None:
        raise ValueError("rngs must be given where carry_init is not zeros, got None")
    return draw_key(rngs, "carry")


def variable(value: jax.Array | None, box: Any, metadata: Mapping[str, Any]) -> Any:
    """A variable with the metadata of its initializer's box and other metadata; None for None."""
    if value is None:
        return nnx.data(None)
    return nnx.Param(value if box is None else dataclasses.replace(box, raw_value=value), **metadata)


def values(tree: Any) -> Any:
    """The arrays of a tree of variables."""
    return jax.tree.map(lambda leaf: leaf.get_value(), tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def unbox(init: Initializer, key: jax.Array, shape: tuple[int, ...]) -> tuple[Initializer, Any]:
    """An initializer without the box of `nnx.with_partitioning` or `nnx.with_metadata`; and the box, None if none."""
    boxes = []

    def draw(key: jax.Array) -> Any:
        drawn: Any = init(key, shape, jnp.float32)
        if not isinstance(drawn, nnx.VariableMetadata):
            return drawn
        boxes.append(dataclasses.replace(drawn, raw_value=None))
        return drawn.raw_value

    jax.eval_shape(draw, key)
    return (_without_box(init), boxes[0]) if boxes else (init, None)


def _without_box(init: Callable[..., Any]) -> Initializer:
    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return init(key, shape, dtype).raw_value

    return draw
