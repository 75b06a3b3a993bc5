"""A trained GRU as a value: what every converter makes and takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax.cells import GRU, Params
from gru_jax.layers import Carry, Outputs, Stack


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

    @staticmethod
    def of(gru: Any, params: Any = None) -> "Model":
        """The model of a layer or a cell.

        Args:
          gru: a `gru_jax.nnx.GRU`, a `gru_jax.linen.GRU`, the equations of a cell, or a model, as it is.
          params: the variables of the layer in linen, or the `Params` of the cell; None with the others.

        Raises:
          TypeError, ValueError: if something is not of its kind, or parameters do not fit; names the parameter.

        >>> cell = GRU()
        >>> Model.of(cell, cell.init(jax.random.key(0), 3, 4)).stack.features
        4
        """
        if isinstance(gru, GRU):
            gru.check(params)
            return check_model(Model((params,), Stack(gru, params.features)))
        model = gru if isinstance(gru, Model) else getattr(gru, "model", None)
        if callable(model) and not isinstance(model, Model):
            return model(params)
        if not isinstance(model, Model):
            raise TypeError(f"model must be a gru_jax.convert.Model, a layer or a cell, got {type(gru).__name__}")
        if params is not None:
            raise TypeError(f"params must be None with a {type(gru).__name__}, which has its own")
        return check_model(model)

    @property
    def use_bias(self) -> bool:
        """Whether any cell has a bias."""
        return any(params.bias is not None or params.recurrent_bias is not None for params in self.params)

    def __call__(self, inputs: jax.Array, **given: Any) -> tuple[Carry, Outputs]:
        """(carry, outputs) of whole sequences; arguments as those of `Stack.run`."""
        return self.stack.run(self.params, inputs, **given)


def check_model(model: Any) -> Model:
    """`model`, if its parameters are those that its stack needs.

    Raises:
      TypeError, ValueError: if something is not of its kind, or a shape does not fit; names the parameter.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a gru_jax.convert.Model, as layer.model is, got {type(model).__name__}")
    model.stack.check(model.params, "model.params")
    for i, params in enumerate(model.params):
        for field, value in params._asdict().items():
            if value is not None and not jnp.issubdtype(value.dtype, jnp.floating):
                raise TypeError(f"model.params[{i}].{field} must be floating point, got {value.dtype}")
    return model


def layer_arguments(model: Any, changes: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """A model whose stack has other options; and the arguments of its Flax layer, which nnx and linen have in common.

    Raises:
      TypeError, ValueError: if there is no such option, or the parameters of the model do not fit the stack.
    """
    stack = check_model(model).stack
    equations = {"gate_fn": "gate", "activation_fn": "candidate", "reset_after": "reset_after"}
    known = ["return_carry", *equations, *(field.name for field in dataclasses.fields(stack))]
    if unknown := sorted(changes.keys() - set(known)):
        raise TypeError(f"from_model has no option {', '.join(unknown)}, only {', '.join(known)}")
    stack = dataclasses.replace(stack, **{name: changes[name] for name in changes.keys() - equations.keys()})
    cell = dataclasses.replace(
        stack.cell, **{equations[name]: changes[name] for name in changes.keys() & equations.keys()}
    )
    model = check_model(Model(model.params, dataclasses.replace(stack, cell=cell)))
    stack = model.stack
    options = {field.name: getattr(stack, field.name) for field in dataclasses.fields(stack) if field.name != "cell"}
    return model, options | {
        "reset_after": stack.cell.reset_after,
        "gate_fn": stack.cell.gate,
        "activation_fn": stack.cell.candidate,
        "use_bias": model.use_bias,
        "param_dtype": jax.dtypes.canonicalize_dtype(model.params[0].kernel.dtype),
    }
