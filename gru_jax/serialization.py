"""What lets `jax.export` write functions whose arguments or results are parameters or states of this package."""

import contextlib
from typing import TypeVar

from jax import export

T = TypeVar("T")


def serializable(kind: type[T]) -> type[T]:
    """Registers a NamedTuple for `Exported.serialize`, by its name here; a decorator of the class.

    Deserialising needs gru_jax imported, as the registration lies here.
    """
    # A module that is loaded again finds the name taken; the class that has it stays as good as it was.
    with contextlib.suppress(ValueError):
        export.register_namedtuple_serialization(kind, serialized_name=f"gru_jax.{kind.__name__}")
    return kind
