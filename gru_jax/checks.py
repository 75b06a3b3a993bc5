"""Checks of arguments at the public boundary: each names the argument, what was expected and what came."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def integer(name: str, value: Any, at_least: int) -> None:
    """Refuses anything but an integer of `at_least` or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def rate(name: str, value: Any) -> None:
    """Refuses anything but a dropout rate, a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number in [0, 1), got {value!r} of type {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def rates(name: str, value: Any) -> None:
    """Refuses anything but a rate, or a tuple or NamedTuple of rates."""
    parts = jax.tree_util.tree_leaves_with_path(value) if isinstance(value, tuple) else [((), value)]
    for path, part in parts:
        rate(name + jax.tree_util.keystr(path), part)


def function(name: str, value: Any) -> None:
    """Refuses what cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r} of type {type(value).__name__}")


def choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuses anything but one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array; a TypeError that names the argument where it is none."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(value).__name__}: {error}") from error


def shape(name: str, value: jax.Array, symbols: str, expected: tuple[Any, ...]) -> None:
    """Refuses an array of another shape than `expected`; `symbols` says how that shape comes about.

    >>> shape("h_0", jnp.zeros((2, 5)), "(*batch, features)", (2, 4))
    Traceback (most recent call last):
        ...
    ValueError: h_0 must have shape (*batch, features) = (2, 4), got (2, 5)
    """
    if value.shape != tuple(expected):
        raise ValueError(f"{name} must have shape {symbols} = {tuple(expected)}, got {value.shape}")


def broadcasts(name: str, value: jax.Array, symbols: str, to: tuple[Any, ...]) -> None:
    """Refuses an array that does not broadcast to the shape `to` by NumPy's rules.

    >>> broadcasts("reset_state", jnp.zeros((2, 4)), "(*batch, features)", (3, 4))
    Traceback (most recent call last):
        ...
    ValueError: reset_state must broadcast to (*batch, features) = (3, 4), got shape (2, 4)
    """
    sizes = to[len(to) - value.ndim :] if value.ndim <= len(to) else None
    if sizes is None or any(size not in (wide, 1) for size, wide in zip(value.shape, sizes, strict=True)):
        raise ValueError(f"{name} must broadcast to {symbols} = {tuple(to)}, got shape {value.shape}")


def unsharded_time(name: str, value: jax.Array, axis: int) -> None:
    """Refuses an array whose time axis is sharded over an explicit mesh: one step follows the other."""
    spec = jax.typeof(value).sharding.spec
    if -len(spec) <= axis < len(spec) and spec[axis] is not None:
        raise ValueError(f"{name} must not be sharded over time, its axis {axis % value.ndim}, got {spec}")


def weight(name: str, value: Any, symbols: str, ndim: int) -> None:
    """Refuses what is no array of real numbers with so many axes, none of them empty; `symbols` is the shape wanted."""
    if not isinstance(value, jax.Array | np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be an array of JAX or NumPy of shape {symbols}, got {value!r:.100} of type "
            f"{type(value).__name__}"
        )
    floating(name, value)
    if len(value.shape) != ndim or 0 in value.shape:
        raise ValueError(f"{name} must have shape {symbols}, no axis of it empty, got {tuple(value.shape)}")


def floating(name: str, value: jax.Array | np.ndarray) -> None:
    """Refuses complex and non-numeric arrays; integers are let through, as they promote to floating point."""
    if not (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)):
        raise TypeError(f"{name} must be real floating point, got dtype {value.dtype}")


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


def lengths(name: str, value: jax.Array, batch: tuple[Any, ...], steps: Any) -> None:
    """Refuses lengths that are not integers of shape (*batch,) within [0, T]; values only where they are known."""
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    shape(name, value, "(*batch,)", batch)
    if isinstance(value, jax.core.Tracer) or not isinstance(steps, int) or not value.is_fully_addressable:
        return
    values = np.asarray(value)
    if values.size and not (0 <= values.min() and values.max() <= steps):
        raise ValueError(f"{name} must lie in [0, T] = [0, {steps}], got values in [{values.min()}, {values.max()}]")


def dtype(name: str, value: Any) -> None:
    """Refuses anything but a real floating-point dtype, or None."""
    if value is not None and not jnp.issubdtype(value, jnp.floating):
        raise TypeError(f"{name} must be a floating-point dtype or None, got {value!r}")


def param_dtype(value: Any) -> None:
    """Refuses anything but a real floating-point dtype."""
    dtype("param_dtype", value)
    if value is None:
        raise TypeError("param_dtype must be a floating-point dtype, got None")
