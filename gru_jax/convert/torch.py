"""Models from and to state dicts of `torch.nn.GRU` and `torch.nn.GRUCell`; torch itself is not imported."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gru_jax.cells import CUDNN
from gru_jax.convert import layouts
from gru_jax.models import Model

_NAME = re.compile(r"((?:weight|bias)_(?:ih|hh))(|_l(\d+)(_reverse)?)")
_FIRST = ("weight_ih_l0", "weight_ih")


def from_torch(state_dict: Mapping[str, Any], prefix: str = "") -> Model:
    """The model of a state dict. Layers have the same order in PyTorch.

    The two biases that PyTorch has for r, and for z, become one, their sum.

    Args:
      state_dict: arrays or tensors by name. Those under the prefix must be of one `torch.nn.GRU` or `GRUCell`.
      prefix: of their names, with its dot; other names are ignored.

    Returns:
      The model, with NumPy arrays in their own dtype; batch first and without dropout, about which a state dict says
      nothing.

    Raises:
      TypeError: if state_dict is not a mapping.
      ValueError: if a name is missing or not known, or a shape or dtype does not fit; names it.
    """
    layouts.mapping("state_dict", state_dict, "module.state_dict() or torch.load(path, weights_only=True)")
    under = [name for name in state_dict if name.startswith(prefix)]
    cells: dict[tuple[int, bool], layouts.CellArrays] = {}
    for name in under:
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match is None:
            raise ValueError(
                f"state_dict must have the names of one torch.nn.GRU only under {prefix!r}, got {name!r} too"
                f"{', of an LSTM with proj_size, which gru_jax has not' * ('weight_hr' in name)}{_hint(state_dict)}"
            )
        kind, ending, layer, backward = match.groups()
        found = cells.setdefault((int(layer or 0), bool(backward)), layouts.CellArrays({}, prefix, ending))
        if ending != found.after:
            raise ValueError(f"state_dict must be of a torch.nn.GRU or of a GRUCell, got names of both: {under}")
        found.leaves[kind] = layouts.array_of(state_dict[name])
    if not cells:
        raise ValueError(
            f"state_dict must have {prefix}weight_ih_l0 or {prefix}weight_ih, got {list(state_dict)}{_hint(state_dict)}"
        )
    num_layers, directions = 1 + max(layer for layer, _ in cells), 1 + max(backward for _, backward in cells)
    flat = [(layer, backward > 0) for layer in range(num_layers) for backward in range(directions)]
    missing = [_ending(*cell) for cell in flat if cell not in cells]
    if missing:
        raise ValueError(f"state_dict must have {prefix}weight_hh{missing[0]}, got {under}")
    return layouts.model_of(layouts.TORCH, [cells[cell] for cell in flat], CUDNN, num_layers)


def to_torch(model: Model, prefix: str = "", *, cell: bool = False) -> dict[str, np.ndarray]:
    """The state dict of a `torch.nn.GRU`, or of a `GRUCell`, as NumPy arrays.

    The second biases of r and z are zero. There are biases if any cell of the model has one. `torch.tensor` takes the
    arrays, except those in bfloat16, which need `torch.tensor(v.astype("float32")).bfloat16()`.

    Args:
      model: with the equations `gru_jax.CUDNN`, forward or bidirectional.
      prefix: of the names, with its dot.
      cell: whether the names are those of a GRUCell, which has one layer and runs forward.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or torch.nn.GRU cannot represent it.
    """
    target = "torch.nn.GRUCell" if cell else "torch.nn.GRU"
    stack = layouts.checked(model, target, (CUDNN,), bidirectional=not cell)
    if cell and stack.num_layers > 1:
        raise ValueError(f"model.stack.num_layers must be 1 for torch.nn.GRUCell, got {stack.num_layers}")
    state_dict: dict[str, np.ndarray] = {}
    for layer, cells in enumerate(layouts.by_layer(model)):
        for backward, params in enumerate(cells):
            ending = "" if cell else _ending(layer, backward > 0)
            for kind, value in layouts.arrays_of(layouts.TORCH, params, True, model.use_bias):
                state_dict[prefix + kind + ending] = value
    return state_dict


def prefixes(names: Iterable[str]) -> list[str]:
    """The possible prefixes of a GRU's names.

    >>> prefixes(["encoder.rnn.weight_ih_l0", "encoder.rnn.weight_hh_l0", "head.weight"])
    ['encoder.rnn.']
    """
    return sorted({name.removesuffix(end) for name in names for end in _FIRST if name.endswith(end)})


def _hint(state_dict: Mapping[str, Any]) -> str:
    found, deeper = prefixes(state_dict), [name for name, value in state_dict.items() if isinstance(value, Mapping)]
    if any(found):
        return f"; prefixes of GRUs or LSTMs in it: {found}"
    return f"; it is a checkpoint, with state dicts of its own: those of the names {deeper}" if deeper else ""


def _ending(layer: int, backward: bool) -> str:
    return f"_l{layer}" + "_reverse" * backward
