"""Constants of an ONNX graph, folded by onnx' reference evaluator: tensors that do not depend on what is fed."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gru_jax.convert.files import library

FOLDED_UP_TO = 64 * 2**20
"""Limit on the bytes of all folded results of a graph."""

_PROBES = ((2, 1), (5, 3))
"""First value and step of two series of sizes for those that the inputs leave open. A constant is the same for both."""


def operator(node: Any) -> str:
    """A node's operator, with its domain unless that is ONNX' own."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def label(node: Any) -> str:
    """The name of a node in errors."""
    return f"node {node.name or next(filter(None, node.output), node.op_type)!r}"


class Constants:
    """The constants of a graph, and the attributes of its nodes."""

    def __init__(self, onnx: Any, proto: Any, producers: Mapping[str, int], order: Sequence[int]) -> None:
        """Takes the graph of a model.

        Args:
          onnx: the library.
          proto: a ModelProto.
          producers: by the name of a tensor, the index of the node that produces it.
          order: the indices of all nodes, in topological order.

        Raises:
          ValueError: if the model does not name one version of ONNX' operators that is understood, or a constant has
            a negative size.
        """
        versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
        # GRU and Dropout differ before version 7. The library stores versions in 32 bits.
        if len(versions) != 1 or not 7 <= versions[0] < 2**31:
            raise ValueError(f"source must import ONNX' operators once, in version 7 or a newer one, got {versions}")
        self._onnx = onnx
        self._opset = versions[0]
        self._nodes = proto.graph.node
        self._initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        for name, tensor in self._initializers.items():
            if min(tensor.dims, default=0) < 0:
                raise ValueError(
                    f"constant {name!r} of the graph is damaged: it has negative sizes, {list(tensor.dims)}"
                )
        sizes = ((value_info.name, fixed_sizes(value_info)) for value_info in proto.graph.input)
        self._inputs = {name: shape for name, shape in sizes if shape is not None}
        self._producers = producers
        self._rank = {place: rank for rank, place in enumerate(order)}
        self._values: dict[str, np.ndarray | None] = {}
        self._folded = 0
        self._context = onnx.checker.C.CheckerContext()
        self._context.ir_version = onnx.IR_VERSION
        self._context.opset_imports = {"": self._opset}

    def attributes(self, node: Any) -> dict[str, Any]:
        """A node's attributes by name, as Python values.

        Raises:
          ValueError: if its attributes, or its numbers of inputs and outputs, are not valid in ONNX.
        """
        try:
            self._onnx.checker.check_node(_plain(self._onnx, node), self._context)
        except self._onnx.checker.ValidationError as error:
            raise ValueError(f"{label(node)} is not valid in ONNX: {str(error).strip()}") from error
        return {attribute.name: self._onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}

    def value(self, name: str) -> np.ndarray | None:
        """The value of a tensor; None if it depends on what is fed, or on a size that is not fixed.

        Raises:
          ValueError: if it is damaged, or folding it exceeds `FOLDED_UP_TO` bytes.
        """
        if name not in self._values:
            places = self._needed(name, self._inputs)
            values: list[np.ndarray | None] = [None]
            if places is not None:
                depends = any(self._is_assumed(place, self._inputs) for place in places)
                values = [self._fold(name, places, self._sized(*probe)) for probe in _PROBES[: 1 + depends]]
            first, last = values[0], values[-1]
            is_same = first is last or (
                first is not None and last is not None and first.dtype == last.dtype and np.array_equal(first, last)
            )
            self._values[name] = first if is_same else None
        return self._values[name]

    def value_at(self, name: str, shapes: Mapping[str, Sequence[int]]) -> np.ndarray | None:
        """The value of a tensor, given the shapes of others that are not constants; None if it depends on more.

        Raises:
          ValueError: as `value`.
        """
        places = self._needed(name, shapes)
        return None if places is None else self._fold(name, places, shapes)

    def _sized(self, start: int, step: int) -> dict[str, list[int]]:
        """Shapes of the graph's inputs; sizes that are not fixed are start, start + step and so on."""
        count = itertools.count(start, step)
        return {name: [next(count) if size is None else size for size in shape] for name, shape in self._inputs.items()}

    def _is_assumed(self, place: int, shapes: Mapping[str, Any]) -> bool:
        """Whether a node returns one of these shapes."""
        node = self._nodes[place]
        return operator(node) == "Shape" and node.input[0] in shapes

    def _needed(self, name: str, shapes: Mapping[str, Any]) -> list[int] | None:
        """Indices of the nodes to evaluate for a tensor, in order; None if it is not a constant."""
        places: set[int] = set()
        pending = [name]
        while pending:
            tensor = pending.pop()
            if tensor in self._initializers:
                continue
            place = self._producers.get(tensor)
            if place is None or operator(self._nodes[place]) not in _RESULT_BYTES:
                return None
            if place not in places:
                places.add(place)
                self.attributes(self._nodes[place])  # checks that the node is valid
                if not self._is_assumed(place, shapes):
                    pending.extend(filter(None, self._nodes[place].input))
        return sorted(places, key=self._rank.__getitem__)

    def _fold(self, name: str, places: Sequence[int], shapes: Mapping[str, Sequence[int]]) -> np.ndarray:
        values: dict[str, Any] = {"": None}
        for place in places:
            node = self._nodes[place]
            if self._is_assumed(place, shapes):
                inputs = [np.broadcast_to(np.int8(0), shapes[node.input[0]])]  # takes no memory
            else:
                inputs = [values[tensor] if tensor in values else self._initializer(tensor) for tensor in node.input]
            values |= zip(node.output, self._evaluated(node, inputs), strict=False)
        return values[name] if name in values else self._initializer(name)

    def _initializer(self, name: str) -> np.ndarray:
        try:
            return self._onnx.numpy_helper.to_array(self._initializers[name])
        except Exception as error:  # of any kind: the library trusts what it reads
            raise ValueError(f"constant {name!r} of the graph is damaged: {error}") from error

    def _evaluated(self, node: Any, inputs: Sequence[Any]) -> list[np.ndarray]:
        """The outputs of one node for these inputs."""
        graph = self._onnx.GraphProto()
        graph.node.append(_plain(self._onnx, node))
        names = [name for name in node.output if name]
        try:
            _check_types(self._onnx, node.op_type, self._opset, inputs)
            self._folded += _RESULT_BYTES[operator(node)](self.attributes(node), *inputs)
            if self._folded > FOLDED_UP_TO:
                raise ValueError(f"constants that are folded must take {FOLDED_UP_TO} bytes, got {self._folded}")
            evaluator = library("onnx.reference").ReferenceEvaluator(graph, opsets={"": self._opset})
            with np.errstate(all="ignore"):
                results = evaluator.run(names, dict(zip(node.input, inputs, strict=True)))
        except Exception as error:  # of any kind: the evaluator trusts what it is given
            raise ValueError(f"{label(node)} cannot be evaluated, and its inputs are constants: {error}") from error
        return [np.asarray(result) for result in results]


