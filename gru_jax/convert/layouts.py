"""Where frameworks store the weights of a cell: a table, and the code that reads and writes by it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import checks
from gru_jax.cells import CUDNN, GRU, Params
from gru_jax.convert import foreign, packing
from gru_jax.convert.packing import PackedWeights, Packing
from gru_jax.layers import Stack
from gru_jax.models import Model, check_gru

Leaves = dict[str, Any]
"""The arrays of a tree by their path, e.g. "cell.dense_i.kernel"."""


class Layout(NamedTuple):
    """Where a framework stores the weights of a cell.

    Attributes:
      packing: the order of the gates within an array.
      kernel, recurrent_kernel, bias, recurrent_bias: names of arrays: one, or three if each gate has its own, or none.
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


class CellArrays(NamedTuple):
    """The arrays of a cell, by the names of its layout.

    Attributes:
      leaves: the arrays. `pop` removes them.
      before, after: prefix and suffix of the names at their source, for errors.
    """

    leaves: Leaves
    before: str = ""
    after: str = ""

    def full(self, name: str) -> str:
        """The full name of an array at its source."""
        return f"{self.before}{name}{self.after}"

    def pop(self, name: str, symbols: str, expected: tuple[int, ...]) -> Any:
        """Removes and returns the array of a name, if it has this shape and is in floating point."""
        if name not in self.leaves:
            got = [self.full(other) for other in self.leaves]
            raise ValueError(f"{self.full(name)} must be there, of shape {symbols} = {expected}, got {got}")
        value = self.leaves.pop(name)
        if value.shape != expected:
            raise ValueError(f"{self.full(name)} must have shape {symbols} = {expected}, got {value.shape}")
        if value.dtype.name not in checks.FLOATS:
            known = ", ".join(checks.FLOATS)
            raise ValueError(f"{self.full(name)} must be floating point, got {value.dtype}: expected one of {known}")
        return value


def model_of(layout: Layout, cells: Sequence[CellArrays], cell: GRU, num_layers: int) -> Model:
    """A model from the arrays of its cells, in the flat order. All names and shapes are checked.

    Raises:
      ValueError: if an array is missing, not known or does not fit; names it.
    """
    if not cells:
        raise ValueError("there must be the weights of one cell at least, got none")
    if len(cells) % num_layers:
        raise ValueError(f"every layer must have as many directions as the first, got {len(cells)} cells")
    first = cells[0]
    _check_is_gru(layout, first)
    features, width = (_rows(layout, field, first) for field in ("recurrent_kernel", "kernel"))
    stack = Stack(cell, features, num_layers=num_layers, bidirectional=len(cells) == 2 * num_layers)
    widths = stack.widths(width)
    params = [_params(layout, found, cell, width, features) for found, width in zip(cells, widths, strict=True)]
    return Model(tuple(params), stack)


def _check_is_gru(layout: Layout, found: CellArrays) -> None:
    """Raises an error that names the cell if the weights are those of an LSTM or of another cell."""
    names = layout.recurrent_kernel
    value = found.leaves.get(names[0])
    if value is not None and value.ndim == 2 and len(names) == 1:
        height, width = value.shape[::-1] if layout.packing.transposed else value.shape
        message = foreign.another_cell(width / max(height, 1), f"{found.full(names[0])} of shape {value.shape}")
    else:
        message = foreign.another_cell(foreign.blocks_by_name(found.leaves), f"the cell in {found.before.strip(' .:')}")
    if message:
        raise ValueError(message)


def _rows(layout: Layout, field: str, found: CellArrays) -> int:
    """The number of rows of a matrix of weights, in our orientation."""
    names = getattr(layout, field)
    symbols, _ = _shape(layout, field, len(names), 0, 0)
    full, value = found.full(names[0]), found.leaves.get(names[0])
    if value is None:
        raise ValueError(f"{full} must be there, of shape {symbols}, got {list(map(found.full, found.leaves))}")
    if value.ndim != 2:
        raise ValueError(f"{full} must have shape {symbols}, got {value.shape}")
    return value.shape[1 if layout.packing.transposed else 0]


def _params(layout: Layout, found: CellArrays, cell: GRU, width: int, features: int) -> Params:
    use_bias = any(name in found.leaves for name in layout.bias)
    packed: dict[str, Any] = {}
    for field in PackedWeights._fields:
        names = getattr(layout, field)
        is_absent = field == "recurrent_bias" and not cell.reset_after
        if not names or is_absent or (field.endswith("bias") and not use_bias):
            continue
        symbols, shape = _shape(layout, field, len(names), width, features)
        packed[field] = np.concatenate([found.pop(name, symbols, shape) for name in names], axis=-1)
    if found.leaves:
        unknown = list(map(found.full, found.leaves))
        raise ValueError(f"the weights of a cell must have nothing but what its equations need, got {unknown} too")
    return layout.packing.unpack(PackedWeights(**packed), cell.reset_after)


def _shape(layout: Layout, field: str, parts: int, width: int, features: int) -> tuple[str, tuple[int, ...]]:
    """The shape of each of the `parts` arrays of a field, in symbols and in numbers."""
    gates = len(layout.packing.recurrent_biases) if field == "recurrent_bias" else 3 // parts
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
    """The stack of a model, if the target can represent it."""
    stack = check_gru(model).stack
    if stack.cell not in cells:
        known = " or ".join("gru_jax.CUDNN" if cell == CUDNN else "gru_jax.CHO2014" for cell in cells)
        raise ValueError(f"model.stack.cell must be {known} for {target}, got {stack.cell}")
    if stack.reverse:
        raise ValueError(f"model.stack.reverse must be False for {target}, got True")
    check_no_zoneout(stack, target)
    if stack.bidirectional and not bidirectional:
        raise ValueError(f"model.stack.bidirectional must be False for {target}, got True")
    return stack


def check_no_zoneout(stack: Stack, target: str) -> None:
    """Raises an error if there is zoneout, which no target has. Unlike dropout, it acts in evaluation too."""
    if stack.zoneout:
        raise ValueError(f"model.stack.zoneout must be 0 for {target}, got {stack.zoneout}")


def by_layer(model: Model) -> list[tuple[Params, ...]]:
    """The parameters of each layer, one member for each direction."""
    each = model.stack.directions
    return [model.params[i : i + each] for i in range(0, len(model.params), each)]


def mapping(name: str, value: Any, source: str) -> Mapping[Any, Any]:
    """Checks that an argument is a mapping, and returns it; `source` tells where to get one."""
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
    """A NumPy array of an array, a torch tensor, a variable of Flax's nnx or a box of Flax's linen.

    NumPy cannot read bfloat16 from torch, so it goes through float32, which is exact. A box, e.g. of
    `nn.with_partitioning`, is a pytree of one leaf; its own `unbox` would also put that on a mesh.
    """
    if hasattr(value, "unbox"):
        (value,) = jax.tree.leaves(value)
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        return value.detach().cpu().float().numpy().astype(jnp.bfloat16)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    value = value.get_value() if hasattr(value, "get_value") else value
    # NumPy has no PRNG keys. Arrays that are not in floating point are refused later, by name.
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)
