"""Models from and to the weights of Keras; it is not imported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gru_jax.cells import CHO2014, CUDNN, Params
from gru_jax.convert import layouts
from gru_jax.convert.model import Model

Config = Mapping[str, Any]


def from_keras(
    weights: Sequence[Any], config: Config | Sequence[Config] | None = None, *, reset_after: bool = True
) -> Model:
    """The model of `keras.layers.GRU`, of `Bidirectional` around one, or of a stack of either.

    Args:
      weights: as `layer.get_weights()` returns them; of a stack a list of such, first layer first.
      config: as `layer.get_config()` returns it; of a stack a list of such. Weights do not say which activations there
        are, nor whether a layer runs backwards; with it, what cannot be carried is refused. Rates of dropout, which are
        for training, are not carried.
      reset_after: where neither a bias nor a config says it.

    Returns:
      The model, with NumPy arrays in the dtype given.

    Raises:
      TypeError: if weights or config are not of their kind.
      ValueError: if a shape does not fit, or config says what the model cannot be or the weights are not.

    >>> weights = [np.ones((3, 12)), np.ones((4, 12)), np.zeros((2, 12))]
    >>> from_keras(weights).params[0].recurrent_bias.shape
    (4,)
    """
    if not isinstance(weights, list | tuple):
        raise TypeError(f"weights must be a list, as layer.get_weights() is, got {type(weights).__name__}")
    is_stack = len(weights) > 0 and isinstance(weights[0], list | tuple)
    layers = list(weights) if is_stack else [weights]
    configs: list[Any] = [None] * len(layers) if config is None else list(config) if is_stack else [config]
    if len(configs) != len(layers) or not all(one is None or isinstance(one, Mapping) for one in configs):
        raise TypeError(f"config must be a mapping, or of a stack a list of {len(layers)}, got {config!r}")
    cells = [list(_cells(f"weights[{i}]" if is_stack else "weights", layer)) for i, layer in enumerate(layers)]
    options = [each for layer, given in zip(cells, configs, strict=True) for each in _options(given, len(layer))]
    flat = [found for layer in cells for found in layer]
    first = flat[0].leaves
    is_after = "bias[0]" in first or ("bias" not in first and options[0].get("reset_after", reset_after))
    cell = CUDNN if is_after else CHO2014
    model = layouts.model_of(layouts.KERAS if is_after else layouts.KERAS_BEFORE, flat, cell, len(layers))
    for i, (params, given) in enumerate(zip(model.params, options, strict=True)):
        _check_options(given, params, cell.reset_after, i % model.stack.directions > 0)
    return model


def to_keras(model: Model) -> list[Any]:
    """The weights of `keras.layers.GRU`, or of `Bidirectional`, for `layer.set_weights`; of several layers, a list.

    There are biases if any cell of the model has one.

    Args:
      model: with the equations `gru_jax.CUDNN` (Keras' default) or `gru_jax.CHO2014` (reset_after=False).

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that Keras cannot be.
    """
    stack = layouts.checked(model, "keras.layers.GRU", (CUDNN, CHO2014))
    layout = layouts.KERAS if stack.cell == CUDNN else layouts.KERAS_BEFORE
    layers = []
    for layer in layouts.by_layer(model):
        arrays: list[Any] = []
        for params in layer:
            kernel, recurrent_kernel, *biases = layout.packing.pack(params, model.use_bias)
            given = [bias for bias in biases if bias is not None]
            arrays += [kernel, recurrent_kernel, *([np.stack(given)] if len(given) == 2 else given)]
        layers.append(arrays)
    return layers[0] if len(layers) == 1 else layers


def _cells(name: str, layer: Sequence[Any]) -> Iterator[layouts.Found]:
    """The arrays of each direction of a layer, by the names of the layout."""
    if len(layer) not in (2, 3, 4, 6):
        raise ValueError(
            f"{name} must be kernel, recurrent_kernel and, with use_bias, bias; for Bidirectional twice these; "
            f"got {len(layer)} arrays"
        )
    each = len(layer) if len(layer) < 4 else len(layer) // 2
    for direction, start in enumerate(range(0, len(layer), each)):
        kernel, recurrent_kernel, *biases = map(layouts.array_of, layer[start : start + each])
        named = {"kernel": kernel, "recurrent_kernel": recurrent_kernel}
        for bias in biases:
            named |= {f"bias[{i}]": row for i, row in enumerate(bias)} if bias.ndim == 2 else {"bias": bias}
        yield layouts.Found(named, f"{name}{'[backward]' * direction}.")


def _options(config: Config | None, directions: int) -> list[Config]:
    """The configuration of each direction of a layer."""
    if config is None:
        return [{}] * directions
    merge = config.get("merge_mode", "concat")
    if merge != "concat":
        raise ValueError(f"config['merge_mode'] must be 'concat', got {merge!r}")
    if "merge_mode" in config:
        cells = [config["layer"]["config"], (config.get("backward_layer") or {}).get("config", {})]
    elif "cell" in config:  # keras.layers.RNN(keras.layers.GRUCell)
        cells = [config["cell"]["config"] | {"go_backwards": config.get("go_backwards", False)}]
    else:
        cells = [config]
    if len(cells) != directions:
        raise ValueError(f"config must be of a layer with {directions} directions, as the weights are, got {config}")
    return cells


def _check_options(given: Config, params: Params, reset_after: bool, is_backward: bool) -> None:
    """Refuses a configuration of a direction that a model cannot have, or that is of other weights."""
    expected = {
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "go_backwards": is_backward,
        "units": params.features,
        "use_bias": params.bias is not None,
        "reset_after": reset_after,
    }
    for key, value in expected.items():
        if given.get(key, value) != value:
            raise ValueError(f"config[{key!r}] must be {value!r}, got {given[key]!r}")
