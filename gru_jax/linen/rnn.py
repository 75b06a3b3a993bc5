"""Layers of any cell for Flax's linen, and a cell of Flax over time in the form of `flax.linen.RNN`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
from flax import linen as nn
from flax import traverse_util

from gru_jax import arguments, checks, layers, parameters
from gru_jax.carries import Carry
from gru_jax.cells import Cell
from gru_jax.layers import Outputs
from gru_jax.linen.cell import GRUCell
from gru_jax.linen.layer import Layer
from gru_jax.options import options_of

DIRECTIONS = ("forward", "backward")


class RNN(Layer):
    """A cell over whole sequences: stacked layers, one or both directions, dropout, zoneout, masks and resets.

    The cell is a value of `gru_jax.cells`, or one's own (`gru_jax.cells.CellBase`). Each leaf of its parameters is a
    parameter under its path: ``layers_0/forward/kernel`` where they are `gru_jax.Params`, ``layers_0/forward/W`` where
    they are a dict with the key W. Random numbers are drawn for dropout and zoneout alone, from the stream "dropout".

    Or it is a module, `gru_jax.linen.GRUCell`, in the place of `flax.linen.RNN`, also inside `nn.Bidirectional`. Then
    there are no parameters but the cell's, and these lie where Flax's lie: under `cell` if it is the outermost module
    or made in `setup`, and under the name of the cell, `GRUCell_0` if it was given none, in a module whose
    `@nn.compact` method makes both. So a checkpoint of a model in which `nn.RNN(nn.GRUCell(...))` became
    `gru_jax.linen.RNN(gru_jax.linen.GRUCell(...))` loads unchanged. There is one layer, in one direction, and features,
    dtype, param_dtype and carry_init are those of the cell.

    Runs `gru_jax.unroll`, so that what does not depend on the state and most of the gradient are parallel over time.

    Attributes:
      cell: the equations, or a `GRUCell`.
      features: width of the outputs of each layer and direction; None with a `GRUCell`.
      init_options: keywords for `cell.init`, as ``{"update_bias_init": gru_jax.initializers.forget_bias}``.
      keep_order: of layers that run backwards only, whether outputs stay beside their inputs (True) or the last step
        comes first, padding at the end (False). By default True, and with a `GRUCell` False, as in Flax.
      num_layers, bidirectional, dropout, recurrent_dropout, zoneout, time_major, dtype, method, reverse: see
        `gru_jax.options.Options`.
      return_carry: what a call returns by default.
      param_dtype: of the parameters, given to a `cell.init` that takes a dtype.
      deterministic: if True nothing is dropped, and zoneout is its expectation.
      carry_init: initializer of the carry of a call that is given none; if zeros it is fresh, as the cell says.

    Raises:
      TypeError, ValueError: on construction, if an attribute is not of its kind, or recurrent_dropout is given and the
        cell's step does not take it.

    Warns:
      UserWarning: on construction, if dropout is given and there is one layer, so that nothing is dropped.

    >>> import gru_jax, jax.numpy as jnp
    >>> layer = RNN(gru_jax.cells.LSTM(), 4, num_layers=2)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> layer.apply(variables, jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7])).shape
    (2, 10, 4)
    >>> sorted(variables["params"]["layers_0"]["forward"])
    ['bias', 'kernel', 'recurrent_kernel']
    >>> class Tagger(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, inputs):
    ...         return nn.Dense(5)(RNN(GRUCell(4))(inputs))
    >>> variables = Tagger().init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> sorted(variables["params"])
    ['Dense_0', 'GRUCell_0']
    """

    cell: Any
    features: Any = None
    _: dataclasses.KW_ONLY
    init_options: Mapping[str, Any] | None = None
    keep_order: bool | None = None

    def __post_init__(self) -> None:
        if isinstance(self.cell, GRUCell):
            self._take_from_cell(self.cell)
        elif not isinstance(self.cell, Cell) or isinstance(self.cell, type):
            raise TypeError(
                f"cell must be one of gru_jax.cells or a gru_jax.linen.GRUCell, got {type(self.cell).__name__}"
            )
        parameters.check_init_options(self.init_options)
        if self.init_options is not None:  # a module is hashed by its attributes
            object.__setattr__(self, "init_options", flax.core.freeze(dict(self.init_options)))
        super().__post_init__()

    @nn.nowrap
    def _take_from_cell(self, cell: GRUCell) -> None:
        """Of one `GRUCell` there are no layers, and what it says itself is not said twice."""
        for name in ("num_layers", "bidirectional", "features", "init_options"):
            if (value := getattr(self, name)) != (default := getattr(type(self), name)):
                raise ValueError(f"{name} must be {default} with a GRUCell, which is one cell, got {value!r}")
        for name in ("dtype", "param_dtype", "carry_init"):
            if getattr(self, name) not in (getattr(type(self), name), getattr(cell, name)):
                raise ValueError(
                    f"{name} must be that of the GRUCell, {getattr(cell, name)}, got {getattr(self, name)}"
                )
            object.__setattr__(self, name, getattr(cell, name))

    @nn.nowrap
    def _stack(self) -> layers.Stack:
        if isinstance(self.cell, GRUCell):
            return layers.Stack(self.cell.equations, self.cell.features, **options_of(self))
        return layers.Stack(self.cell, self.features, **options_of(self))

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        deterministic: bool | None = None,
        init_key: jax.Array | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        **given: Any,
    ) -> Outputs | tuple[Carry, Outputs]:
        """Runs over whole sequences.

        Args:
          inputs, initial_carry, seq_lengths, return_carry, deterministic, init_key: as of `GRU`; the carry of a
            `GRUCell` may be of another width than its features, as in Flax.
          time_major, reverse, keep_order: take the place of the attributes.
          **given: mask, resets, reset_state and return_layers, as of `GRU`.

        Returns:
          outputs, or (carry, outputs) if return_carry, as of `GRU`.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit, or reset_state is missing
            beside resets and a carry_init other than zeros.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        stack = dataclasses.replace(self._stack(), time_major=time_major, reverse=reverse)
        inputs = arguments.inputs(inputs, None, time_major)
        if isinstance(self.cell, GRUCell) and initial_carry is not None:
            initial_carry = checks.array("initial_carry", initial_carry)
            stack = dataclasses.replace(stack, features=(self.features, *initial_carry.shape)[-1])
        given |= {"initial_carry": initial_carry, "seq_lengths": seq_lengths}
        carry, outputs = self._run(stack, inputs, deterministic, init_key, **given)
        if reverse and not (not isinstance(self.cell, GRUCell) if keep_order is None else keep_order):
            batch_axes = inputs.ndim - 2
            outputs = jax.tree.map(
                lambda hs: nn.recurrent.flip_sequences(hs, seq_lengths, batch_axes, time_major), outputs
            )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    @nn.compact
    def _params(self, stack: layers.Stack, in_features: int) -> list[Any]:
        """The parameters of every cell, under the names of layers and directions."""
        if isinstance(self.cell, GRUCell):
            return [self.cell.gru_params(in_features, stack.features)]
        widths = {f"layers_{i}": width for i, width in enumerate(stack.widths(in_features)[:: stack.directions])}
        if all(self.has_variable("params", name) for name in widths):  # Flax compares no names
            tree: Any = {name: self.get_variable("params", name) for name in widths}
        else:
            tree = {name: self.param(name, self._draw_layer, width) for name, width in widths.items()}
        return self._unpacked(nn.meta.unbox(tree), in_features)

    @nn.nowrap
    def _draw(self, key: jax.Array, in_features: int) -> Any:
        """Fresh parameters of a cell."""
        stack = self._stack()
        return parameters.init_params(stack.cell, key, in_features, stack.features, self.param_dtype, self.init_options)

    @nn.nowrap
    def _like(self, in_features: int) -> Any:
        return jax.eval_shape(lambda: self._draw(jax.random.key(0), in_features))

    @nn.nowrap
    def _draw_layer(self, key: jax.Array, in_features: int) -> dict[str, Any]:
        """The parameters of each direction of a layer, nested by the paths of their leaves."""
        names = DIRECTIONS[: self._stack().directions]
        cells = [self._draw(k, in_features) for k in jax.random.split(key, len(names))]
        return {
            name: traverse_util.unflatten_dict(parameters.leaves_by_path(cell))
            for name, cell in zip(names, cells, strict=True)
        }

    @nn.nowrap
    def _unpacked(self, tree: Any, in_features: int | None) -> list[Any]:
        """The parameters of every cell out of the tree of all; shapes are not compared if in_features is None.

        Raises:
          ValueError: if a name is missing or not known, or a shape does not fit; names it.
        """
        stack = self._stack()
        names = [(f"layers_{i}", name) for i in range(stack.num_layers) for name in DIRECTIONS[: stack.directions]]
        leaves = traverse_util.flatten_dict(tree)
        if unknown := [path for path in leaves if path[:2] not in names]:
            raise ValueError(f"params must have {['/'.join(name) for name in names]} alone, got {unknown} too")
        widths = stack.widths(in_features or 1)
        like = {width: self._like(width) for width in set(widths)}
        cells = []
        for name, width in zip(names, widths, strict=True):
            own = {path[2:]: leaf for path, leaf in leaves.items() if path[:2] == name}
            full = "/".join(("params", *name))
            cells.append(parameters.params_from_paths(full, own, like[width], shapes=in_features is not None))
        return cells

    @nn.nowrap
    def _params_in(self, variables: Mapping[str, Any]) -> Sequence[Any]:
        if not isinstance(self.cell, GRUCell):
            return self._unpacked(nn.meta.unbox(variables["params"]), None)
        from gru_jax.convert.frameworks import from_linen

        return from_linen(variables, cell=self.cell.equations).params
