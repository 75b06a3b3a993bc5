"""Reading an ONNX graph: constants, producers of tensors, and how one GRU node's outputs reach the next."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gru_jax.convert import foreign

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The dtypes of ONNX' GRU."""

# Axes of a tensor between two GRU nodes.
TIME, BATCH, DIRECTION, FEATURE, SIDE_BY_SIDE = "time", "batch", "direction", "feature", "direction·feature"


class Graph:
    """The main graph of a model.

    Attributes:
      nodes: in topological order, as ONNX demands.
    """

    def __init__(self, onnx: Any, source: Any) -> None:
        """Reads the model.

        Args:
          onnx: the library.
          source: a ModelProto, or the path of its file.

        Raises:
          ValueError: if a file is damaged; OSError if it cannot be read.
          TypeError: if source is neither.
        """
        proto = _load(onnx, source)
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto)
        graph = proto.graph
        self._onnx = onnx
        self.nodes = list(graph.node)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}

    def producer(self, name: str) -> Any:
        """The node that makes a tensor, Identity nodes aside; None for inputs and constants."""
        node = self._producers.get(name)
        return self.producer(node.input[0]) if node is not None and node.op_type == "Identity" else node

    def attributes(self, node: Any) -> dict[str, Any]:
        """A node's attributes by name, as Python values."""
        return {attribute.name: self._onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}

    def constant(self, name: str) -> np.ndarray | None:
        """The value of a tensor that is part of the graph; None for one that is fed or computed.

        Raises:
          ValueError: if it is damaged.
        """
        tensor = self._initializers.get(name)
        if tensor is None:
            node = self._producers.get(name)
            if node is None or node.op_type not in ("Constant", "Identity"):
                return None
            if node.op_type == "Identity":
                return self.constant(node.input[0])
            ((kind, value),) = self.attributes(node).items()
            if kind != "value":
                return np.asarray(value)
            tensor = value
        try:
            return self._onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"constant {name!r} of the graph is damaged: {error}") from error

    def path(self, start: Sequence[str], end: str) -> list[Any] | None:
        """The nodes through which one of the tensors `start` reaches `end`, in this order; None if it does not.

        Only nodes that move numbers, and do not change them, count: see `_MOVES`.
        """
        nodes: list[Any] = []
        while end not in start:
            node = self._producers.get(end)
            if node is None or node.op_type not in _MOVES:
                return None
            nodes.insert(0, node)
            end = node.input[0]
        return nodes

    def moved(self, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
        """The axes of a node's output, for its input with these axes; None if they have no names.

        Args:
          node: of a kind in `_MOVES`.
          axes: of its input.
          sizes: of DIRECTION and FEATURE.
        """
        return _MOVES[node.op_type](self, node, axes, sizes)


def label(node: Any) -> str:
    """What an error calls a node."""
    return f"node {node.name or node.output[0]!r}"


def _load(onnx: Any, source: Any) -> Any:
    if isinstance(source, onnx.ModelProto):
        return source
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be an onnx.ModelProto or a path, got {type(source).__name__}")
    data = Path(source).read_bytes()
    try:
        proto = onnx.load_model_from_string(data)
        # Weights may lie in files beside it.
        onnx.load_external_data_for_model(proto, str(Path(source).parent))
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError, and onnx' own ValidationError, have no common ancestor
        hint = foreign.another_file(source)
        raise ValueError(f"{source} is damaged or not an ONNX model: {error}{hint}") from error
    return proto


def _transposed(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    perm = graph.attributes(node).get("perm", range(len(axes))[::-1])
    return tuple(axes[i] for i in perm)


def _squeezed(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """Axes of Squeeze are an input since operator set 13, before that an attribute."""
    given = graph.constant(node.input[1]) if len(node.input) > 1 else graph.attributes(node).get("axes")
    if given is None or [axes[i] for i in given] != [DIRECTION] or sizes[DIRECTION] != 1:
        return None
    return tuple(axis for axis in axes if axis != DIRECTION)


def _reshaped(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """Only one Reshape has names for its axes: that which puts the directions side by side."""
    shape = graph.constant(node.input[1]) if len(node.input) > 1 else None
    width = sizes[DIRECTION] * sizes[FEATURE]
    if shape is None or axes[2:] != (DIRECTION, FEATURE) or graph.attributes(node).get("allowzero"):
        return None
    if shape.tolist() not in ([0, 0, -1], [0, 0, width]):
        return None
    return (*axes[:2], SIDE_BY_SIDE)


def _same(graph: Graph, node: Any, axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...] | None:
    """Identity; and Dropout, if not for training."""
    training = node.input[2] if len(node.input) > 2 else ""
    if training:
        value = graph.constant(training)
        if value is None or value.any():
            return None
    return axes


_MOVES = {
    "Transpose": _transposed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Identity": _same,
    "Dropout": _same,
}
