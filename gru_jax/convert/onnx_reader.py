"""A model from the GRU nodes of an ONNX graph."""

import collections
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from gru_jax.cells import GRU, Params
from gru_jax.convert import activations, foreign, onnx_graph, packing
from gru_jax.convert.files import library
from gru_jax.convert.onnx_constants import label, operator
from gru_jax.layers import Carry, Stack
from gru_jax.models import Model

if TYPE_CHECKING:
    import onnx

_DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
_BLOCKS = {"LSTM": 4, "RNN": 1}
"""The number of recurrent matrices in nodes of other cells."""


class GRUNode(NamedTuple):
    """A GRU node.

    Attributes:
      node: the node itself.
      cell: its equations.
      direction: "forward", "reverse" or "bidirectional".
      layout: 0 for X (time, batch, width), 1 for (batch, time, width).
      params: of each direction.
      lengths: the name of the tensor of sequence_lens, or "".
      initial_h: the state before the first step, (directions, batch, features), if that is a constant.
    """

    node: Any
    cell: GRU
    direction: str
    layout: int
    params: tuple[Params, ...]
    lengths: str
    initial_h: np.ndarray | None


@overload
def from_onnx(
    source: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    nodes: Sequence[str] | None = None,
    return_carry: Literal[False] = False,
) -> Model: ...


@overload
def from_onnx(
    source: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    nodes: Sequence[str] | None = None,
    return_carry: Literal[True],
) -> tuple[Model, Carry | None]: ...


def from_onnx(
    source: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    nodes: Sequence[str] | None = None,
    return_carry: bool = False,
) -> Model | tuple[Model, Carry | None]:
    """The GRU nodes of an ONNX model, one layer each.

    Between two nodes there may be Squeeze, Transpose, Reshape, Identity, and Dropout at inference, as exporters write
    them. Everything else is left to the caller: the nodes before and after, and tensors that are fed or computed as
    sequence_lens and initial_h, which a model takes as seq_lengths and initial_carry.

    `stack.time_major` is the layout of the first node's X, or, if a Transpose makes X, of the input of that.

    Args:
      source: a model or the path of its file.
      nodes: the names of the GRU nodes, or of their first outputs, first layer first; by default all of the main graph.
      return_carry: whether to return also initial states that are constants of the graph.

    Returns:
      The model, with NumPy arrays in the dtype of the file. With return_carry (model, carry): the state before the
      first step in the form of `initial_carry`, zero where it is not a constant; or None if all of it is zero.

    Raises:
      TypeError: if source is neither a model nor a path.
      ValueError: if a file is damaged; if there are no such nodes; if they are not one stack of layers; or if a model
        cannot represent a node, for example its clip, an activation that is not in `gru_jax.convert.activations.ONNX`,
        or an unknown attribute. The error names node and attribute.
      OSError: if the file cannot be read.
      ImportError: without the library onnx.

    >>> import gru_jax, jax
    >>> from gru_jax.convert import to_onnx
    >>> cell = gru_jax.CUDNN
    >>> model = Model((cell.init(jax.random.key(0), 3, 4),), Stack(cell, 4))
    >>> again = from_onnx(to_onnx(model))
    >>> again.stack == model.stack, bool((again.params[0].kernel == model.params[0].kernel).all())
    (True, True)
    """
    graph = onnx_graph.Graph(library("onnx"), source)
    layers = read_layers(graph, nodes)
    first = layers[0]
    carry = _constant_carry(layers)
    if carry is not None and not return_carry:
        raise ValueError(
            f"{label(first.node)}, or a later layer, has a constant initial_h that is not zero, and a model "
            "holds none: with return_carry=True it is returned beside the model"
        )
    before = graph.producer(first.node.input[0])
    is_swapped = before is not None and operator(before) == "Transpose"
    if is_swapped:
        is_swapped = list(graph.attributes(before).get("perm", [])) == [1, 0, 2]
    stack = Stack(
        first.cell,
        first.params[0].features,
        num_layers=len(layers),
        bidirectional=first.direction == "bidirectional",
        time_major=(first.layout == 0) != is_swapped,
        reverse=first.direction == "reverse",
    )
    model = Model(tuple(params for layer in layers for params in layer.params), stack)
    return (model, carry) if return_carry else model


