"""Models from and to state dicts of `torch.nn.GRU` and `torch.nn.GRUCell`; torch itself is not imported."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gru_jax.cells import CUDNN
from gru_jax.convert import layouts
from gru_jax.convert.model import Model

_NAME = re.compile(r"((?:weight|bias)_(?:ih|hh))(|_l(\d+)(_reverse)?)")


def from_torch(state_dict: Mapping[str, Any], prefix: str = "") -> Model:
    """The model of a state dict, whose layers PyTorch and we order alike.

    PyTorch's two biases of r and of z become one, their sum.

    Args:
      state_dict: arrays or tensors by name: those of a `torch.nn.GRU` or `GRUCell`, and none else under the prefix.
      prefix: of their names, with its dot; other names are left alone.

    Returns:
      The model, with NumPy arrays in the dtype given; batch first, without dropout, as a state dict says neither.

    Raises:
      ValueError: if a name is missing or not known, or a shape or dtype does not fit; names it.
    """
    under = [name for name in state_dict if name.startswith(prefix)]
    cells: dict[tuple[int, bool], layouts.Found] = {}
    for name in under:
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match is None:
            raise ValueError(
                f"state_dict must have the names of one torch.nn.GRU only under {prefix!r}, got {name!r} too"
            )
        kind, ending, layer, backward = match.groups()
        found = cells.setdefault((int(layer or 0), bool(backward)), layouts.Found({}, prefix, ending))
        if ending != found.after:
            raise ValueError(f"state_dict must be of a torch.nn.GRU or of a GRUCell, got names of both: {under}")
        found.leaves[kind] = layouts.array_of(state_dict[name])
    if not cells:
        raise ValueError(f"state_dict must have {prefix}weight_hh_l0 or {prefix}weight_hh, got {list(state_dict)}")
    num_layers, directions = 1 + max(layer for layer, _ in cells), 1 + max(backward for _, backward in cells)
    flat = [(layer, backward > 0) for layer in range(num_layers) for backward in range(directions)]
    missing = [_ending(*cell) for cell in flat if cell not in cells]
    if missing:
        raise ValueError(f"state_dict must have {prefix}weight_hh{missing[0]}, got {under}")
    return layouts.model_of(layouts.TORCH, [cells[cell] for cell in flat], CUDNN, num_layers)


def to_torch(model: Model, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict of a `torch.nn.GRU`, as NumPy arrays.

    The second biases of r and z, which add nothing, are zero. There are biases if any cell of the model has one.

    Args:
      model: with the equations `gru_jax.CUDNN`, forward or bidirectional.
      prefix: of the names, with its dot.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that torch.nn.GRU cannot be.
    """
    layouts.checked(model, "torch.nn.GRU", (CUDNN,))
    state_dict: dict[str, np.ndarray] = {}
    for layer, cells in enumerate(layouts.by_layer(model)):
        for backward, params in enumerate(cells):
            for kind, value in layouts.arrays_of(layouts.TORCH, params, True, layouts.use_bias(model)):
                state_dict[prefix + kind + _ending(layer, backward > 0)] = value
    return state_dict


def _ending(layer: int, backward: bool) -> str:
    return f"_l{layer}" + "_reverse" * backward
