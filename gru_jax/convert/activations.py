"""Activations by name, for files: code is not stored in them."""

from gru_jax.activations import Named, canonical
from gru_jax.gates import Activation

ACTIVATIONS: dict[str, Activation] = {name: Named(name) for name in ("sigmoid", "tanh")}


def name_of(argument: str, activation: Activation) -> str:
    """The name of an activation.

    Args:
      argument: what an error calls it.
      activation: one of the values of `ACTIVATIONS`, or a function that is one of them.

    Raises:
      ValueError: if it is another function.

    >>> import jax
    >>> name_of("candidate", jax.lax.tanh)
    'tanh'
    """
    found = canonical(activation)
    for name, known in ACTIVATIONS.items():
        if found == known:
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