def read_layers(graph: onnx_graph.Graph, names: Sequence[str] | None) -> list[GRUNode]:
    """The GRU nodes with these names, or all of them. Checks that they are one stack of layers."""
    found = [node for node in graph.nodes if operator(node) == "GRU"]
    if not found:
        kinds = sorted({operator(node) for node in graph.nodes})
        hint = ""
        if other := next((node for node in graph.nodes if operator(node) in _BLOCKS), None):
            hint = f"; {foreign.another_cell(_BLOCKS[operator(other)], label(other))}"
        raise ValueError(f"source must have a GRU node in its main graph, got nodes of the kinds {kinds}{hint}")
    chosen = found
    names_of = collections.Counter(node.name for node in found)
    by_name = {node.name if node.name and names_of[node.name] == 1 else node.output[0]: node for node in found}
    if names is not None:
        by_output = {node.output[0]: node for node in found} | by_name
        unknown = [name for name in names if name not in by_output]
        if unknown or not names:
            raise ValueError(f"nodes must be names of GRU nodes, some of {list(by_name)}, got {list(names)}")
        chosen = [by_output[name] for name in names]
    layers = [_read(graph, node) for node in chosen]
    for below, above in itertools.pairwise(layers):
        _check_link(graph, below, above, list(by_name))
    node, params = layers[0].node, layers[0].params[0]
    sizes = [None, None, params.in_features]
    _check_type(graph, f"{label(node)} must have X", node.input[0], params.kernel.dtype, sizes)
    return layers


def _read(graph: onnx_graph.Graph, node: Any) -> GRUNode:
    """One node. Everything in it is checked, and unknown parts raise an error."""
    name = label(node)
    unread = {key: _text(value) for key, value in graph.attributes(node).items()}
    refused = {key: unread.pop(key) for key in ("clip", "activation_alpha", "activation_beta") if key in unread}
    for key, value in refused.items():
        if key == "clip" or value:
            raise ValueError(f"{name} has {key}={value}, which a model cannot hold: expected no such attribute")
    direction, layout = unread.pop("direction", "forward"), unread.pop("layout", 0)
    reset_after = unread.pop("linear_before_reset", 0)
    hidden_size, functions = unread.pop("hidden_size", None), unread.pop("activations", None)
    if unread:
        raise ValueError(f"{name} has attributes that are not known: {unread}")
    if direction not in _DIRECTIONS:
        raise ValueError(f"{name} must have direction in {list(_DIRECTIONS)}, got {direction!r}")
    for option, choice in (("layout", layout), ("linear_before_reset", reset_after)):
        if choice not in (0, 1):
            raise ValueError(f"{name} must have {option} 0 or 1, got {choice!r}")
    cell = GRU(reset_after == 1, *_activations(name, functions, _DIRECTIONS[direction]))
    inputs = dict(zip(("X", "W", "R", "B", "sequence_lens", "initial_h"), node.input, strict=False))
    if graph.constant(inputs["X"]) is not None:
        raise ValueError(f"{name} must take an X that is fed or computed, got a constant, {inputs['X']!r}")
    params = _weights(graph, name, inputs, cell.reset_after, _DIRECTIONS[direction], hidden_size)
    _check_fed(graph, name, inputs, layout, params)
    lengths, initial_h = inputs.get("sequence_lens", ""), graph.constant(inputs.get("initial_h", ""))
    if initial_h is not None and layout == 1:
        initial_h = np.swapaxes(initial_h, 0, 1)
    return GRUNode(node, cell, direction, layout, params, lengths, initial_h)


