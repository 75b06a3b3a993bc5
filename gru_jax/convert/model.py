"""A trained GRU as a value: what every converter makes and takes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks
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


def check_model(model: Any) -> Model:
    """`model`, if its parameters are those that its stack needs.

    Raises:
      TypeError, ValueError: if something is not of its kind, or a shape does not fit; names the parameter.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a gru_jax.convert.Model, got {type(model).__name__}")
    stack, params = model.stack, model.params
    count = stack.num_layers * stack.directions
    if len(params) != count:
        raise ValueError(
            f"model.params must have {count} members, one for each of {stack.num_layers} layers and "
            f"{stack.directions} directions, got {len(params)}"
        )
    for i, (cell, width) in enumerate(zip(params, stack.widths(params[0].in_features), strict=True)):
        if not isinstance(cell, Params):
            raise TypeError(f"model.params[{i}] must be gru_jax.Params, got {type(cell).__name__}")
        _check_params(f"model.params[{i}]", cell, stack, width)
    return model


def _check_params(name: str, params: Params, stack: Stack, width: int) -> None:
    features = stack.features
    expected = {
        "kernel": ("(in_features, 3·features)", (width, 3 * features)),
        "recurrent_kernel": ("(features, 3·features)", (features, 3 * features)),
        "bias": ("(3·features,)", (3 * features,)),
        "recurrent_bias": ("(features,)", (features,)),
    }
    for field, (symbols, shape) in expected.items():
        value = getattr(params, field)
        if value is None and field in ("bias", "recurrent_bias"):
            continue
        if field == "recurrent_bias" and not stack.cell.reset_after:
            raise ValueError(f"{name}.recurrent_bias must be None with reset_after=False: that cell has no such bias")
        checks.shape(f"{name}.{field}", value, symbols, shape)
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}.{field} must be floating point, got {value.dtype}")
