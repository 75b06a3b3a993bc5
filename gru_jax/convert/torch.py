"""Models from and to state dicts of `torch.nn.GRU` and `torch.nn.GRUCell`; torch itself is not imported."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax.cells import CUDNN
from gru_jax.convert.model import Model, check_model
from gru_jax.convert.packing import TORCH, Packed
from gru_jax.layers import Stack

_KINDS = {"weight_ih": "kernel", "weight_hh": "recurrent_kernel", "bias_ih": "bias", "bias_hh": "recurrent_bias"}


def from_torch(state_dict: Mapping[str, Any], prefix: str = "") -> Model:
    """The model of a state dict, whose layers PyTorch and we order alike.

    PyTorch's two biases of r and of z become one, their sum.

    Args:
      state_dict: arrays or CPU tensors by name: those of a `torch.nn.GRU` or `GRUCell`, and none else under the prefix.
      prefix: of their names, with its dot; other names are left alone.

    Returns:
      The model, with NumPy arrays in the dtype given; batch first, without dropout, as a state dict says neither.

    Raises:
      ValueError: if a name is missing or not known, or a shape or dtype does not fit; names it.
    """
    under = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    rest = {name: _array(value) for name, value in under.items()}
    end = "" if "weight_hh" in rest else "_l0"
    if f"weight_hh{end}" not in rest:
        raise ValueError(f"state_dict must have {prefix}weight_hh_l0 or {prefix}weight_hh, got {list(state_dict)}")
    use_bias, bidirectional = f"bias_ih{end}" in rest, f"weight_hh{end}_reverse" in rest
    width, features = (_last(rest.get(f"weight_{side}{end}")) for side in ("ih", "hh"))
    layers = {int(match[1]) for name in rest if (match := re.search(r"_l(\d+)", name))}
    stack = Stack(CUDNN, features, num_layers=max(len(layers), 1), bidirectional=bidirectional)
    params = []
    for cell_end, cell_width in zip(_ends(stack, is_cell=not end), stack.widths(width), strict=True):
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight_ih": ("(3·features, in_features)", (3 * features, cell_width)),
            "weight_hh": ("(3·features, features)", (3 * features, features)),
        }
        if use_bias:
            shapes["bias_ih"] = shapes["bias_hh"] = ("(3·features,)", (3 * features,))
        taken = {_KINDS[kind]: _take(rest, prefix, kind + cell_end, *shape) for kind, shape in shapes.items()}
        params.append(TORCH.unpack(Packed(**taken), reset_after=True))
    if rest:
        unknown = [prefix + name for name in rest]
        raise ValueError(f"state_dict must have the names of one torch.nn.GRU only under {prefix!r}, got {unknown} too")
    return Model(tuple(params), stack)


def to_torch(model: Model, prefix: str = "") -> dict[str, np.ndarray]:
    """The state dict of a `torch.nn.GRU`, as NumPy arrays.

    The second biases of r and z, which add nothing, are zero. There are biases if any cell of the model has one.

    Args:
      model: with the equations `gru_jax.CUDNN`, forward or bidirectional.
      prefix: of the names, with its dot.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or it is one that torch.nn.GRU cannot be.
    """
    stack = check_model(model).stack
    if stack.cell != CUDNN:
        raise ValueError(f"model.stack.cell must be gru_jax.CUDNN, the equations of torch.nn.GRU, got {stack.cell}")
    if stack.reverse:
        raise ValueError("model.stack.reverse must be False: no torch.nn.GRU runs backwards only, got True")
    use_bias = any(params.bias is not None or params.recurrent_bias is not None for params in model.params)
    state_dict: dict[str, np.ndarray] = {}
    for end, params in zip(_ends(stack), model.params, strict=True):
        packed = TORCH.pack(params, use_bias)._asdict()
        state_dict |= {
            prefix + kind + end: packed[field] for kind, field in _KINDS.items() if packed[field] is not None
        }
    return state_dict


def _ends(stack: Stack, is_cell: bool = False) -> list[str]:
    """What the names of each layer and direction end in, in the flat order."""
    if is_cell:
        return [""]
    directions = ("", "_reverse")[: stack.directions]
    return [f"_l{layer}{direction}" for layer in range(stack.num_layers) for direction in directions]


def _take(rest: dict[str, Any], prefix: str, name: str, symbols: str, expected: tuple[int, ...]) -> Any:
    """Removes a tensor that has this name and shape."""
    if name not in rest:
        raise ValueError(f"state_dict must have {prefix + name} of shape {symbols} = {expected}, got none")
    value = rest.pop(name)
    if value.shape != expected:
        raise ValueError(f"{prefix + name} must have shape {symbols} = {expected}, got {value.shape}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{prefix + name} must be floating point, got {value.dtype}")
    return value


def _last(value: np.ndarray | None) -> int:
    """The size of the last axis; 0 where there is none, which no shape fits then."""
    return value.shape[-1] if value is not None and value.ndim else 0


def _array(value: Any) -> np.ndarray:
    """NumPy's array of an array or tensor; NumPy cannot ask torch for bfloat16, which float32 holds exactly."""
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        return value.detach().float().numpy().astype(jnp.bfloat16)
    return np.asarray(value.detach() if hasattr(value, "detach") else value)