def _check_fed(
    graph: onnx_graph.Graph, name: str, inputs: dict[str, str], layout: int, params: Sequence[Params]
) -> None:
    """Checks sequence_lens and initial_h, and that a model can take them as arguments."""
    lengths, initial_h = inputs.get("sequence_lens", ""), inputs.get("initial_h", "")
    if (value := graph.constant(lengths)) is not None:
        raise ValueError(
            f"{name} has constant sequence_lens, {value}, and a model holds none: expected a tensor that is fed or "
            "computed"
        )
    for kind, tensor in (("sequence_lens", lengths), ("initial_h", initial_h)):
        if graph.depends_on(tensor, "GRU"):
            raise ValueError(
                f"{name} takes {kind} from a GRU, and a model holds no such link: expected a tensor that is fed, or "
                f"computed without one, got {tensor!r}"
            )
    of_x = graph.shape(inputs["X"]) or []
    batch = of_x[1 - layout] if len(of_x) == 3 else None
    outer = [len(params), batch] if layout == 0 else [batch, len(params)]
    _check_type(graph, f"{name} must have sequence_lens", lengths, np.dtype(np.int32), [batch])
    _check_type(graph, f"{name} must have initial_h", initial_h, params[0].kernel.dtype, [*outer, params[0].features])


def _check_type(graph: onnx_graph.Graph, what: str, tensor: str, dtype: np.dtype, sizes: Sequence[int | None]) -> None:
    """Checks dtype and shape of a tensor, as far as they are known. None in `sizes` stands for any size but 0."""
    value = graph.constant(tensor)
    its_dtype, its_sizes = graph.dtype(tensor), graph.shape(tensor)
    if value is not None:
        its_dtype, its_sizes = value.dtype, list(value.shape)
    if its_dtype not in (None, dtype):
        raise ValueError(f"{what} of dtype {dtype}, got {its_dtype}")
    if its_sizes is not None:
        pairs = zip(its_sizes, sizes, strict=False)
        if len(its_sizes) != len(sizes) or not all(0 not in p and (None in p or p[0] == p[1]) for p in pairs):
            raise ValueError(f"{what} of shape {sizes}, None for any size, got {its_sizes}")


def _text(value: Any) -> Any:
    """An attribute's value, with strings instead of bytes."""
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _activations(name: str, functions: list[str] | None, directions: int) -> list[Any]:
    """σ and φ, which must be the same in both directions."""
    pairs = ["Sigmoid", "Tanh"] * directions if functions is None else functions
    if len(pairs) != 2 * directions or pairs[:2] * directions != pairs:
        raise ValueError(
            f"{name} must have activations that are {2 * directions} names, the same two for each direction, "
            f"got {functions}"
        )
    ours = {theirs.lower(): name for name, theirs in activations.ONNX.items()}
    names = [ours.get(str(function).lower()) for function in pairs[:2]]
    if None in names:
        known = list(activations.ONNX.values())
        raise ValueError(f"activations of {name} must be some of {known}, which a model can hold, got {pairs[:2]}")
    return [activations.by_name("activations", function) for function in names]


