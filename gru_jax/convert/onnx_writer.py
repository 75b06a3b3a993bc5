"""A model as an ONNX graph of native GRU nodes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gru_jax.cells import Params
from gru_jax.convert import activations, layouts, packing
from gru_jax.convert.files import library
from gru_jax.convert.onnx_graph import FLOATS
from gru_jax.gates import Activation
from gru_jax.layers import Stack
from gru_jax.models import Model, check_gru

if TYPE_CHECKING:
    import onnx


def to_onnx(
    gru: Any, params: Any = None, *, seq_lengths: bool = False, initial_carry: bool = False
) -> "onnx.ModelProto":
    """A model, layer or cell as ONNX: one GRU node a layer, with symbolic sizes batch and time.

    The graph has

    - `inputs`, (batch, time, in_features), or (time, batch, in_features) if `model.stack.time_major`,
    - `seq_lengths`, (batch,) int32, if asked for,
    - `initial_carry`, (layers·directions, batch, features), if asked for; otherwise zero,
    - `outputs`, (batch, time, directions·features) or with time first,
    - `carry`, like initial_carry: the last state of each layer and direction, in the flat order of `Stack`,

    all in the dtype of the computation, `model.stack.dtype` or that of the parameters. The graph has no dropout, which
    is for training. ONNX' specification allows float16, float32, float64, and since operator set 22 bfloat16. ONNX
    Runtime 1.32 computes float16 and float32 only, and needs at least one step and one sequence.

    Args:
      gru: a model; or a `gru_jax.nnx.GRU`, a `gru_jax.linen.GRU` or the equations of a GRU, as `Model.of` takes them.
        Its activations must be in `gru_jax.convert.activations.ONNX`.
      params: the variables of a linen layer, or the `Params` of the equations; otherwise None.
      seq_lengths: whether the graph takes the lengths of the sequences.
      initial_carry: whether the graph takes the state before the first step.

    Returns:
      A model that has passed `onnx.checker`, with operator set 14, which old runtimes read (22 for bfloat16).

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or ONNX' GRU has no such activation or dtype.
      ImportError: without the library onnx.

    >>> import gru_jax, jax
    >>> cell = gru_jax.CUDNN
    >>> proto = to_onnx(cell, cell.init(jax.random.key(0), 3, 4))
    >>> [node.op_type for node in proto.graph.node]
    ['Transpose', 'GRU', 'Squeeze', 'Transpose', 'Concat']
    """
    import gru_jax

    tools = library("onnx")
    model = check_gru(Model.of(gru, params))
    layouts.check_no_zoneout(model.stack, "ONNX")
    graph = _GraphBuilder(tools, model)
    _declare(graph, model, seq_lengths, initial_carry)
    _write(graph, model, seq_lengths, initial_carry)
    opset = tools.helper.make_opsetid("", 22 if graph.dtype == jnp.bfloat16 else 14)
    proto = tools.helper.make_model(
        tools.helper.make_graph(graph.nodes, "gru", graph.inputs, graph.outputs, graph.constants),
        opset_imports=[opset],
        ir_version=tools.helper.find_min_ir_version_for([opset]),
        producer_name="gru_jax",
        producer_version=gru_jax.__version__,
    )
    tools.checker.check_model(proto, full_check=True)
    return proto


class _GraphBuilder:
    """The parts of a graph that is being written."""

    def __init__(self, onnx: Any, model: Model) -> None:
        self._onnx = onnx
        self.dtype = _dtype(model)
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        # Not ascontiguousarray, which makes a scalar an array of one.
        self.constants.append(self._onnx.numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def value(self, name: str, shape: list[int | str], dtype: Any = None) -> Any:
        """The declaration of an input or output, in the dtype of the computation if None."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype if dtype is None else dtype))
        return self._onnx.helper.make_tensor_value_info(name, kind, shape)


def _declare(graph: _GraphBuilder, model: Model, seq_lengths: bool, initial_carry: bool) -> None:
    """Declares inputs and outputs of the graph."""
    stack = model.stack
    outer: list[int | str] = ["time", "batch"] if stack.time_major else ["batch", "time"]
    carry_shape: list[int | str] = [stack.num_layers * stack.directions, "batch", stack.features]
    graph.inputs.append(graph.value("inputs", [*outer, model.params[0].in_features]))
    if seq_lengths:
        graph.inputs.append(graph.value("seq_lengths", ["batch"], np.int32))
    if initial_carry:
        graph.inputs.append(graph.value("initial_carry", carry_shape))
    graph.outputs.append(graph.value("outputs", [*outer, stack.directions * stack.features]))
    graph.outputs.append(graph.value("carry", carry_shape))


