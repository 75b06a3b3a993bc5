"""Registration of parameters and states with `jax.export`, so that exported functions may take and return them."""

import contextlib
from typing import TypeVar

from jax import export

T = TypeVar("T")


def serializable(kind: type[T]) -> type[T]:
    """A class decorator that registers a NamedTuple for `Exported.serialize` under its name in this package.

    Deserialising needs gru_jax imported, since that registers the class.
    """
    # A reloaded module finds the name taken. The first class still serves.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(kind, serialized_name=f"gru_jax.{kind.__name__}")
    return kind
