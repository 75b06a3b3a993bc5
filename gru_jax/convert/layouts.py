"""Where frameworks have the weights of a cell: a table, and the engine that reads and writes by it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.cells import CUDNN, GRU, Params
from gru_jax.convert import foreign, packing
from gru_jax.convert.packing import Packed, Packing
from gru_jax.layers import Stack
from gru_jax.models import Model, check_gru

Leaves = dict[str, Any]
"""The arrays of a tree by their path, e.g. "cell.dense_i.kernel"."""


class Layout(NamedTuple):
    """Where a framework has the weights of a cell.

    Attributes:
      packing: in which order.
      kernel, recurrent_kernel, bias, recurrent_bias: their names: one, or three if each gate has its own, or none.
    """

    packing: Packing
    kernel: tuple[str, ...]
    recurrent_kernel: tuple[str, ...]
    bias: tuple[str, ...]
    recurrent_bias: tuple[str, ...] = ()


TORCH = Layout(packing.TORCH, ("weight_ih",), ("weight_hh",), ("bias_ih",), ("bias_hh",))
KERAS = Layout(packing.KERAS, ("kernel",), ("recurrent_kernel",), ("bias[0]",), ("bias[1]",))
KERAS_BEFORE = Layout(packing.KERAS_BEFORE, ("kernel",), ("recurrent_kernel",), ("bias",))
LINEN = Layout(
    packing.LINEN,
    ("ir.kernel", "iz.kernel", "in.kernel"),
    ("hr.kernel", "hz.kernel", "hn.kernel"),
    ("ir.bias", "iz.bias", "in.bias"),
    ("hn.bias",),
)
NNX = Layout(packing.NNX, ("dense_i.kernel",), ("dense_h.kernel",), ("dense_i.bias",))
OURS = Layout(packing.LINEN, ("kernel",), ("recurrent_kernel",), ("bias",), ("recurrent_bias",))
HAIKU = Layout(packing.HAIKU, ("w_i",), ("w_h",), ("b",))
EQUINOX = Layout(packing.EQUINOX, ("weight_ih",), ("weight_hh",), ("bias",), ("bias_n",))


class Found(NamedTuple):
    """The arrays of a cell, by the names of its layout.

    Attributes:
      leaves: emptied as they are read.
      before, after: what stands around the names where they come from, for errors.
    """

    leaves: Leaves
    before: str = ""
    after: str = ""

    def full(self, name: str) -> str:
        """A name as whoever passed the weights knows it."""
        return f"{self.before}{name}{self.after}"

    def take(self, name: str, symbols: str, expected: tuple[int, ...]) -> Any:
        """Removes an array that has this name and shape."""
        if name not in self.leaves:
            got = [self.full(other) for other in self.leaves]
            raise ValueError(f"{self.full(name)} must be there, of shape {symbols} = {expected}, got {got}")
        value = self.leaves.pop(name)
        if value.shape != expected:
            raise ValueError(f"{self.full(name)} must have shape {symbols} = {expected}, got {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"{self.full(name)} must be floating point, got {value.dtype}")
        return value


def model_of(layout: Layout, cells: Sequence[Found], cell: GRU, num_layers: int) -> Model:
    """A model of cells in the flat order; every name and shape is checked, and nothing is left over.

    Raises:
      ValueError: if something does not fit; names it.
    """
    if not cells:
        raise ValueError("there must be the weights of one cell at least, got none")
    if len(cells) % num_layers:
        raise ValueError(f"every layer must have as many directions as the first, got {len(cells)} cells")
    first = cells[0]
    _refuse_another_cell(layout, first)
    features, width = (_rows(layout, field, first) for field in ("recurrent_kernel", "kernel"))
    stack = Stack(cell, features, num_layers=num_layers, bidirectional=len(cells) == 2 * num_layers)
    widths = stack.widths(width)
    params = [_params(layout, found, cell, width, features) for found, width in zip(cells, widths, strict=True)]
    return Model(tuple(params), stack)


def _refuse_another_cell(layout: Layout, found: Found) -> None:
    """Says so where the weights are those of an LSTM or of another cell."""
    names = layout.recurrent_kernel
    value = found.leaves.get(names[0])
    if value is not None and value.ndim == 2 and len(names) == 1:
        height, width = value.shape[::-1] if layout.packing.transposed else value.shape
        message = foreign.another_cell(width / max(height, 1), f"{found.full(names[0])} of shape {value.shape}")
    else:
        message = foreign.another_cell(foreign.blocks_by_name(found.leaves), f"the cell in {found.before.strip(' .:')}")
    if message:
        raise ValueError(message)


def _rows(layout: Layout, field: str, found: Found) -> int:
    """The rows of a matrix of weights, as we have it."""
    names = getattr(layout, field)
    symbols, _ = _shape(layout, field, len(names), 0, 0)
    full, value = found.full(names[0]), found.leaves.get(names[0])
    if value is None:
        raise ValueError(f"{full} must be there, of shape {symbols}, got {list(map(found.full, found.leaves))}")
    if value.ndim != 2:
        raise ValueError(f"{full} must have shape {symbols}, got {value.shape}")
    return value.shape[1 if layout.packing.transposed else 0]


def _params(layout: Layout, found: Found, cell: GRU, width: int, features: int) -> Params:
    use_bias = any(name in found.leaves for name in layout.bias)
    packed: dict[str, Any] = {}
    for field in Packed._fields:
        names = getattr(layout, field)
        absent = field == "recurrent_bias" and not cell.reset_after
        if not names or absent or (field.endswith("bias") and not use_bias):
            continue
        symbols, shape = _shape(layout, field, len(names), width, features)
        packed[field] = np.concatenate([found.take(name, symbols, shape) for name in names], axis=-1)
    if found.leaves:
        unknown = list(map(found.full, found.leaves))
        raise ValueError(f"the weights of a cell must have nothing but what its equations need, got {unknown} too")
    return layout.packing.unpack(Packed(**packed), cell.reset_after)


def _shape(layout: Layout, field: str, parts: int, width: int, features: int) -> tuple[str, tuple[int, ...]]:
    """The shape of one of the arrays that make up a field, in symbols and in numbers."""
    gates = len(layout.packing.second) if field == "recurrent_bias" else 3 // parts
    side = f"{gates}·features" if gates > 1 else "features"
    if field.endswith("bias"):
        return f"({side},)", (gates * features,)
    into, size = ("in_features", width) if field == "kernel" else ("features", features)
    if layout.packing.transposed:
        return f"({side}, {into})", (gates * features, size)
    return f"({into}, {side})", (size, gates * features)


def arrays_of(layout: Layout, params: Params, reset_after: bool, use_bias: bool) -> Iterator[tuple[str, Any]]:
    """The arrays of a cell by name."""
    packed = layout.packing.pack(params, use_bias)
    for field, value in packed._asdict().items():
        names = getattr(layout, field)
        if value is not None and (reset_after or field != "recurrent_bias"):
            yield from zip(names, np.split(value, len(names), axis=-1), strict=True)


def checked(model: Model, target: str, cells: Sequence[GRU], bidirectional: bool = True) -> Stack:
    """The stack of a model that the target can be."""
    stack = check_gru(model).stack
    if stack.cell not in cells:
        known = " or ".join("gru_jax.CUDNN" if cell == CUDNN else "gru_jax.CHO2014" for cell in cells)
        raise ValueError(f"model.stack.cell must be {known} for {target}, got {stack.cell}")
    if stack.reverse:
        raise ValueError(f"model.stack.reverse must be False for {target}, got True")
    refuse_zoneout(stack, target)
    if stack.bidirectional and not bidirectional:
        raise ValueError(f"model.stack.bidirectional must be False for {target}, got True")
    return stack


def refuse_zoneout(stack: Stack, target: str) -> None:
    """A target has no zoneout, which is there in evaluation, too, unlike dropout."""
    if stack.zoneout:
        raise ValueError(f"model.stack.zoneout must be 0 for {target}, got {stack.zoneout}")


def by_layer(model: Model) -> list[tuple[Params, ...]]:
    each = model.stack.directions
    return [model.params[i : i + each] for i in range(0, len(model.params), each)]


def mapping(name: str, value: Any, source: str) -> Mapping[Any, Any]:
    """An argument that must be a mapping; `source` says where a user has it from."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping of names to arrays, from {source}, got {type(value).__name__}")
    return value


def leaves_of(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of nested mappings, by their paths.

    `flax.traverse_util.flatten_dict` takes dicts alone, not a `nnx.State` or a mapping of Haiku, and strings as keys.
    """
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves_of(value, f"{path}.{key}" if path else str(key))
    elif tree is not None:
        yield path, array_of(tree)


def array_of(value: Any) -> np.ndarray:
    """NumPy's array of an array, a torch tensor, a variable of Flax's nnx or a box of its linen.

    NumPy cannot ask torch for bfloat16; float32 holds it exactly. A box, as `nn.with_partitioning` makes it, is a
    pytree of one leaf; its own `unbox` would put that on a mesh besides.
    """
    if hasattr(value, "unbox"):
        (value,) = jax.tree.leaves(value)
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        return value.detach().cpu().float().numpy().astype(jnp.bfloat16)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    value = value.get_value() if hasattr(value, "get_value") else value
    # NumPy has no PRNG keys. What is not floating point is refused by name, wherever it is.
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)
