"""Models from and to the weights of Keras; it is not imported."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gru_jax.cells import CHO2014, CUDNN, GRU
from gru_jax.convert import activations, layouts
from gru_jax.layers import Stack
from gru_jax.models import Model, check_gru

Config = Mapping[str, Any]

_DEFAULTS = {"activation": "tanh", "recurrent_activation": "sigmoid"}


def from_keras(
    weights: Sequence[Any], config: Config | Sequence[Config] | None = None, *, reset_after: bool = True
) -> Model:
    """The model of `keras.layers.GRU`, of `Bidirectional` around one, or of a stack of either.

    Weights do not tell the activations, nor whether a layer runs backwards. The layer's configuration does, so pass it
    too. Its options are treated as follows:

    - `activation` and `recurrent_activation` are carried if `gru_jax.convert.activations` has them.
    - `go_backwards` is carried as `Stack.reverse`, if the last layer returns only its last output. (Of whole sequences
      Keras returns the last step first; a model leaves every output beside its input.) In a stack only the first layer
      has it, since the others get what that one returns.
    - `time_major` of Keras 2 is carried.
    - `return_sequences` and `return_state` are ignored: a model returns both. Below another layer return_sequences must
      be True.
    - `units`, `use_bias` and `reset_after` must agree with the weights.
    - `merge_mode` must be "concat", and `stateful` False.
    - Others are ignored: `dropout` and `recurrent_dropout`, which are for training, `unroll`, `zero_output_for_mask` (a
      model's outputs of masked steps are 0), `dtype` and so on.

    Args:
      weights: as from `layer.get_weights()`; for a stack a list of such, first layer first.
      config: as from `layer.get_config()`; for a stack a list of such.
      reset_after: used if neither a bias nor a config tells it.

    Returns:
      The model, with NumPy arrays in their own dtype.

    Raises:
      TypeError: if weights or config have another type.
      ValueError: if a shape does not fit, or config contradicts the weights, or no model can represent it.

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
    options = [each for layer, one in zip(cells, configs, strict=True) for each in _options(one, len(layer))]
    flat = [found for layer in cells for found in layer]
    first = flat[0].leaves
    is_after = "bias[0]" in first or ("bias" not in first and options[0].get("reset_after", reset_after))
    layout = layouts.KERAS if is_after else layouts.KERAS_BEFORE
    model = layouts.model_of(layout, flat, GRU(is_after, *_functions(options[0])), len(layers))
    reverse = len(flat) == len(layers) and options[0].get("go_backwards", False)
    stack = dataclasses.replace(model.stack, reverse=reverse, time_major=options[0].get("time_major", False))
    model = dataclasses.replace(model, stack=stack)
    _check_options(options, model)
    return model


def to_keras(model: Model, config: Config | Sequence[Config] | None = None) -> list[Any]:
    """The weights of `keras.layers.GRU`, or of `Bidirectional`, for `layer.set_weights`; of several layers, a list.

    There are biases if any cell of the model has one.

    Args:
      model: with the equations `gru_jax.CUDNN` (Keras' default) or `gru_jax.CHO2014` (reset_after=False); or others,
        if config has them.
      config: of the layer that gets the weights, as from `layer.get_config()`; for a stack a list of such. It must
        agree with the model, see `from_keras`.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or Keras, or the layer, cannot represent it.
    """
    if config is None:
        stack = layouts.checked(model, "keras.layers.GRU", (CUDNN, CHO2014))
    else:
        stack = check_gru(model).stack
        layouts.check_no_zoneout(stack, "keras.layers.GRU")
    layout = layouts.KERAS if stack.cell.reset_after else layouts.KERAS_BEFORE
    layers = []
    for layer in layouts.by_layer(model):
        arrays: list[Any] = []
        for params in layer:
            kernel, recurrent_kernel, *biases = layout.packing.pack(params, model.use_bias)
            biases = [bias for bias in biases if bias is not None]
            arrays += [kernel, recurrent_kernel, *([np.stack(biases)] if len(biases) == 2 else biases)]
        layers.append(arrays)
    weights = layers[0] if len(layers) == 1 else layers
    if config is not None:
        _check_target(stack, from_keras(weights, config, reset_after=stack.cell.reset_after).stack)
    return weights


def _check_target(stack: Stack, target: Stack) -> None:
    """Checks that the model's stack agrees with the one of the target's config."""
    for name in ("cell", "reverse", "bidirectional", "time_major"):
        expected, got = getattr(target, name), getattr(stack, name)
        if got != expected:
            raise ValueError(f"model.stack.{name} must be what config says, {expected}, got {got}")


def _cells(name: str, layer: Sequence[Any]) -> Iterator[layouts.CellArrays]:
    """The arrays of each direction of a layer, by their names in the layout."""
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
        yield layouts.CellArrays(named, f"{name}{'[backward]' * direction}.")


def _options(config: Config | None, directions: int) -> list[Config]:
    """The configuration of each direction of a layer."""
    if config is None:
        return [{}] * directions
    config = config["config"] if "class_name" in config and "config" in config else config  # keras.layers.serialize
    merge = config.get("merge_mode", "concat")
    if merge != "concat":
        raise ValueError(
            f"config['merge_mode'] must be 'concat', got {merge!r}: a model's outputs are those of the directions side "
            "by side; with 'concat' in its place they are yours to merge, as jnp.split(outputs, 2, axis=-1)"
        )
    if "merge_mode" in config:
        cells = [config["layer"]["config"], (config.get("backward_layer") or {}).get("config", {})]
    elif "cell" in config:  # keras.layers.RNN(keras.layers.GRUCell)
        cells = [dict(config) | config["cell"]["config"]]
    else:
        cells = [config]
    if len(cells) != directions:
        raise ValueError(f"config must be of a layer with {directions} directions, as the weights are, got {config}")
    return cells


def _functions(config: Config) -> list[Any]:
    """σ and φ of a configuration."""
    functions = []
    for option in ("recurrent_activation", "activation"):
        name = config.get(option, _DEFAULTS[option])
        if name == "hard_sigmoid" and ("implementation" in config or "time_major" in config):
            raise ValueError(
                f"config[{option!r}] must not be 'hard_sigmoid' in Keras 2, whose options these are: there it is "
                "clip(0.2 x + 0.5, 0, 1), in Keras 3 and jax.nn it is clip(x/6 + 0.5, 0, 1)"
            )
        ours = activations.KERAS.get(name, name) if isinstance(name, str) else None
        if ours not in activations.ACTIVATIONS:
            known = [*activations.ACTIVATIONS, *activations.KERAS]
            raise ValueError(
                f"config[{option!r}] must be one of {known}, got {name!r}; if it is elementwise, say "
                f"{_DEFAULTS[option]!r} in its place, and GRU.from_model takes the function as "
                f"{'gate_fn' if option == 'recurrent_activation' else 'activation_fn'}"
            )
        functions.append(activations.by_name(f"config[{option!r}]", ours))
    return functions


def _check_options(options: Sequence[Config], model: Model) -> None:
    """Checks that the configuration of each direction agrees with the weights, and that a model can represent it."""
    stack = model.stack
    for i, (config, params) in enumerate(zip(options, model.params, strict=True)):
        layer, is_backward = divmod(i, stack.directions)
        expected = {
            "go_backwards": is_backward > 0 or (stack.reverse and layer == 0),
            "units": params.features,
            "use_bias": params.bias is not None,
            "reset_after": stack.cell.reset_after,
            "time_major": stack.time_major,
        } | {option: options[0].get(option, default) for option, default in _DEFAULTS.items()}
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise ValueError(f"config[{key!r}] must be {value!r}, got {config[key]!r}")
        if config.get("stateful"):
            raise ValueError(
                "config['stateful'] must be False, got True: a model keeps no state between calls; whoever passes the "
                "carry of one call on as initial_carry of the next says False here"
            )
        if layer + 1 < stack.num_layers and not config.get("return_sequences", True):
            raise ValueError(f"config[{layer}]['return_sequences'] must be True below another layer, got False")
    if stack.reverse and options[-1].get("return_sequences"):
        raise ValueError(
            "config['return_sequences'] must be False with go_backwards=True, got True: Keras returns the last step "
            "first, and a model every output beside its input; with False here, jnp.flip(outputs, -2) is what Keras has"
        )
