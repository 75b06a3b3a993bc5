"""Names of activations, for files, which do not store code."""

from gru_jax.activations import FUNCTIONS, Named, canonical
from gru_jax.gates import Activation

ACTIVATIONS: dict[str, Activation] = {name: Named(name) for name in FUNCTIONS}

KERAS = {
    "linear": "identity",
    "exponential": "exp",
    "softsign": "soft_sign",
    "swish": "silu",
    "hard_swish": "hard_silu",
}
"""Our names by those of Keras 3, where they differ."""

ONNX = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "elu": "Elu",
    "softplus": "Softplus",
    "soft_sign": "Softsign",
}
"""The activations of ONNX' GRU by our names. Its HardSigmoid and LeakyRelu have other constants."""


def name_of(argument: str, activation: Activation) -> str:
    """The name of an activation.

    Args:
      argument: what an error calls it.
      activation: one of the values of `ACTIVATIONS`, or a function that computes the same.

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
        f"{argument} must be a function that has a name in a file, one of JAX's {', '.join(ACTIVATIONS)}, "
        f"got {activation!r}"
    )


def by_name(argument: str, name: object) -> Activation:
    """The activation of a name, in upper or lower case.

    Args:
      argument: what an error calls it.
      name: one of the keys of `ACTIVATIONS`.

    Raises:
      ValueError: if the name is not known.
    """
    found = ACTIVATIONS.get(name.lower()) if isinstance(name, str) else None
    if found is None:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, ACTIVATIONS))}, got {name!r}")
    return found