def _write(graph: _GraphBuilder, model: Model, seq_lengths: bool, initial_carry: bool) -> None:
    """Adds the nodes between inputs and outputs."""
    stack = model.stack
    names = [f"layers.{layer}" for layer in range(stack.num_layers)]
    xs, hs = ("inputs", "outputs") if stack.time_major else ("inputs_time_first", "outputs_time_first")
    h_0s = [f"{name}.initial_h" if initial_carry else "" for name in names]
    if not stack.time_major:
        graph.node("Transpose", ["inputs"], [xs], perm=[1, 0, 2])
    if initial_carry:
        parts = graph.constant("directions", [stack.directions] * stack.num_layers, np.int64)
        graph.node("Split", ["initial_carry", parts], h_0s, axis=0)
    lengths = "seq_lengths" if seq_lengths else ""
    for layer, (name, h_0) in enumerate(zip(names, h_0s, strict=True)):
        outputs = hs if name == names[-1] else f"{name}.outputs"
        cells = model.params[layer * stack.directions : (layer + 1) * stack.directions]
        _write_layer(graph, stack, cells, name, [xs, lengths, h_0], outputs)
        xs = outputs
    if not stack.time_major:
        graph.node("Transpose", [hs], ["outputs"], perm=[1, 0, 2])
    h_Ts = [f"{name}.Y_h" for name in names]
    if not (seq_lengths and initial_carry):
        graph.node("Concat", h_Ts, ["carry"], axis=0)
        return
    # ONNX does not define the last state of an empty sequence, and ONNX Runtime makes it zero.
    graph.node("Concat", h_Ts, ["last_states"], axis=0)
    graph.node("Equal", ["seq_lengths", graph.constant("zero", 0, np.int32)], ["is_empty"])
    graph.node("Unsqueeze", ["is_empty", graph.constant("outer_axes", [0, 2], np.int64)], ["is_empty_everywhere"])
    graph.node("Where", ["is_empty_everywhere", "initial_carry", "last_states"], ["carry"])


def _write_layer(
    graph: _GraphBuilder, stack: Stack, cells: Sequence[Params], name: str, inputs: list[str], outputs: str
) -> None:
    """Adds the GRU node of a layer to the graph.

    Args:
      graph: the graph.
      stack: the stack of the layer.
      cells: the parameters of its directions.
      name: of the layer.
      inputs: names of the inputs (time, batch, width), the lengths and the initial states; the last two may be "".
      outputs: name of the outputs, (time, batch, directions·features).
    """
    xs, lengths, h_0 = inputs
    use_bias = any(cell.bias is not None or cell.recurrent_bias is not None for cell in cells)
    packed = [packing.ONNX.pack(cell, use_bias, graph.dtype) for cell in cells]
    W = graph.constant(f"{name}.W", np.stack([one.kernel for one in packed]))
    R = graph.constant(f"{name}.R", np.stack([one.recurrent_kernel for one in packed]))
    B = ""
    if use_bias:
        biases = np.stack([np.concatenate([one.bias, one.recurrent_bias]) for one in packed])
        B = graph.constant(f"{name}.B", biases)
    functions = {"gate": stack.cell.gate, "candidate": stack.cell.candidate}
    names = [_activation(argument, function) for argument, function in functions.items()]
    graph.node(
        "GRU",
        [xs, W, R, B, lengths, h_0],
        [f"{name}.Y", f"{name}.Y_h"],
        hidden_size=stack.features,
        linear_before_reset=int(stack.cell.reset_after),
        direction="bidirectional" if stack.bidirectional else "reverse" if stack.reverse else "forward",
        activations=names * stack.directions,
    )
    if stack.bidirectional:
        graph.node("Transpose", [f"{name}.Y"], [f"{name}.Y_side_by_side"], perm=[0, 2, 1, 3])
        shape = graph.constant(f"{name}.outputs_shape", [0, 0, -1], np.int64)
        graph.node("Reshape", [f"{name}.Y_side_by_side", shape], [outputs])
    else:
        graph.node("Squeeze", [f"{name}.Y", graph.constant(f"{name}.direction_axis", [1], np.int64)], [outputs])


def _activation(argument: str, function: Activation) -> str:
    """The name of an activation in ONNX."""
    name = activations.name_of(argument, function)
    if name not in activations.ONNX:
        raise ValueError(f"{argument} must be one that ONNX' GRU has, some of {list(activations.ONNX)}, got {name!r}")
    return activations.ONNX[name]


def _dtype(model: Model) -> Any:
    """The dtype of the computation, checked to be one of ONNX' GRU."""
    dtypes = {np.dtype(leaf.dtype) for params in model.params for leaf in params if leaf is not None}
    dtype = model.stack.dtype
    if dtype is None:
        dtype = dtypes.pop() if len(dtypes) == 1 else jnp.result_type(*dtypes)
    if jnp.dtype(dtype).name not in FLOATS:
        raise TypeError(f"model must compute in a dtype of ONNX' GRU, one of {FLOATS}, got {dtype}")
    return jnp.dtype(dtype)
