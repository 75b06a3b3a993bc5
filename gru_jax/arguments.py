"""Checks of the arguments that the cells and layers of `gru_jax.nnx` and `gru_jax.linen` share."""

from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks
from gru_jax.cells import base


def inputs(inputs: Any, in_features: int | None, time_major: bool) -> jax.Array:
    """`inputs` as an array with a time axis and `in_features`, or any width if None."""
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
    """The arguments of a Flax cell's step as arrays that fit; of any in_features, or features, if None.

    The batch axes of carry and inputs broadcast against each other, as in Flax's cells.
    """
    inputs, carry = step_input("inputs", inputs, in_features), checks.array("carry", carry)
    if carry.ndim < 1:
        raise ValueError(f"carry must have shape (*batch, features), got {carry.shape}")
    if features is not None:
        checks.shape("carry", carry, "(*batch, features)", (*carry.shape[:-1], features))
    checks.floating("carry", carry)
    try:
        batch = jnp.broadcast_shapes(carry.shape[:-1], inputs.shape[:-1])
    except ValueError as error:
        raise ValueError(
            f"carry must have shape (*batch, features), or what broadcasts to it, for inputs {inputs.shape}, "
            f"got {carry.shape}"
        ) from error
    carry = jnp.broadcast_to(carry, (*batch, carry.shape[-1]))
    inputs = jnp.broadcast_to(inputs, (*batch, inputs.shape[-1]))
    if reset_state is not None:
        reset_state = base.broadcast_state("reset_state", reset_state, carry)
    return carry, inputs, checks.optional_flags("resets", resets, "(*batch,)", batch), reset_state


def step_input(name: str, value: Any, in_features: int | None) -> jax.Array:
    """The input of one step as an array (*batch, in_features), of any width if None."""
    value = checks.array(name, value)
    checks.floating(name, value)
    if value.ndim < 1:
        raise ValueError(f"{name} must have shape (*batch, in_features), got {value.shape}")
    if in_features is not None:
        checks.shape(name, value, "(*batch, in_features)", (*value.shape[:-1], in_features))
    return value


def input_shape(input_shape: Any, in_features: int | None) -> tuple[int, ...]:
    """The argument of `initialize_carry`, the shape (*batch, in_features) of one step's input; of any width if None."""
    try:
        shape = tuple(input_shape)
    except TypeError as error:
        raise TypeError(f"input_shape must be a tuple (*batch, in_features), got {input_shape!r}") from error
    if not shape or (in_features is not None and shape[-1] != in_features):
        width = "" if in_features is None else f" with in_features = {in_features}"
        raise ValueError(f"input_shape must be (*batch, in_features){width}, got {shape}")
    return shape


def gru_options(inits: dict[str, Any], activations: dict[str, Any], use_bias: Any, param_dtype: Any) -> None:
    """Checks the constructor arguments that cells and layers of a GRU share; inits and activations by their names."""
    for name, value in (inits | activations).items():
        if not (name == "update_bias_init" and value is None):
            checks.function(name, value)
    if not isinstance(use_bias, bool):
        raise TypeError(f"use_bias must be a bool, got {use_bias!r}")
    if inits["update_bias_init"] is not None and not use_bias:
        raise ValueError("update_bias_init needs use_bias=True, got use_bias=False")
    checks.param_dtype(param_dtype)