def fixed_sizes(value_info: Any) -> list[int | None] | None:
    """The shape that a ValueInfoProto declares, with None for sizes that are open or 0; None if it declares none."""
    if not value_info.type.tensor_type.HasField("shape"):
        return None
    sizes = value_info.type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in sizes]


def _plain(onnx: Any, node: Any) -> Any:
    """The node, with the shorter of the two names of ONNX' domain."""
    if node.domain != "ai.onnx":
        return node
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.domain = ""
    return plain


def _check_types(onnx: Any, kind: str, opset: int, inputs: Sequence[Any]) -> None:
    """Checks that the operator takes inputs of these dtypes together."""
    expected = onnx.defs.get_schema(kind, opset, "").inputs
    types: dict[str, str] = {}
    for place, value in enumerate(inputs):
        if value is not None:
            formal = expected[min(place, len(expected) - 1)]  # the last may be repeated
            got = onnx.TensorProto.DataType.Name(onnx.helper.np_dtype_to_tensor_dtype(value.dtype)).lower()
            if f"tensor({got})" not in formal.types or types.setdefault(formal.type_str, got) != got:
                raise ValueError(f"expected an input {formal.name} of another dtype, got {value.dtype}")


def _view(attributes: dict[str, Any], *inputs: Any) -> int:
    return 0


def _copied(attributes: dict[str, Any], *inputs: Any) -> int:
    return sum(value.nbytes for value in inputs)


def _sliced(attributes: dict[str, Any], value: Any, *limits: Any) -> int:
    if any(limit is not None and limit.ndim != 1 for limit in limits):
        raise ValueError("expected starts, ends, axes and steps with one dimension")
    return 0


def _broadcast(attributes: dict[str, Any], *inputs: Any) -> int:
    return math.prod(np.broadcast_shapes(*(value.shape for value in inputs))) * inputs[0].itemsize


def _expanded(attributes: dict[str, Any], value: Any, shape: Any) -> int:
    return math.prod(np.broadcast_shapes(value.shape, tuple(shape.tolist()))) * value.itemsize


def _filled(attributes: dict[str, Any], shape: Any) -> int:
    return math.prod(shape.tolist()) * 16


def _gathered(attributes: dict[str, Any], value: Any, indices: Any) -> int:
    axis = attributes.get("axis", 0)
    return indices.size * (value.nbytes // max(value.shape[axis], 1))


def _cast(attributes: dict[str, Any], value: Any) -> int:
    if attributes["to"] == 8:
        raise ValueError("expected numbers, got a Cast to strings")
    return value.size * 16


_RESULT_BYTES: dict[str, Callable[..., int]] = {
    "Add": _broadcast,
    "Cast": _cast,
    "Concat": _copied,
    "Constant": _view,
    "ConstantOfShape": _filled,
    "Div": _broadcast,
    "Expand": _expanded,
    "Gather": _gathered,
    "Identity": _copied,
    "Mul": _broadcast,
    "Reshape": _copied,
    "Shape": _view,
    "Slice": _sliced,
    "Split": _view,
    "Squeeze": _view,
    "Sub": _broadcast,
    "Transpose": _view,
    "Unsqueeze": _view,
}
"""The operators that are folded, and an upper bound on the bytes of their results, known before computing them.

A view shares the memory of its input.
"""
