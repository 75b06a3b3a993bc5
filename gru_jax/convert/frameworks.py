"""Models from and to the weights of Flax, Haiku and Equinox; none of them is imported to read weights.

The differences between cells are data, in `gru_jax.convert.layouts`. Layers and directions differ too much for a table:
each framework has two functions for them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gru_jax.cells import CHO2014, CUDNN, GRU
from gru_jax.convert import foreign, layouts
from gru_jax.models import Model, check_gru

# --- Flax -------------------------------------------------------------------------------------------------------------


def from_linen(variables: Mapping[str, Any], *, path: str = "", cell: GRU = CUDNN) -> Model:
    """The model of `flax.linen.RNN(GRUCell)`, of `Bidirectional` around two, or of `gru_jax.linen.GRU`.

    Args:
      variables: as from `layer.init`, or the tree under "params", boxed or not; or the variables of a whole model.
      path: of the GRU in the tree of a model, names joined by slashes: "encoder/rnn", or "encoder/GRUCell_0" for a cell
        that a compact module made. A Bidirectional in a compact module has two of these. Pass it as
        `{"forward_rnn": {"cell": params["GRUCell_0"]}, "backward_rnn": {"cell": params["GRUCell_1"]}}`.
      cell: the equations, which a tree does not tell.

    Returns:
      The model, with NumPy arrays in their own dtype.

    Raises:
      TypeError: if variables are not a mapping.
      ValueError: if a name is missing or not known, or a shape does not fit; names it.

    >>> import jax, jax.numpy as jnp, flax.linen as nn
    >>> class Tagger(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, inputs):
    ...         return nn.Dense(5)(nn.RNN(nn.GRUCell(4))(inputs))
    >>> variables = Tagger().init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> from_linen(variables, path="GRUCell_0").params[0].kernel.shape
    (3, 12)
    """
    tree = layouts.mapping("variables", variables, "layer.init")
    others = sorted(dict(layouts.leaves_of({key: value for key, value in tree.items() if key != "params"})))
    if "params" in tree and others and not path:
        raise ValueError(f"variables must have params only, got {others} too")
    return _from_flax(tree.get("params", tree), "variables", path.removeprefix("params/"), cell, (layouts.LINEN,))


def to_linen(model: Model) -> dict[str, Any]:
    """Variables for `flax.linen.RNN(GRUCell)`, or `Bidirectional`, and for `gru_jax.linen.GRU` of any number of layers.

    Flax's own cell has biases and the equations `gru_jax.CUDNN`.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack.
    """
    return {"params": _to_flax(model, layouts.LINEN)}


def from_nnx(state: Mapping[Any, Any], *, path: str = "", cell: GRU = CUDNN) -> Model:
    """The model of `flax.nnx.RNN(GRUCell)`, or of `Bidirectional` around two.

    The cells may be Flax's own, without a recurrent bias, or `gru_jax.nnx.GRUCell`, with one. (A `gru_jax.nnx.GRU` has
    its model as an attribute.)

    Args:
      state: as from `nnx.state(layer, nnx.Param)`, or a dict of arrays in the same form; or that of a whole model.
      path: of the GRU in the state of a model, names joined by slashes: "encoder/rnn".
      cell: the equations, which a tree does not tell.

    Returns:
      The model, with NumPy arrays in their own dtype. A missing recurrent bias becomes zero.

    Raises:
      TypeError: if state is not a mapping.
      ValueError: if a name is missing or not known, or a shape does not fit; names it.
    """
    tree = layouts.mapping("state", state, "nnx.state(layer, nnx.Param)")
    return _from_flax(tree, "state", path, cell, (layouts.NNX, layouts.OURS))


def to_nnx(model: Model, *, recurrent_bias: bool = False) -> dict[str, Any]:
    """The parameters of `flax.nnx.RNN(GRUCell)` or `Bidirectional`, as a dict for `nnx.State`.

    Args:
      model: of one layer, in either direction or both.
      recurrent_bias: whether the cells are `gru_jax.nnx.GRUCell`, with a recurrent bias and any equations, or Flax's.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or the cell cannot represent it: Flax's has the
        equations `gru_jax.CUDNN` and no recurrent bias, so that of the model must be zero.
    """
    stack = check_gru(model).stack if recurrent_bias else layouts.checked(model, "flax.nnx.GRUCell", (CUDNN,))
    if stack.num_layers > 1:
        raise ValueError(f"model.stack.num_layers must be 1: flax.nnx.RNN is a single layer, got {stack.num_layers}")
    return _to_flax(model, layouts.OURS if recurrent_bias else layouts.NNX)


def _from_flax(tree: Any, where: str, path: str, cell: GRU, known: Sequence[layouts.Layout]) -> Model:
    leaves = dict(layouts.leaves_of(tree))
    paths = _paths(leaves, known)
    if path:
        prefix = path.strip("/").replace("/", ".") + "."
        leaves = {name.removeprefix(prefix): value for name, value in leaves.items() if name.startswith(prefix)}
        if not leaves:
            raise ValueError(f"{where} must have parameters under path {path!r}; paths of GRUs in it: {paths}")
        where = f"{where} under {path!r}"
    elif paths and "" not in paths:
        raise ValueError(f"{where} must be of one GRU, or path must say which of the model's, one of {paths}")
    layers: dict[int, list[layouts.CellArrays]] = {}
    numbers = {int(match[1]) for name in leaves if (match := re.match(r"layers_(\d+)\.", name))}
    for number in range(max(numbers, default=0) + 1):
        of_layer = f"layers_{number}." if numbers else ""
        both = any(name.startswith(f"{of_layer}backward_rnn.") for name in leaves)
        for direction in ("forward_rnn.", "backward_rnn.") if both else ("",):
            prefix = of_layer + direction + "cell."
            if not numbers and not both and not any(name.startswith(prefix) for name in leaves):
                prefix = ""
            names = [name for name in leaves if name.startswith(prefix)]
            arrays = {name.removeprefix(prefix): leaves.pop(name) for name in names}
            layers.setdefault(number, []).append(layouts.CellArrays(arrays, f"{where}: {prefix}"))
    if leaves:
        raise ValueError(f"{where} must have the parameters of one GRU only, got {sorted(leaves)} too")
    cells = [one for number in sorted(layers) for one in layers[number]]
    fitting = [layout for layout in known if layout.recurrent_kernel[0] in cells[0].leaves]
    return layouts.model_of((fitting or known)[0], cells, cell, len(layers))


def _paths(leaves: Iterable[str], known: Sequence[layouts.Layout]) -> list[str]:
    """The paths of a model's GRUs, found by the names of their recurrent kernels."""
    ends = "|".join(re.escape(layout.recurrent_kernel[0]) for layout in known)
    name_of = re.compile(rf"(|.*?\.)(?:layers_\d+\.)?(?:(?:forward|backward)_rnn\.)?(?:cell\.)?(?:{ends})")
    found = [match[1] for name in leaves if (match := name_of.fullmatch(name))]
    return list(dict.fromkeys(prefix.rstrip(".").replace(".", "/") for prefix in found))


