"""A stack of layers with its parameters, as one value: a layer without Flax. Converters make and take it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax.cells import GRU
from gru_jax.layers import Carry, Outputs, Stack
from gru_jax.options import OPTION_NAMES, options_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A stack of layers and its parameters. A pytree whose leaves are the parameters.

    Attributes:
      params: of each layer and direction, in the flat order of `Stack`; for a GRU `Params`.
      stack: the equations, and how layers and directions are put together.
    """

    params: tuple[Any, ...]
    stack: Stack = dataclasses.field(metadata={"static": True})

    @staticmethod
    def of(gru: Any, params: Any = None) -> "Model":
        """The model of a layer or a cell.

        Args:
          gru: a layer of `gru_jax.nnx` or `gru_jax.linen`, the equations of a GRU, or a model, which is returned.
          params: the variables of a linen layer, or the `Params` of the equations; otherwise None.

        Raises:
          TypeError, ValueError: if an argument has another type, or parameters do not fit; names the parameter.

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

    def __call__(self, inputs: jax.Array, **options: Any) -> tuple[Carry, Outputs]:
        """(carry, outputs) of whole sequences. Arguments are those of `Stack.run`."""
        return self.stack.run(self.params, inputs, **options)


def check_model(model: Any) -> Model:
    """Checks that `model` is a model whose parameters fit its stack, and returns it.

    Raises:
      TypeError, ValueError: if it is not, or a parameter does not fit; names the parameter.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model must be a gru_jax.convert.Model, as layer.model is, got {type(model).__name__}")
    model.stack.check(model.params, "model.params")
    return model


def check_gru(model: Any) -> Model:
    """Checks that `model` is that of a GRU, with parameters in floating point, and returns it.

    Raises:
      TypeError, ValueError: as `check_model`.
    """
    cell = check_model(model).stack.cell
    if not isinstance(cell, GRU):
        raise TypeError(f"model.stack.cell must be a gru_jax.GRU, got {type(cell).__name__}")
    for i, params in enumerate(model.params):
        for field, value in params._asdict().items():
            if value is not None and not jnp.issubdtype(value.dtype, jnp.floating):
                raise TypeError(f"model.params[{i}].{field} must be floating point, got {value.dtype}")
    return model


EQUATION_FIELDS = {"gate_fn": "gate", "activation_fn": "candidate", "reset_after": "reset_after"}
"""The fields of the equations, by the names of the Flax layer's options."""


def layer_arguments(model: Any, changes: Mapping[str, Any]) -> tuple[Model, dict[str, Any]]:
    """A model of a GRU with changed options, and the arguments of its Flax layer, which nnx and linen share.

    Raises:
      TypeError, ValueError: if an option is not known, or the parameters of the model do not fit the stack.
    """
    stack = check_gru(model).stack
    known = ["return_carry", *EQUATION_FIELDS, "carry_init", *OPTION_NAMES]
    if unknown := sorted(changes.keys() - set(known)):
        raise TypeError(f"from_model has no option {', '.join(unknown)}, only {', '.join(known)}")
    cell = dataclasses.replace(
        stack.cell, **{field: changes[n] for n, field in EQUATION_FIELDS.items() if n in changes}
    )
    stack = dataclasses.replace(stack, cell=cell, **{name: changes[name] for name in OPTION_NAMES if name in changes})
    model = check_gru(Model(model.params, stack))
    weights = {
        "features": stack.features,
        "use_bias": model.use_bias,
        "param_dtype": jax.dtypes.canonicalize_dtype(model.params[0].kernel.dtype),
    }
    equations = {name: getattr(cell, field) for name, field in EQUATION_FIELDS.items()}
    others = {name: changes[name] for name in ("return_carry", "carry_init") if name in changes}
    return model, options_of(stack) | weights | equations | others
