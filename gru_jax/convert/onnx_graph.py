"""Reading an ONNX graph: constants, producers of tensors, and the path from one GRU node to the next."""

import collections
import contextlib
import graphlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.convert import foreign
from gru_jax.convert.files import library
from gru_jax.convert.onnx_constants import Constants, fixed_sizes, label, operator

MAX_NODES = 1_000_000
"""Limit on the nodes of a graph after its functions are inlined, since nested calls can make it grow without bound."""

_READ_UP_TO = 2**10
"""Only constants with fewer bytes can be shapes."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of ONNX' GRU."""

# Sizes of time and batch for which a Reshape is tried. With all of them none passes by chance.
_SIZES = ((1, 1), (2, 3), (3, 2), (1, 5), (5, 1), (1009, 2003))

# Axes of a tensor between two GRU nodes.
TIME, BATCH, DIRECTION, FEATURE, SIDE_BY_SIDE = "time", "batch", "direction", "feature", "direction·feature"


class Graph:
    """The main graph of a model, which has no cycle.

    Attributes:
      nodes: in the order of the file.
    """

    def __init__(self, onnx: Any, source: Any) -> None:
        """Reads the model.

        Args:
          onnx: the library.
          source: a ModelProto, or the path of its file.

        Raises:
          ValueError: if a file is damaged, or its graph is not valid.
          OSError: if the file cannot be read.
          TypeError: if source is neither.
        """
        proto = _inlined(_load(onnx, source))
        graph = proto.graph
        self._onnx = onnx
        self._proto = proto
        self._declared: dict[str, Any] | None = None
        self.nodes = list(graph.node)
        self._producers = _producers(graph)
        places = range(len(self.nodes))
        before = {i: [self._producers[x] for x in self.nodes[i].input if x in self._producers] for i in places}
        order = _order("nodes", before, lambda place: label(self.nodes[place]))
        self._constants = Constants(onnx, proto, self._producers, order)
        self.attributes = self._constants.attributes
        self.constant = self._constants.value
        self.constant_at = self._constants.value_at

    def producer(self, name: str) -> Any:
        """The node that produces a tensor, apart from Identity nodes; None for inputs and constants."""
        while name in self._producers:
            node = self.nodes[self._producers[name]]
            if operator(node) != "Identity" or not node.input:
                return node
            name = node.input[0]
        return None

    def depends_on(self, name: str, kind: str) -> bool:
        """Whether the values of a tensor depend on the values, not only the shape, that a node of a kind produces."""
        pending, seen = [name], set()
        while pending:
            place = self._producers.get(pending.pop())
            if place is None or place in seen or operator(self.nodes[place]) in ("Shape", "Size"):
                continue
            if operator(self.nodes[place]) == kind:
                return True
            seen.add(place)
            pending += self.nodes[place].input
        return False

    def shape(self, name: str) -> list[int | None] | None:
        """The shape of a tensor that is not a constant, with None for open sizes; None if unknown."""
        value_info = self._types().get(name)
        return None if value_info is None else fixed_sizes(value_info)

    def dtype(self, name: str) -> np.dtype | None:
        """The dtype of a tensor that is not a constant; None if unknown."""
        value_info = self._types().get(name)
        kind = 0 if value_info is None else value_info.type.tensor_type.elem_type
        known = self._onnx.TensorProto.DataType.values()[1:]
        return self._onnx.helper.tensor_dtype_to_np_dtype(kind) if kind in known else None

    def _types(self) -> dict[str, Any]:
        """Types and shapes by name: those that the graph declares for its inputs, and those inferred for others."""
        if self._declared is None:
            model = self._onnx.ModelProto(ir_version=self._proto.ir_version, opset_import=self._proto.opset_import)
            # The library (1.23) ends the process on a Slice of an axis of negative size.
            is_safe = (all(inner.op_type != "Slice" for inner in _nested([node])) for node in self.nodes)
            model.graph.node.extend(itertools.compress(self.nodes, is_safe))
            model.graph.input.extend(self._proto.graph.input)
            for size in (size for value_info in model.graph.input for size in value_info.type.tensor_type.shape.dim):
                if size.dim_value < 0:
                    size.ClearField("dim_value")
            for tensor in self._proto.graph.initializer:
                # The values of weights do not matter, and are many.
                bare = self._onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
                model.graph.initializer.append(tensor if tensor.ByteSize() < _READ_UP_TO else bare)
            known = list(model.graph.input)
            with contextlib.suppress(Exception):  # of any kind: the library trusts what it reads
                known += library("onnx.shape_inference").infer_shapes(model).graph.value_info
            self._declared = {value_info.name: value_info for value_info in known}
        return self._declared

    def path(self, start: Sequence[str], end: str) -> list[Any] | None:
        """The nodes on the path from one of the tensors `start` to `end`, in order; None if there is no path.

        A path has only nodes that move numbers and do not change them: those of `_AXIS_RULES`.
        """
        nodes: list[Any] = []
        while end not in start:
            node = self.nodes[self._producers[end]] if end in self._producers else None
            if node is None or operator(node) not in _AXIS_RULES or node.output[0] != end:
                return None
            self.attributes(node)  # checks that the node is valid
            nodes.insert(0, node)
            end = node.input[0]
        return nodes

    def output_axes(self, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
        """The names of the axes of a node's output; None if the node mixes axes.

        Args:
          node: of a kind in `_AXIS_RULES`.
          axes: the names of the axes of its input.
          sizes: of DIRECTION and FEATURE.
        """
        return _AXIS_RULES[operator(node)](self, node, axes, sizes)


def _load(onnx: Any, source: Any) -> Any:
    if isinstance(source, onnx.ModelProto):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be an onnx.ModelProto or a path, got {type(source).__name__}")
    data = Path(source).read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
        # Weights may be in other files beside it.
        onnx.load_external_data_for_model(proto, str(Path(source).parent))
    except Exception as error:  # protobuf's DecodeError, onnx' ValidationError, OSError: no common ancestor
        hint = foreign.another_file(source)
        raise ValueError(f"{source} is damaged or not an ONNX model: {error}{hint}") from error
    return proto


def _inlined(proto: Any) -> Any:
    """The model with its functions inlined."""
    if not proto.functions:
        return proto
    functions = {(function.domain, function.name): function for function in proto.functions}
    calls = {
        key: [(node.domain, node.op_type) for node in _nested(function.node)] for key, function in functions.items()
    }
    lengths: dict[tuple[str, str], int] = {}
    known = {key: [call for call in called if call in functions] for key, called in calls.items()}
    for key in _order("functions", known, lambda key: f"{key[0]}.{key[1]}"):
        lengths[key] = sum(lengths.get(call, 1) for call in calls[key])
    if (count := sum(lengths.get((node.domain, node.op_type), 1) for node in _nested(proto.graph.node))) > MAX_NODES:
        raise ValueError(f"source must have at most {MAX_NODES} nodes when its functions are inlined, got {count}")
    try:
        return library("onnx.inliner").inline_local_functions(proto)
    except Exception as error:  # of any kind: the library has several
        raise ValueError(f"functions of the model cannot be inlined: {error}") from error


def _nested(nodes: Sequence[Any]) -> Iterator[Any]:
    """The nodes and those of graphs in their attributes."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nested(graph.node)


def _producers(graph: Any) -> dict[str, int]:
    """By the name of a tensor, the index of the node that produces it; checks that each tensor has one origin."""
    outputs = [(name, place) for place, node in enumerate(graph.node) for name in node.output if name]
    inputs = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    names = [*inputs, *(tensor.name for tensor in graph.initializer), *(name for name, _ in outputs)]
    if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
        raise ValueError(f"source must make every tensor of its graph once, got {twice} from several origins")
    known = {"", *names, *(tensor.values.name for tensor in graph.sparse_initializer)}
    for node in graph.node:
        if unknown := set(node.input) - known:
            raise ValueError(f"{label(node)} must take tensors that the graph has, got {sorted(unknown, key=str)}")
    return dict(outputs)


def _order(what: str, before: Mapping[Any, Sequence[Any]], name: Callable[[Any], str]) -> list[Any]:
    """The keys in an order in which each comes after those in `before`."""
    try:
        return list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"source must have no cycle of {what}, got {' to '.join(map(name, error.args[1]))}") from error


def _transposed(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    perm = graph.attributes(node).get("perm", range(len(axes))[::-1])
    return tuple(axes[i] for i in perm) if sorted(perm) == list(range(len(axes))) else None


def _squeezed(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """Squeeze. Its axes are an input since operator set 13, before that an attribute."""
    attribute = graph.attributes(node).get("axes")
    squeezed = graph.constant(node.input[1]) if len(node.input) > 1 else attribute
    place = axes.index(DIRECTION) if DIRECTION in axes and sizes[DIRECTION] == 1 else None
    if squeezed is None or place is None or np.ravel(squeezed).tolist() not in ([place], [place - len(axes)]):
        return None
    return tuple(axis for axis in axes if axis != DIRECTION)


def _reshaped(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """A Reshape that leaves time and batch alone: it joins the directions to the features, or drops a single one.

    Its shape is evaluated for several sizes of time and batch, except for those that the graph fixes.
    """
    allowzero = graph.attributes(node).get("allowzero", 0)
    fixed = dict(zip(axes, graph.shape(node.input[0]) or [], strict=False))
    candidates = [axes]
    if sizes[DIRECTION] == 1:
        candidates.append(tuple(axis for axis in axes if axis != DIRECTION))
    if axes[2:] == (DIRECTION, FEATURE):
        candidates.append((*axes[:2], SIDE_BY_SIDE))
    for time, batch in _SIZES:
        of = {TIME: fixed.get(TIME) or time, BATCH: fixed.get(BATCH) or batch, **sizes}
        of[SIDE_BY_SIDE] = sizes[DIRECTION] * sizes[FEATURE]
        shape = [of[axis] for axis in axes]
        target = graph.constant_at(node.input[1], {node.input[0]: shape}) if len(node.input) > 1 else None
        result = None if target is None or target.ndim != 1 else _resolved(target.tolist(), shape, allowzero)
        candidates = [names for names in candidates if [of[axis] for axis in names] == result]
    return candidates[0] if candidates else None


def _resolved(target: Sequence[int], shape: Sequence[int], allowzero: int) -> list[int] | None:
    """The shape after a Reshape from `shape` to `target`, where 0 and -1 are special; None if it is invalid."""
    if not allowzero:
        target = [shape[i] if size == 0 and i < len(shape) else size for i, size in enumerate(target)]
    if -1 in target:
        rest = -math.prod(target)
        target = [math.prod(shape) // rest if size == -1 else size for size in target] if rest > 0 else target
    return list(target) if math.prod(target) == math.prod(shape) and min(target, default=1) > 0 else None


def _same(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """Identity; and Dropout, unless it is for training."""
    training = node.input[2] if len(node.input) > 2 else ""
    if training:
        value = graph.constant(training)
        if value is None or value.any():
            return None
    return axes


_AXIS_RULES = {
    "Transpose": _transposed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Identity": _same,
    "Dropout": _same,
}
