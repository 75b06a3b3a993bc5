"""Activations by name, for files: code is not stored in them."""

import jax
import jax.numpy as jnp

from gru_jax.gates import Activation

ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "exp": jnp.exp,
    "identity": jax.nn.identity,
}
"""By the name in a file, which is that in `jax.nn` or `jax.numpy`. All are elementwise, with default arguments."""

KERAS = {
    "linear": "identity",
    "exponential": "exp",
    "softsign": "soft_sign",
    "swish": "silu",
    "hard_swish": "hard_silu",
}
"""Names that Keras 3 has for some of them; the others it calls as we do."""

ONNX = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "elu": "Elu",
    "softplus": "Softplus",
    "soft_sign": "Softsign",
}
"""Those that a GRU node of ONNX can have, by our names. Its HardSigmoid and LeakyRelu have other constants."""


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
        f"{argument} must be a function that has a name in a file, one of JAX's {', '.join(ACTIVATIONS)}, "
        f"got {activation!r}"
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
