"""ONNX graphs, node by node, for the tests of what reads them."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")


def node(seed=0, *, layout=0, direction="forward", features=4, width=3, name="gru", inputs=None, **attributes):
    """A GRU node with random W, R, B, and these."""
    directions = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(seed)
    arrays = {
        f"{name}.{kind}": rng.normal(scale=0.5, size=(directions, *shape)).astype(np.float32)
        for kind, shape in {"W": (3 * features, width), "R": (3 * features, features), "B": (6 * features,)}.items()
    }
    inputs = inputs or ["X", *arrays]
    if layout:
        attributes["layout"] = layout
    attributes = {"hidden_size": features, **attributes}
    made = onnx.helper.make_node("GRU", inputs, [f"{name}.Y", f"{name}.Y_h"], name, direction=direction, **attributes)
    return made, arrays


def graph(nodes, constants, *, inputs=("X",), outputs=("gru.Y", "gru.Y_h"), opset=14, shape=None):
    """A model; shapes but that of X are left to the runtime; an input "lens" has integers."""
    kind, integer = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    kinds = {name: integer if name == "lens" else kind for name in inputs}
    made = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info(name, kinds[name], shape if name == "X" else None) for name in inputs],
        [onnx.helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
