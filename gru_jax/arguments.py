"""Checks of the arguments that the cells and layers of `gru_jax.nnx` and `gru_jax.linen` share."""

from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks
from gru_jax.cells import broadcast_state


def inputs(inputs: Any, in_features: int | None, time_major: bool) -> jax.Array:
    """`inputs` as an array with a time axis and in_features; any number of them if None."""
    inputs = checks.array("inputs", inputs)
    checks.floating("inputs", inputs)
    symbols = "(time, *batch, in_features)" if time_major else "(*batch, time, in_features)"
    if inputs.ndim < 2:
        raise ValueError(f"inputs must have shape {symbols}, got {inputs.shape}")
    if in_features is not None:
        checks.shape("inputs", inputs, symbols, (*inputs.shape[:-1], in_features))
    checks.unsharded_time("inputs", inputs, 0 if time_major else -2)
    return inputs


def step(
    carry: Any, inputs: Any, resets: Any, reset_state: Any, in_features: int | None, features: int | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """The arguments of a cell's step as arrays that fit; any in_features, or features, if None.

    The batch axes of carry and inputs broadcast against each other, as those of Flax's cells do.
    """
    inputs, carry = step_input("inputs", inputs, in_features), checks.array("carry", carry)
    if carry.ndim < 1:
        raise ValueError(f"carry must have shape (*batch, features), got {carry.shape}")
    own = carry.shape[:-1]
    carry = state("carry", carry, own, carry.shape[-1] if features is None else features)
    try:
        batch = jnp.broadcast_shapes(own, inputs.shape[:-1])
    except ValueError as error:
        raise ValueError(
            f"carry must have shape (*batch, features), or what broadcasts to it, for inputs {inputs.shape}, "
            f"got {carry.shape}"
        ) from error
    carry = jnp.broadcast_to(carry, (*batch, carry.shape[-1]))
    inputs = jnp.broadcast_to(inputs, (*batch, inputs.shape[-1]))
    start = None if reset_state is None else broadcast_state("reset_state", reset_state, carry)
    return carry, inputs, step_flags("resets", resets, inputs), start


def step_flags(name: str, value: Any, x_t: jax.Array) -> jax.Array | None:
    """Flags of one step, (*batch,), as bool; or None. x_t has the batch axes."""
    if value is None:
        return None
    value = checks.flags(name, value)
    checks.shape(name, value, "(*batch,)", x_t.shape[:-1])
    return value


def step_input(name: str, value: Any, in_features: int | None) -> jax.Array:
    """The input of one step (*batch, in_features) as an array; any in_features if None."""
    value = checks.array(name, value)
    checks.floating(name, value)
    if value.ndim < 1:
        raise ValueError(f"{name} must have shape (*batch, in_features), got {value.shape}")
    if in_features is not None:
        checks.shape(name, value, "(*batch, in_features)", (*value.shape[:-1], in_features))
    return value


def state(name: str, value: Any, batch: tuple[int, ...], features: int) -> jax.Array:
    """A state (*batch, features) as an array."""
    value = checks.array(name, value)
    checks.shape(name, value, "(*batch, features)", (*batch, features))
    checks.floating(name, value)
    return value


def input_shape(input_shape: Any, in_features: int | None) -> tuple[int, ...]:
    """The shape (*batch, in_features) of one step's input, as `initialize_carry` takes it; any in_features if None."""
    try:
        shape = tuple(input_shape)
    except TypeError as error:
        raise TypeError(f"input_shape must be a tuple (*batch, in_features), got {input_shape!r}") from error
    if not shape or (in_features is not None and shape[-1] != in_features):
        width = "" if in_features is None else f" with in_features = {in_features}"
        raise ValueError(f"input_shape must be (*batch, in_features){width}, got {shape}")
    return shape


def gru_options(inits: dict[str, Any], activations: dict[str, Any], use_bias: Any, param_dtype: Any) -> None:
    """The constructor arguments that cells and layers share; inits and activations by the names a caller gave."""
    for name, value in (inits | activations).items():
        if not (name == "update_bias_init" and value is None):
            checks.function(name, value)
    if not isinstance(use_bias, bool):
        raise TypeError(f"use_bias must be a bool, got {use_bias!r}")
    if inits["update_bias_init"] is not None and not use_bias:
        raise ValueError("update_bias_init needs use_bias=True, got use_bias=False")
    checks.param_dtype(param_dtype)
