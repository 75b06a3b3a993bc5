"""Layers of any cell for Flax's linen; and a `GRUCell` over time, in place of `flax.linen.RNN`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
from flax import linen as nn
from flax import traverse_util

from gru_jax import checks, layers, parameters
from gru_jax.carries import Carry
from gru_jax.cells import Cell
from gru_jax.layers import Outputs
from gru_jax.linen.cell import GRUCell
from gru_jax.linen.layer import Layer
from gru_jax.options import options_of

DIRECTIONS = ("forward", "backward")


class RNN(Layer):
    """A cell over whole sequences: stacked layers, one or both directions, dropout, zoneout, masks and resets.

    The cell is one of `gru_jax.cells`, or a user's own (`gru_jax.cells.CellBase`). Each leaf of its parameters is a
    parameter under its path: ``layers_0/forward/kernel`` if they are `gru_jax.Params`, ``layers_0/forward/W`` if they
    are a dict with the key W. Random numbers are drawn only for dropout and zoneout, from the stream "dropout".

    Or the cell is a module, `gru_jax.linen.GRUCell`, as in `flax.linen.RNN`, also inside `nn.Bidirectional`. Then the
    only parameters are the cell's, and they lie where Flax's lie: under `cell` if this is the outermost module or made
    in `setup`; under the name of the cell, by default `GRUCell_0`, if the `@nn.compact` method of a module makes both.
    So a checkpoint of a model loads unchanged after `nn.RNN(nn.GRUCell(...))` in it became
    `gru_jax.linen.RNN(gru_jax.linen.GRUCell(...))`. There is one layer, in one direction, and features, dtype,
    param_dtype and carry_init are those of the cell.

    It runs `gru_jax.unroll`: everything that does not depend on the state, and most of the gradient, is parallel over
    time.

    Attributes:
      cell: the equations, or a `GRUCell`.
      features: width of the outputs of each layer and direction; None with a `GRUCell`.
      init_options: keywords for `cell.init`, e.g. ``{"update_bias_init": gru_jax.initializers.forget_bias}``.
      keep_order: for layers that run backwards only: whether outputs stay beside their inputs (True), or the last step
        comes first, with padding at the end (False). The default is True, with a `GRUCell` False, as in Flax.
      num_layers, bidirectional, dropout, recurrent_dropout, zoneout, time_major, dtype, method, reverse: see
        `gru_jax.options.Options`.
      return_carry: whether a call returns the carry by default.
      param_dtype: of the parameters. It is passed to a `cell.init` that takes a dtype.
      deterministic: if True, nothing is dropped, and zoneout is its expectation.
      carry_init: initializer of the carry, for calls without initial_carry; if zeros the carry is fresh, as the cell
        defines it.

    Raises:
      TypeError, ValueError: on construction, if an attribute is invalid; names it.

    Warns:
      UserWarning: on construction, if dropout is given and there is a single layer, so that nothing is dropped.

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
        if self.init_options is not None:  # a module must be hashable
            object.__setattr__(self, "init_options", flax.core.freeze(dict(self.init_options)))
        super().__post_init__()

    @nn.nowrap
    def _take_from_cell(self, cell: GRUCell) -> None:
        """Takes the attributes of a `GRUCell`, and checks that no others were given."""
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
        is_module = isinstance(self.cell, GRUCell)
        cell, features = (self.cell.equations, self.cell.features) if is_module else (self.cell, self.features)
        return layers.Stack(cell, features, **options_of(self))

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
        **arguments_of_run: Any,
    ) -> Outputs | tuple[Carry, Outputs]:
        """Runs over whole sequences.

        Args:
          inputs, initial_carry, seq_lengths, return_carry, deterministic, init_key: as for `GRU`. The carry of a
            `GRUCell` may have another width than its features, as in Flax.
          time_major, reverse, keep_order: override the attributes.
          **arguments_of_run: mask, resets, reset_state and return_layers, as for `GRU`.

        Returns:
          The outputs, or with return_carry (carry, outputs), as for `GRU`.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length whose value is known does not fit, or resets are given
            without a reset_state and carry_init is not zeros.
        """
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        stack = dataclasses.replace(self._stack(), time_major=time_major, reverse=reverse)
        if isinstance(self.cell, GRUCell) and initial_carry is not None:
            initial_carry = checks.array("initial_carry", initial_carry)
            stack = dataclasses.replace(stack, features=(self.features, *initial_carry.shape)[-1])
        arguments_of_run |= {"initial_carry": initial_carry, "seq_lengths": seq_lengths}
        carry, outputs = self._run(stack, inputs, deterministic, init_key, **arguments_of_run)
        if keep_order is None:
            keep_order = not isinstance(self.cell, GRUCell)
        if reverse and not keep_order:
            outputs = jax.tree.map(
                lambda hs: nn.recurrent.flip_sequences(hs, seq_lengths, hs.ndim - 2, time_major), outputs
            )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    @nn.compact
    def _params(self, stack: layers.Stack, in_features: int) -> list[Any]:
        """The parameters of every cell, under the names of layers and directions."""
        if isinstance(self.cell, GRUCell):
            return [self.cell.gru_params(in_features, stack.features)]
        widths = {f"layers_{i}": width for i, width in enumerate(stack.widths(in_features)[:: stack.directions])}
        if all(self.has_variable("params", name) for name in widths):  # Flax does not compare names
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
        """Fresh parameters of each direction of a layer, as nested dicts."""
        names = DIRECTIONS[: self._stack().directions]
        cells = [self._draw(k, in_features) for k in jax.random.split(key, len(names))]
        return {
            name: traverse_util.unflatten_dict(parameters.leaves_by_path(cell))
            for name, cell in zip(names, cells, strict=True)
        }

    @nn.nowrap
    def _unpacked(self, tree: Any, in_features: int | None) -> list[Any]:
        """The parameters of every cell, from the tree of all. Shapes are not checked if in_features is None.

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
