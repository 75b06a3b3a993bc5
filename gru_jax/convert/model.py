"""A trained GRU as a value: what every converter makes and takes."""

import dataclasses
from typing import Any

import jax

from gru_jax.cells import Params
from gru_jax.layers import Carry, Stack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A stack of GRU layers and its parameters. A pytree whose leaves are the parameters.

    Attributes:
      stack: the equations, and how layers and directions are put together.
      params: of each layer and direction, in the flat order of `Stack`.

    """

    params: tuple[Params, ...]
    stack: Stack = dataclasses.field(metadata={"static": True})

    def __call__(self, inputs: jax.Array, **given: Any) -> tuple[Carry, jax.Array]:
        """(carry, outputs) of whole sequences; arguments as those of `Stack.run`."""
        return self.stack.run(self.params, inputs, **given)
