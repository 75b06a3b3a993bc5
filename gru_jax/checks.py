"""Checks of arguments at the public boundary: each names the argument, what was expected and what came."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""The floating-point dtypes of parameters, inputs and states."""
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""Those that promote to one of them."""


def integer(name: str, value: Any, at_least: int) -> None:
    """Checks that `value` is an integer of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def rate(name: str, value: Any) -> None:
    """Checks that `value` is a rate of dropout or zoneout, a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number in [0, 1), got {value!r} of type {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def rates(name: str, value: Any) -> None:
    """Checks that `value` is a rate, or a tuple or NamedTuple of rates."""
    parts = jax.tree_util.tree_leaves_with_path(value) if isinstance(value, tuple) else [((), value)]
    for path, part in parts:
        rate(name + jax.tree_util.keystr(path), part)


def function(name: str, value: Any) -> None:
    """Checks that `value` can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r} of type {type(value).__name__}")


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array, or a TypeError that names the argument."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from error


def shape(name: str, value: jax.Array, symbols: str, expected: tuple[Any, ...]) -> None:
    """Checks that an array has the shape `expected`, which `symbols` gives in symbols.

    >>> shape("h_0", jnp.zeros((2, 5)), "(*batch, features)", (2, 4))
    Traceback (most recent call last):
        ...
    ValueError: h_0 must have shape (*batch, features) = (2, 4), got (2, 5)
    """
    if value.shape != tuple(expected):
        raise ValueError(f"{name} must have shape {symbols} = {tuple(expected)}, got {value.shape}")


def broadcasts(name: str, value: jax.Array, symbols: str, to: tuple[Any, ...]) -> None:
    """Checks that an array broadcasts to the shape `to` by NumPy's rules.

    >>> broadcasts("reset_state", jnp.zeros((2, 4)), "(*batch, features)", (3, 4))
    Traceback (most recent call last):
        ...
    ValueError: reset_state must broadcast to (*batch, features) = (3, 4), got shape (2, 4)
    """
    sizes = to[len(to) - value.ndim :] if value.ndim <= len(to) else None
    if sizes is None or any(size not in (wide, 1) for size, wide in zip(value.shape, sizes, strict=True)):
        raise ValueError(f"{name} must broadcast to {symbols} = {tuple(to)}, got shape {value.shape}")


def unsharded_time(name: str, value: jax.Array, axis: int) -> None:
    """Checks that the time axis of an array is not sharded over an explicit mesh: the steps follow one another."""
    spec = jax.typeof(value).sharding.spec
    if -len(spec) <= axis < len(spec) and spec[axis] is not None:
        raise ValueError(f"{name} must not be sharded over time, its axis {axis % value.ndim}, got {spec}")


def weight(name: str, value: Any, symbols: str, ndim: int) -> None:
    """Checks that `value` is an array of real numbers with `ndim` axes, none of them empty.

    `symbols` is the expected shape in symbols.
    """
    if not isinstance(value, jax.Array | np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be an array of JAX or NumPy of shape {symbols}, got {value!r:.100} of type "
            f"{type(value).__name__}"
        )
    floating(name, value)
    if len(value.shape) != ndim or 0 in value.shape:
        raise ValueError(f"{name} must have shape {symbols}, no axis of it empty, got {tuple(value.shape)}")


def floating(name: str, value: jax.Array | np.ndarray) -> None:
    """Checks that an array is in one of `FLOATS`, or of integers, which promote to floating point.

    >>> floating("params.bias", jnp.zeros(3, jnp.float8_e4m3fn))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: params.bias must be real floating point, got dtype float8_e4m3fn: expected ... integers of 8 to 64 bits
    """
    if value.dtype.name not in FLOATS + _INTEGERS:
        raise TypeError(
            f"{name} must be real floating point, got dtype {value.dtype}: expected {', '.join(FLOATS)}, or integers "
            "of 8 to 64 bits"
        )


def flags(name: str, value: Any) -> jax.Array:
    """`value`, a bool, integer or floating array, as a bool array: True where it is not 0, so where it is NaN, too.

    >>> flags("resets", jnp.array([0.0, 1.0, jnp.nan])).tolist()
    [False, True, True]
    """
    value = array(name, value)
    if value.dtype == jnp.bool_:
        return value
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name} must be bool, integer or floating point, got dtype {value.dtype}")
    return value != 0


def optional_flags(
    name: str, value: Any, symbols: str, expected: tuple[Any, ...], time_axis: int | None = None
) -> jax.Array | None:
    """`flags` of the shape `expected`, whose time axis, if there is one, is not sharded; None if `value` is None."""
    if value is None:
        return None
    value = flags(name, value)
    if time_axis is not None:
        unsharded_time(name, value, time_axis)
    shape(name, value, symbols, expected)
    return value


def lengths(name: str, value: jax.Array, batch: tuple[Any, ...], steps: Any) -> None:
    """Checks that lengths are integers of shape (*batch,) in [0, T]; traced values are not checked."""
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    shape(name, value, "(*batch,)", batch)
    if isinstance(value, jax.core.Tracer) or not isinstance(steps, int) or not value.is_fully_addressable:
        return
    values = np.asarray(value)
    if values.size and not (0 <= values.min() and values.max() <= steps):
        raise ValueError(f"{name} must lie in [0, T] = [0, {steps}], got values in [{values.min()}, {values.max()}]")


def dtype(name: str, value: Any) -> None:
    """Checks that `value` is a real floating-point dtype, or None."""
    if value is not None and not jnp.issubdtype(value, jnp.floating):
        raise TypeError(f"{name} must be a floating-point dtype or None, got {value!r}")


def param_dtype(value: Any, name: str = "param_dtype") -> None:
    """Checks that `value` is one of the dtypes `FLOATS`."""
    if value is None or not jnp.issubdtype(value, jnp.floating) or jnp.dtype(value).name not in FLOATS:
        raise TypeError(f"{name} must be a floating-point dtype, one of {', '.join(FLOATS)}, got {value!r}")