def _weights(
    graph: onnx_graph.Graph,
    name: str,
    inputs: dict[str, str],
    reset_after: bool,
    directions: int,
    hidden_size: int | None,
) -> tuple[Params, ...]:
    """W, R and B of a node, checked, as parameters of each direction."""
    arrays: dict[Any, Any] = {}
    for kind in ("W", "R", "B"):
        tensor = inputs.get(kind, "")
        if kind == "B" and not tensor:
            continue
        value = graph.constant(tensor)
        if value is None:
            raise ValueError(f"{name} must have {kind} as a constant of the graph, got {tensor!r}, which is not")
        if value.dtype.name not in onnx_graph.FLOATS:
            raise ValueError(f"{name} must have {kind} of a dtype in {onnx_graph.FLOATS}, got {value.dtype}")
        if value.dtype != (dtype := arrays.get("W", value).dtype):
            raise ValueError(f"{name} must have {kind} of the dtype of W, {dtype}, got {value.dtype}")
        arrays[kind] = value
    width, features = (next(iter(arrays[kind].shape[-1:]), 0) for kind in "WR")
    if hidden_size not in (None, features):
        raise ValueError(f"{name} must have hidden_size as R has it, {features}, got {hidden_size}")
    shapes = {
        "W": ("(directions, 3·features, in_features)", (directions, 3 * features, width)),
        "R": ("(directions, 3·features, features)", (directions, 3 * features, features)),
        "B": ("(directions, 6·features)", (directions, 6 * features)),
    }
    for kind, value in arrays.items():
        symbols, expected = shapes[kind]
        if value.shape != expected:
            raise ValueError(f"{name} must have {kind} of shape {symbols} = {expected}, got {value.shape}")
    biases = np.split(arrays["B"], 2, axis=1) if "B" in arrays else []
    cells = zip(arrays["W"], arrays["R"], *biases, strict=True)
    return tuple(packing.ONNX.unpack(packing.PackedWeights(*cell), reset_after) for cell in cells)


def _check_link(graph: onnx_graph.Graph, below: GRUNode, above: GRUNode, names: list[str]) -> None:
    """Checks that two nodes are successive layers of one stack."""
    lower, upper = label(below.node), label(above.node)
    sizes = {onnx_graph.DIRECTION: len(below.params), onnx_graph.FEATURE: below.params[0].features}
    outer = (onnx_graph.TIME, onnx_graph.BATCH)
    axes: tuple[str, ...] = (outer[0], onnx_graph.DIRECTION, outer[1], onnx_graph.FEATURE)
    if below.layout == 1:
        axes = (*outer[::-1], onnx_graph.DIRECTION, onnx_graph.FEATURE)
    path = graph.path([below.node.output[0]], above.node.input[0])
    if path is None:
        raise ValueError(
            f"{upper} must take its X from {lower}, through nodes that change no number: nodes=... chooses layers of "
            f"one stack, first layer first, among {names}"
        )
    for node in path:
        output_axes = graph.output_axes(node, axes, sizes)
        if output_axes is None:
            raise ValueError(f"{upper} must take its X from {lower}, got a {node.op_type} between them that mixes axes")
        axes = output_axes
    merged = onnx_graph.FEATURE if len(axes) == 3 and sizes[onnx_graph.DIRECTION] == 1 else onnx_graph.SIDE_BY_SIDE
    expected = (*(outer if above.layout == 0 else outer[::-1]), merged)
    if axes != expected:
        raise ValueError(f"{upper} must take its X {expected} from {lower}, got {axes}")
    pairs = {
        "linear_before_reset and activations": (below.cell, above.cell),
        "direction": (below.direction, above.direction),
        "hidden_size": (below.params[0].features, above.params[0].features),
        "sequence_lens": (below.lengths, above.lengths),
        "a W for X of width": (
            sizes[onnx_graph.DIRECTION] * sizes[onnx_graph.FEATURE],
            above.params[0].in_features,
        ),
    }
    for what, (expected_value, value) in pairs.items():
        if value != expected_value:
            raise ValueError(f"{upper} must have {what} as {lower} below it, {expected_value!r}, got {value!r}")


def _constant_carry(layers: Sequence[GRUNode]) -> Carry | None:
    """The constant initial states of all layers and directions, or None if none differs from zero."""
    if not any(layer.initial_h is not None and layer.initial_h.any() for layer in layers):
        return None
    constants = [layer.initial_h for layer in layers if layer.initial_h is not None]
    if len(batches := {value.shape[1] for value in constants}) != 1:
        raise ValueError(f"constant initial_h must have the same batch size in every node, got {sorted(batches)}")
    states: list[Any] = []
    for layer in layers:
        zero = np.zeros((len(layer.params), *constants[0].shape[1:]), constants[0].dtype)
        states.extend(zero if layer.initial_h is None else layer.initial_h)
    return states[0] if len(states) == 1 else tuple(states)
