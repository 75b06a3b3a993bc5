"""Models from and to the weights of Keras, Flax, Haiku and Equinox; none of them is imported.

What differs between cells is data, in `gru_jax.convert.layouts`. How layers and directions are put together differs
more than a table can say: each framework has two functions for it.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gru_jax.cells import CHO2014, CUDNN, GRU
from gru_jax.convert import layouts
from gru_jax.convert.model import Model, check_model

# --- Keras ------------------------------------------------------------------------------------------------------------


def from_keras(weights: Sequence[Any], config: Mapping[str, Any] | None = None, *, reset_after: bool = True) -> Model:
    """The model of `keras.layers.GRU`, or of `Bidirectional` around one.

    Args:
      weights: as `layer.get_weights()` returns them; or a list of such, one for each layer of a stack.
      config: as `layer.get_config()` returns it. Weights do not say which activations there are, nor whether a layer
        runs backwards; with it, what cannot be carried is refused.
      reset_after: where there is no bias; otherwise the shape of the bias says it.

    Returns:
      The model, with NumPy arrays in the dtype given.

    Raises:
      ValueError: if a shape does not fit, or config says what the model cannot be.

    >>> weights = [np.ones((3, 12)), np.ones((4, 12)), np.zeros((2, 12))]
    >>> from_keras(weights).params[0].recurrent_bias.shape
    (4,)
    """
    layers = [list(layer) for layer in weights] if _is_nested(weights) else [list(weights)]
    if config is not None:
        reset_after = _check_keras(config)
    cells: list[layouts.Found] = []
    cell = CUDNN if reset_after else CHO2014
    for i, layer in enumerate(layers):
        if len(layer) not in (2, 3, 4, 6):
            raise ValueError(
                f"weights of layer {i} must be kernel, recurrent_kernel and, with use_bias, bias; for Bidirectional "
                f"twice these; got {len(layer)} arrays"
            )
        each = len(layer) // (1 + (len(layer) > 3))
        for direction, arrays in enumerate([layer[:each], layer[each:]][: len(layer) // each]):
            where = f"weights[{i}]" + ("[backward]" if direction else "")
            named: layouts.Leaves = {
                "kernel": layouts.array_of(arrays[0]),
                "recurrent_kernel": layouts.array_of(arrays[1]),
            }
            if each == 3:
                bias = layouts.array_of(arrays[2])
                cell = CUDNN if bias.ndim == 2 else CHO2014
                named |= {"bias[0]": bias[0], "bias[1]": bias[1]} if bias.shape[:-1] == (2,) else {"bias": bias}
            cells.append(layouts.Found(named, where + "."))
    layout = layouts.KERAS if cell == CUDNN else layouts.KERAS_BEFORE
    return layouts.model_of(layout, cells, cell, len(layers))


def to_keras(model: Model) -> list[Any]:
    """The weights of `keras.layers.GRU`, or of `Bidirectional`, for `layer.set_weights`; of several layers, a list.

    There are biases if any cell of the model has one.

    Args:
      model: with the equations `gru_jax.CUDNN` (Keras' default) or `gru_jax.CHO2014` (reset_after=False).

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that Keras cannot be.
    """
    layout = (
        layouts.KERAS
        if layouts.checked(model, "keras.layers.GRU", (CUDNN, CHO2014)).cell == CUDNN
        else layouts.KERAS_BEFORE
    )
    layers = []
    for layer in layouts.by_layer(model):
        arrays: list[Any] = []
        for params in layer:
            kernel, recurrent_kernel, bias, second = layout.packing.pack(params, layouts.use_bias(model))
            arrays += [kernel, recurrent_kernel]
            if bias is not None:
                arrays.append(bias if second is None else np.stack([bias, second]))
        layers.append(arrays)
    return layers[0] if len(layers) == 1 else layers


def _is_nested(weights: Sequence[Any]) -> bool:
    return len(weights) > 0 and isinstance(weights[0], list | tuple)


def _check_keras(config: Mapping[str, Any]) -> bool:
    """reset_after; refuses what weights alone cannot carry."""
    wrapper, inner = config, config
    if "merge_mode" in config:
        inner = config["layer"]["config"]
        if wrapper["merge_mode"] != "concat":
            raise ValueError(f"config['merge_mode'] must be 'concat', got {wrapper['merge_mode']!r}")
    expected = {"activation": "tanh", "recurrent_activation": "sigmoid", "go_backwards": False}
    for key, value in expected.items():
        if inner.get(key, value) != value:
            raise ValueError(f"config[{key!r}] must be {value!r}, got {inner[key]!r}")
    return bool(inner.get("reset_after", True))


# --- Flax -------------------------------------------------------------------------------------------------------------


def from_linen(variables: Mapping[str, Any], *, cell: GRU = CUDNN) -> Model:
    """The model of `flax.linen.RNN(GRUCell)`, of `Bidirectional` around two, or of `gru_jax.linen.GRU`.

    Args:
      variables: as `layer.init` returns them, or the tree under "params".
      cell: the equations, which a tree does not tell.

    Returns:
      The model, with NumPy arrays in the dtype given.

    Raises:
      ValueError: if a name is missing or not known, or a shape does not fit; names it.
    """
    return _from_flax(variables.get("params", variables), "variables", cell, (layouts.LINEN,))


def to_linen(model: Model) -> dict[str, Any]:
    """Variables for `flax.linen.RNN(GRUCell)`, or `Bidirectional`, and for `gru_jax.linen.GRU` of any number of layers.

    Flax's own cell needs biases and the equations `gru_jax.CUDNN`.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack.
    """
    return {"params": _to_flax(model, layouts.LINEN)}


def from_nnx(state: Mapping[Any, Any], *, cell: GRU = CUDNN) -> Model:
    """The model of `flax.nnx.RNN(GRUCell)`, or of `Bidirectional` around two.

    The cells may be Flax's own, without a recurrent bias, or `gru_jax.nnx.GRUCell`, with one. (A `gru_jax.nnx.GRU` has
    its model as an attribute.)

    Args:
      state: as `nnx.state(layer, nnx.Param)` returns it, or a dict of arrays like it.
      cell: the equations, which a tree does not tell.

    Returns:
      The model, with NumPy arrays in the dtype given; the recurrent bias is zero where there is none.

    Raises:
      ValueError: if a name is missing or not known, or a shape does not fit; names it.
    """
    return _from_flax(state, "state", cell, (layouts.NNX, layouts.OURS))


def to_nnx(model: Model) -> dict[str, Any]:
    """The parameters of `flax.nnx.RNN(GRUCell)` or `Bidirectional`, as a dict for `nnx.State`.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that Flax's nnx cell cannot be: it has
        the equations `gru_jax.CUDNN`, one layer, and no recurrent bias, so that of the model must be zero.
    """
    stack = layouts.checked(model, "flax.nnx.GRUCell", (CUDNN,))
    if stack.num_layers > 1:
        raise ValueError(f"model.stack.num_layers must be 1: flax.nnx.RNN is a single layer, got {stack.num_layers}")
    return _to_flax(model, layouts.NNX)


def _from_flax(tree: Any, where: str, cell: GRU, known: Sequence[layouts.Layout]) -> Model:
    leaves = dict(layouts.leaves_of(tree))
    layers: dict[int, list[layouts.Found]] = {}
    numbers = {int(match[1]) for name in leaves if (match := re.match(r"layers_(\d+)\.", name))}
    for number in range(max(numbers, default=0) + 1):
        of_layer = f"layers_{number}." if numbers else ""
        both = any(name.startswith(f"{of_layer}backward_rnn.") for name in leaves)
        for direction in ("forward_rnn.", "backward_rnn.") if both else ("",):
            prefix = of_layer + direction + "cell."
            if not numbers and not both and not any(name.startswith(prefix) for name in leaves):
                prefix = ""
            taken = {name: leaves.pop(name) for name in list(leaves) if name.startswith(prefix)}
            own = {name.removeprefix(prefix): value for name, value in taken.items()}
            layers.setdefault(number, []).append(layouts.Found(own, f"{where}: {prefix}"))
    if leaves:
        raise ValueError(f"{where} must have the parameters of one GRU only, got {sorted(leaves)} too")
    cells = [one for number in sorted(layers) for one in layers[number]]
    fitting = [layout for layout in known if layout.recurrent_kernel[0] in cells[0].leaves]
    return layouts.model_of((fitting or known)[0], cells, cell, len(layers))


def _to_flax(model: Model, layout: layouts.Layout) -> dict[str, Any]:
    check_model(model)
    stack = model.stack
    tree: layouts.Leaves = {}
    names = ("forward_rnn.cell.", "backward_rnn.cell.") if stack.bidirectional else ("cell.",)
    for i, layer in enumerate(layouts.by_layer(model)):
        of_layer = f"layers_{i}." if stack.num_layers > 1 else ""
        for name, params in zip(names, layer, strict=True):
            tree |= {
                of_layer + name + key: value
                for key, value in layouts.arrays_of(layout, params, stack.cell.reset_after, layouts.use_bias(model))
            }
    return layouts.nested(tree)


# --- Haiku and Equinox ------------------------------------------------------------------------------------------------


def from_haiku(params: Mapping[str, Any]) -> Model:
    """The model of `hk.GRU`, or of several in `hk.DeepRNN`.

    Args:
      params: as `init` of the transformed function returns them, or a module's own dict of w_i, w_h and b.

    Returns:
      The model, `gru_jax.CHO2014`, with NumPy arrays in the dtype given; layers in the order of the modules' numbers.

    Raises:
      ValueError: if a name is missing or not known, or a shape does not fit; names it.
    """
    modules = {"": params} if "w_h" in params else params

    def number(name: str) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"_(\d+)(?:/|$)", name)))

    cells = [
        layouts.Found(dict(layouts.leaves_of(modules[name])), f"params: {name}{'.' if name else ''}")
        for name in sorted(modules, key=number)
    ]
    return layouts.model_of(layouts.HAIKU, cells, CHO2014, len(cells))


def to_haiku(model: Model, name: str = "gru") -> dict[str, dict[str, np.ndarray]]:
    """The parameters of `hk.GRU`, or of several in `hk.DeepRNN`: modules name, name_1, name_2 and so on.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that Haiku cannot be: it has the
        equations `gru_jax.CHO2014` and runs forward.
    """
    stack = layouts.checked(model, "hk.GRU", (CHO2014,), bidirectional=False)
    names = [name, *(f"{name}_{i}" for i in range(1, stack.num_layers))]
    return {
        module: dict(layouts.arrays_of(layouts.HAIKU, params, False, use_bias=True))
        for module, params in zip(names, model.params, strict=True)
    }


def from_equinox(cells: Any) -> Model:
    """The model of `eqx.nn.GRUCell`.

    Args:
      cells: the cell, or a list of cells for a stack of layers.

    Returns:
      The model, with NumPy arrays in the dtype given.

    Raises:
      ValueError: if an array is missing, or a shape does not fit; names it.
    """
    names = [name for field in layouts.EQUINOX[1:] for name in field]
    layers = list(cells) if isinstance(cells, list | tuple) else [cells]
    found = []
    for i, cell in enumerate(layers):
        get = cell.get if isinstance(cell, Mapping) else functools.partial(getattr, cell)
        arrays = {name: get(name, None) for name in names}
        leaves = {name: layouts.array_of(value) for name, value in arrays.items() if value is not None}
        found.append(layouts.Found(leaves, f"cells[{i}]."))
    return layouts.model_of(layouts.EQUINOX, found, CUDNN, len(layers))


def to_equinox(model: Model) -> list[dict[str, np.ndarray]]:
    """The arrays of `eqx.nn.GRUCell` by name, for `eqx.tree_at`; one dict for each layer.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that Equinox cannot be: it has the
        equations `gru_jax.CUDNN` and runs forward.
    """
    layouts.checked(model, "eqx.nn.GRUCell", (CUDNN,), bidirectional=False)
    return [dict(layouts.arrays_of(layouts.EQUINOX, params, True, layouts.use_bias(model))) for params in model.params]
