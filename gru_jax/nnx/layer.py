"""The GRU as a layer for Flax's nnx."""

import inspect
from collections.abc import Mapping
from typing import Any, Self

import jax.numpy as jnp
from flax import nnx

from gru_jax import cells, checks, initializers
from gru_jax.models import EQUATION_FIELDS, Model, layer_arguments
from gru_jax.nnx.cell import GRUCell
from gru_jax.nnx.rnn import RNN
from gru_jax.options import with_signature


def _parameters(function: Any, *names: str) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(function).parameters.items() if name in names}


_INITS = ("use_bias", "kernel_init", "recurrent_kernel_init", "bias_init", "update_bias_init")
_OF_CELL = _parameters(GRUCell.__init__, *EQUATION_FIELDS, *_INITS)
"""The options that the layer passes to its cells."""
_OF_RNN = _parameters(RNN.__init__, "return_carry", "param_dtype", "carry_init")


class GRU(RNN):
    """A GRU over whole sequences: stacked layers, one or both directions, dropout, zoneout, masks and resets.

    `GRU.from_model` makes one from trained weights: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`, likewise
    for Keras, Flax, Haiku, Equinox and ONNX. `layer.model` is the way back.

    It is an `RNN` of `gru_jax.GRU`, whose cells are `GRUCell`.

    Attributes:
      cells: a `GRUCell` for each layer and direction: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
      stack: the static part: the equations, the number of layers, rates, layout.

    >>> layer = GRU(3, 4, num_layers=2, bidirectional=True, dropout=0.1, rngs=nnx.Rngs(0))
    >>> outputs = layer(jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7]))
    >>> outputs.shape
    (2, 10, 8)
    >>> layer.eval()
    >>> carry, outputs = layer(jnp.ones((2, 10, 3)), return_carry=True)
    >>> [state.shape for state in carry]
    [(2, 4), (2, 4), (2, 4), (2, 4)]
    """

    @with_signature(*_OF_RNN.values(), *_OF_CELL.values())
    def __init__(self, in_features: int, features: int, *, rngs: nnx.Rngs, **options: Any) -> None:
        """Draws the parameters.

        Args:
          in_features, features: widths of the input, and of the state of each layer and direction.
          rngs: as for `RNN`.
          **options: of `RNN`: return_carry, param_dtype, carry_init, num_layers, bidirectional, dropout,
            recurrent_dropout, zoneout, time_major, dtype, method, reverse; and of `GRUCell`: reset_after, use_bias,
            gate_fn, activation_fn, kernel_init, recurrent_kernel_init, bias_init, update_bias_init.

        Raises:
          TypeError, ValueError: if an argument is invalid; names it.

        Warns:
          UserWarning: if dropout is given and there is a single layer, so that nothing is dropped.
        """
        of_cell = {name: options.pop(name) for name in _OF_CELL if name in options}
        for name in ("gate_fn", "activation_fn"):
            checks.function(name, of_cell.get(name, _OF_CELL[name].default))
        equations = cells.GRU(**{field: of_cell[name] for name, field in EQUATION_FIELDS.items() if name in of_cell})
        super().__init__(equations, in_features, features, init_options=of_cell, rngs=rngs, **options)

    def _cell(self, in_features: int, init_options: Mapping[str, Any] | None, rngs: nnx.Rngs) -> GRUCell:
        return GRUCell(
            in_features,
            self.features,
            dtype=self.stack.dtype,
            param_dtype=self.param_dtype,
            carry_init=self.carry_init,
            rngs=rngs,
            **init_options or {},
        )

    @property
    def params(self) -> tuple[cells.Params, ...]:
        return tuple(cell.params for cell in self.cells)

    @classmethod
    def from_model(cls, model: Model, *, rngs: nnx.Rngs | None = None, **changes: Any) -> Self:
        """The layer of a trained model: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`.

        Args:
          model: as from `gru_jax.convert`. JAX turns float64 into float32 unless jax_enable_x64 is on.
          rngs: source of dropout, stream "dropout", and of carries, stream "carry", if the layer draws any.
          **changes: options that override the model's, such as time_major, dropout, dtype, gate_fn and activation_fn;
            and return_carry and carry_init.

        Raises:
          TypeError, ValueError: if the parameters of the model do not fit, or an option is not known.
        """
        model, arguments = layer_arguments(model, changes)
        # They are replaced at once, and an orthogonal matrix would take seconds to compile.
        kernels: dict[str, Any] = {"kernel_init": initializers.zeros, "recurrent_kernel_init": initializers.zeros}
        rngs = nnx.Rngs(0) if rngs is None else rngs
        layer = cls(model.params[0].in_features, rngs=rngs, **kernels, **arguments)
        for cell, params in zip(layer.cells, model.params, strict=True):
            for name, value in params._asdict().items():
                if value is not None:
                    getattr(cell, name).set_value(jnp.asarray(value))
        return layer