def _to_flax(model: Model, layout: layouts.Layout) -> dict[str, Any]:
    from flax import traverse_util  # only here: whoever reads weights need not wait for Flax

    check_gru(model)
    stack = model.stack
    tree: layouts.Leaves = {}
    names = ("forward_rnn.cell.", "backward_rnn.cell.") if stack.bidirectional else ("cell.",)
    for i, layer in enumerate(layouts.by_layer(model)):
        of_layer = f"layers_{i}." if stack.num_layers > 1 else ""
        for name, params in zip(names, layer, strict=True):
            tree |= {
                of_layer + name + key: value
                for key, value in layouts.arrays_of(layout, params, stack.cell.reset_after, model.use_bias)
            }
    return traverse_util.unflatten_dict(tree, sep=".")


# --- Haiku and Equinox ------------------------------------------------------------------------------------------------


def from_haiku(params: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Model:
    """The model of `hk.GRU`, or of several in `hk.DeepRNN`.

    Args:
      params: as from `init` of the transformed function, if the names of its modules differ only in their numbers; or
        one module's dict of w_i, w_h and b; or a list of such dicts, first layer first.

    Returns:
      The model, with the equations `gru_jax.CHO2014` and NumPy arrays in their own dtype. Layers have the order of the
      modules' numbers.

    Raises:
      TypeError: if params are neither a mapping nor a list of mappings.
      ValueError: if a name is missing or not known, a shape does not fit, or the names leave the order open; names it.
    """
    if isinstance(params, list | tuple):
        modules = {f"params[{i}].": module for i, module in enumerate(params)}
    elif "w_h" in (tree := layouts.mapping("params", params, "init")):
        modules = {"params: ": tree}
    else:
        _check_is_gru(tree)
        names = sorted(tree, key=lambda name: [int(number or 0) for _, number in _scopes(name)])
        if len({tuple(scope for scope, _ in _scopes(name)) for name in names}) > 1:
            raise ValueError(
                f"params must be of modules hk.GRU whose names differ in their numbers only, got {names}: a list of "
                "their own dicts, first layer first, says which are the layers of one stack"
            )
        modules = {f"params: {name}.": tree[name] for name in names}
    cells = [layouts.CellArrays(dict(layouts.leaves_of(module)), name) for name, module in modules.items()]
    return layouts.model_of(layouts.HAIKU, cells, CHO2014, len(cells))


def _check_is_gru(tree: Mapping[str, Any]) -> None:
    """Raises an error if Haiku's parameters are those of hk.LSTM or hk.VanillaRNN, which contain linear modules."""
    for name, module in tree.items():
        for scope, blocks in (("lstm", 4), ("vanilla_rnn", 1)):
            if "w" in module and any(part == scope for part, _ in _scopes(name)):
                raise ValueError(foreign.another_cell(blocks, f"module {name!r}"))


def _scopes(name: str) -> list[tuple[str, str]]:
    """The scopes of a module's name, and their numbers; Haiku omits the number of the first.

    >>> _scopes("encoder/~/gru_1")
    [('encoder', ''), ('~', ''), ('gru', '1')]
    """
    return re.findall(r"([^/]+?)(?:_(\d+))?(?:/|$)", name)


def to_haiku(model: Model, name: str = "gru") -> dict[str, dict[str, np.ndarray]]:
    """The parameters of `hk.GRU`, or of several in `hk.DeepRNN`: modules name, name_1, name_2 and so on.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or Haiku cannot represent it: its GRU has the
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
      The model, with NumPy arrays in their own dtype.

    Raises:
      ValueError: if an array is missing, or a shape does not fit; names it.
    """
    names = [name for field in layouts.EQUINOX[1:] for name in field]
    layers = cells if isinstance(cells, list | tuple) else [cells]
    found = []
    for i, cell in enumerate(layers):
        arrays = cell if isinstance(cell, Mapping) else {name: getattr(cell, name, None) for name in names}
        found.append(layouts.CellArrays(dict(layouts.leaves_of(arrays)), f"cells[{i}]."))
    return layouts.model_of(layouts.EQUINOX, found, CUDNN, len(found))


def to_equinox(model: Model) -> list[dict[str, np.ndarray]]:
    """The arrays of `eqx.nn.GRUCell` by name, for `eqx.tree_at`; one dict for each layer.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or Equinox cannot represent it: its GRU has the
        equations `gru_jax.CUDNN` and runs forward.
    """
    layouts.checked(model, "eqx.nn.GRUCell", (CUDNN,), bidirectional=False)
    return [dict(layouts.arrays_of(layouts.EQUINOX, params, True, model.use_bias)) for params in model.params]
