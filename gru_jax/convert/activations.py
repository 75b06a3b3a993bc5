"""Activations by name, for files: code is not stored in them."""

import jax
import jax.numpy as jnp

from gru_jax.gates import Activation

ACTIVATIONS: dict[str, Activation] = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


def name_of(argument: str, activation: Activation) -> str:
    """The name of an activation.

    Args:
      argument: what an error calls it.
      activation: one of the values of `ACTIVATIONS`.

    Raises:
      ValueError: if it is another function.

    >>> name_of("candidate", jnp.tanh)
    'tanh'
    """
    for name, known in ACTIVATIONS.items():
        if activation is known:
            return name
    raise ValueError(
        f"{argument} must be a function that has a name in a file, jax.nn.sigmoid or jax.numpy.tanh, got {activation!r}"
    )


def by_name(argument: str, name: object) -> Activation:
    """The activation of a name, whatever its case.

    Args:
      argument: what an error calls it.
      name: one of the keys of `ACTIVATIONS`.

    Raises:
      ValueError: if there is no such name.
    """
    found = ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return found
