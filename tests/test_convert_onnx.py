"""ONNX: graphs that onnxruntime computes as we do, what comes back from them, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import convert
from gru_jax.convert import activations
from tests.cases import CELLS
from tests.models import DTYPES, assert_identical, inputs, model
from tests.onnx_graphs import graph, node

hypothesis = pytest.importorskip("hypothesis")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
st = hypothesis.strategies
TOLERANCE = dict(atol=2e-6, rtol=2e-5)
WAYS = {"forward": {}, "reverse": {"reverse": True}, "bidirectional": {"bidirectional": True}}


def run(proto, feed):
    """(outputs, carry) of onnxruntime."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["outputs", "carry"], feed)


def ours(one, xs, **given):
    carry, outputs = one(xs, **given)
    return outputs, jnp.stack(jax.tree.leaves(carry))


def assert_close(theirs, expected, **tolerance):
    for one, other in zip(theirs, expected, strict=True):
        np.testing.assert_allclose(one, other, **(tolerance or TOLERANCE))


@st.composite
def stacks(draw):
    return model(
        CELLS[draw(st.sampled_from(sorted(CELLS)))],
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 3)),
        use_bias=draw(st.booleans()),
        time_major=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        **WAYS[draw(st.sampled_from(sorted(WAYS)))],
    )


@hypothesis.given(stacks(), st.booleans(), st.booleans(), st.integers(1, 4), st.integers(1, 5))
@hypothesis.settings(deadline=None, max_examples=25)
def test_onnxruntime_computes_what_we_do(one, lengths, carry, batch, time):
    stack = one.stack
    proto = convert.to_onnx(one, seq_lengths=lengths, initial_carry=carry)
    feed = {"inputs": inputs(one.params[0].in_features, batch=batch, time=time, time_major=stack.time_major)}
    given = {}
    if lengths:
        feed["seq_lengths"] = np.arange(batch, dtype=np.int32) % (time + 1)  # the first is empty
        given["seq_lengths"] = feed["seq_lengths"]
    if carry:
        feed["initial_carry"] = inputs(stack.features, batch=len(one.params), time=batch, seed=2)
        states = tuple(feed["initial_carry"])
        given["initial_carry"] = states if len(states) > 1 else states[0]
    assert_close(run(proto, feed), ours(one, feed["inputs"], **given))
    assert_identical(convert.from_onnx(proto), one)


@pytest.mark.parametrize("name", activations.ONNX)
def test_activations_are_those_of_onnxruntime(name):
    function = activations.ACTIVATIONS[name]
    for cell in (gru_jax.GRU(gate=function), gru_jax.GRU(candidate=function, reset_after=False)):
        one, xs = model(cell), inputs(time=2)
        proto = convert.to_onnx(one)
        assert_close(run(proto, {"inputs": xs}), ours(one, xs))
        assert_identical(convert.from_onnx(proto), one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_come_back_bit_by_bit(dtype, cell):
    one = model(CELLS[cell], num_layers=2, bidirectional=True, dtype=dtype)
    proto = convert.to_onnx(one)
    assert proto.opset_import[0].version == (22 if dtype == "bfloat16" else 14)
    assert_identical(convert.from_onnx(proto), one)


def test_half_precision_runs():
    one = model(dtype="float16")
    xs = inputs(dtype="float16")
    assert_close(run(convert.to_onnx(one), {"inputs": xs}), ours(one, xs), atol=5e-3)


def test_the_dtype_of_the_computation_is_that_of_the_graph():
    one = model(dtype="float64")
    single = dataclasses.replace(one, stack=dataclasses.replace(one.stack, dtype=jnp.float32))
    xs = inputs()
    assert_close(run(convert.to_onnx(single), {"inputs": xs}), ours(single, xs))
    with pytest.raises(TypeError, match="must compute in a dtype of ONNX' GRU"):
        convert.to_onnx(dataclasses.replace(one, stack=dataclasses.replace(one.stack, dtype=jnp.float8_e4m3fn)))


def test_files_and_bytes_that_are_none(tmp_path):
    one, path = model(num_layers=2), tmp_path / "gru.onnx"
    onnx.save(convert.to_onnx(one), path)
    assert_identical(convert.from_onnx(path), one)
    assert_identical(convert.from_onnx(str(path)), one)
    onnx.save(convert.to_onnx(one), path, save_as_external_data=True, size_threshold=0, location="weights")
    assert_identical(convert.from_onnx(path), one)
    data = convert.to_onnx(one).SerializeToString()
    for size in range(0, len(data), 11):
        path.write_bytes(data[:size])
        with pytest.raises(
            ValueError, match=r"gru.onnx is damaged|constant '.*' of the graph is damaged|must (have|import)"
        ):
            convert.from_onnx(path)
    with pytest.raises(TypeError, match=r"source must be an onnx.ModelProto or a path, got bytes"):
        convert.from_onnx(data)


# --- Graphs that others write -----------------------------------------------------------------------------------------


def reference(proto, **feed):
    """Y and Y_h of onnxruntime."""
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feed)


@pytest.mark.parametrize("direction", WAYS)
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_a_node_with_two_biases(direction, linear_before_reset):
    """Both halves of B are random, which our own graphs do not have."""
    made, constants = node(direction=direction, linear_before_reset=linear_before_reset)
    proto = graph([made], constants)
    one = convert.from_onnx(proto)
    xs = inputs(time_major=True)
    Y, Y_h = reference(proto, X=xs)
    outputs, carry = ours(one, xs)
    assert_close((np.concatenate(list(Y.swapaxes(0, 1)), -1), Y_h), (outputs, carry))
    assert one.stack.time_major
    assert one.stack.cell.reset_after is bool(linear_before_reset)


def test_layout_1():
    """onnxruntime has no layout 1; onnx' evaluator has it for forward nodes."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    made, constants = node(layout=1, linear_before_reset=1)
    proto = graph([made], constants)
    one = convert.from_onnx(proto)
    assert not one.stack.time_major
    Y, Y_h = evaluator(proto).run(None, {"X": inputs()})
    outputs, carry = ours(one, inputs())
    assert_close((Y.reshape(outputs.shape), Y_h.reshape(carry.shape)), (outputs, carry))


def test_layouts_may_change_between_layers():
    lower, constants = node(direction="bidirectional", name="lower")
    upper, more = node(
        direction="bidirectional", name="gru", width=8, layout=1, inputs=["xs", "gru.W", "gru.R", "gru.B"]
    )
    between = [
        onnx.helper.make_node("Transpose", ["lower.Y"], ["swapped"], perm=[2, 0, 1, 3]),
        onnx.helper.make_node("Identity", ["swapped"], ["same"]),
        onnx.helper.make_node("Dropout", ["same"], ["kept"]),
        onnx.helper.make_node("Reshape", ["kept", "shape"], ["xs"]),
    ]
    constants |= more | {"shape": np.array([0, 0, 8])}
    one = convert.from_onnx(graph([lower, *between, upper], constants))
    assert one.stack.num_layers == 2
    assert one.stack.time_major
    both = [convert.from_onnx(graph([lower, *between, upper], constants), nodes=[name]) for name in ("lower", "gru.Y")]
    assert not both[1].stack.time_major
    xs = inputs(time_major=True)
    expected = both[1](both[0](xs)[1].swapaxes(0, 1))[1].swapaxes(0, 1)
    np.testing.assert_allclose(one(xs)[1], expected, **TOLERANCE)


@pytest.mark.parametrize("layout", [0, 1])
def test_a_constant_initial_state_is_returned_on_demand(layout):
    h_0 = inputs(4, batch=1, time=4, seed=3)
    names = ["X", "gru.W", "gru.R", "gru.B", "", "h_0"]
    made, constants = node(layout=layout, inputs=names)
    constant = {"h_0": h_0.swapaxes(0, 1) if layout else h_0}
    proto = graph([made], constants | constant)
    with pytest.raises(ValueError, match=r"node 'gru'.* has a constant initial_h that is not zero.* return_carry=True"):
        convert.from_onnx(proto)
    one, carry = convert.from_onnx(proto, return_carry=True)
    np.testing.assert_array_equal(carry, h_0[0])
    if layout == 0:
        xs = inputs(time_major=True)
        assert_close(reference(proto, X=xs)[1], ours(one, xs, initial_carry=carry)[1])
    zero = graph([made], constants | {"h_0": constant["h_0"] * 0})
    assert_identical(convert.from_onnx(zero), one)
    assert convert.from_onnx(zero, return_carry=True)[1] is None
    fed = graph([made], constants, inputs=("X", "h_0"))
    assert_identical(convert.from_onnx(fed), one)


def test_initial_states_of_several_layers():
    lower, constants = node(name="lower", inputs=["X", "lower.W", "lower.R", "lower.B", "", "h_0"])
    upper, more = node(width=4, inputs=["xs", "gru.W", "gru.R", "gru.B"])
    squeeze = onnx.helper.make_node("Squeeze", ["lower.Y", "axis"], ["xs"])
    constants |= more | {"axis": np.array([1]), "h_0": np.ones((1, 2, 4), np.float32)}
    _, carry = convert.from_onnx(graph([lower, squeeze, upper], constants), return_carry=True)
    np.testing.assert_array_equal(carry, [np.ones((2, 4)), np.zeros((2, 4))])


REFUSED = {
    "clip": (dict(clip=1.0), "node 'gru' has clip=1.0"),
    "alpha": (dict(activation_alpha=[0.5]), r"node 'gru' has activation_alpha=\[0.5\]"),
    "beta": (dict(activation_beta=[0.5]), r"node 'gru' has activation_beta=\[0.5\]"),
    "unknown": (dict(output_sequence=1), "node 'gru' is not valid in ONNX: Unrecognized attribute: output_sequence"),
    "foreign": (
        dict(activations=["HardSigmoid", "Tanh"]),
        r"activations of node 'gru' must be some of .*, got \['HardSigmoid', 'Tanh'\]",
    ),
    "few": (dict(activations=["Sigmoid"]), r"node 'gru' must have activations that are 2 names.* got \['Sigmoid'\]"),
    "unlike": (
        dict(direction="bidirectional", activations=["Sigmoid", "Tanh", "Sigmoid", "Sigmoid"]),
        "node 'gru' must have activations that are 4 names, the same two for each direction",
    ),
    "direction": (dict(direction="sideways"), "node 'gru' must have direction in .*, got 'sideways'"),
    "layout": (dict(layout=2), "node 'gru' must have layout 0 or 1, got 2"),
    "reset": (dict(linear_before_reset=2), "node 'gru' must have linear_before_reset 0 or 1, got 2"),
    "size": (dict(hidden_size=5), "node 'gru' must have hidden_size as R has it, 4, got 5"),
    "W": (dict(inputs=["X", "X", "gru.R"]), "node 'gru' must have W as a constant of the graph, got 'X'"),
    "nothing": (dict(inputs=["X", "V", "gru.R"]), r"node 'gru' must take tensors that the graph has, got \['V'\]"),
    "shape": (
        dict(inputs=["X", "gru.R", "gru.W"], hidden_size=3),
        r"node 'gru' must have W of shape \(directions, 3·features, in_features\) = \(1, 9, 4\), got \(1, 12, 4\)",
    ),
    "B": (
        dict(inputs=["X", "gru.W", "gru.R", "gru.R"]),
        r"node 'gru' must have B of shape \(directions, 6·features\) = \(1, 24\), got \(1, 12, 4\)",
    ),
    "no R": (dict(inputs=["X", "gru.W"]), "node 'gru' is not valid in ONNX: .* has input size 2 not in range"),
    "scalar R": (dict(inputs=["X", "gru.W", "scalar"], hidden_size=0), "node 'gru' must have W of shape"),
    "integers": (dict(inputs=["X", "gru.W", "lengths"]), "node 'gru' must have R of a dtype in .* got int32"),
    "lengths": (
        dict(inputs=["X", "gru.W", "gru.R", "gru.B", "lengths"]),
        r"node 'gru' has constant sequence_lens, \[1 2\], and a model holds none",
    ),
    "initial_h": (
        dict(inputs=["X", "gru.W", "gru.R", "gru.B", "", "gru.W"]),
        r"node 'gru' must have initial_h of shape \[1, None, 4\], None for any size, got \[1, 12, 3\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_cannot_hold_is_refused(case):
    attributes, message = REFUSED[case]
    made, constants = node(**attributes)
    more = {"lengths": np.array([1, 2], np.int32), "scalar": np.float32(1)}
    with pytest.raises(ValueError, match=message):
        convert.from_onnx(graph([made], constants | more))


def test_no_such_nodes():
    relu = graph([onnx.helper.make_node("Relu", ["X"], ["gru.Y"])], {}, outputs=("gru.Y",))
    with pytest.raises(ValueError, match=r"must have a GRU node in its main graph, got nodes of the kinds \['Relu'\]"):
        convert.from_onnx(relu)
    proto = convert.to_onnx(model(num_layers=2))
    for names in ([], ["other"]):
        with pytest.raises(ValueError, match=r"nodes must be names of GRU nodes, some of .*'layers.0.Y'"):
            convert.from_onnx(proto, nodes=names)
    with pytest.raises(ValueError, match=r"node 'layers.0.Y' must take its X from node 'layers.1.Y'"):
        convert.from_onnx(proto, nodes=["layers.1.Y", "layers.0.Y"])


def test_a_model_that_onnx_cannot_hold_is_refused():
    for gate, message in [
        (jax.nn.hard_sigmoid, "gate must be one that ONNX' GRU has, some of .*, got 'hard_sigmoid'"),
        (jax.nn.gelu, "gate must be a function that has a name"),
    ]:
        with pytest.raises(ValueError, match=message):
            convert.to_onnx(model(gru_jax.GRU(gate=gate)))
    with pytest.raises(TypeError, match=r"model must be a gru_jax.convert.Model, a layer or a cell, got Stack"):
        convert.to_onnx(model().stack)


def test_nodes_of_other_cells_are_said_to_be_so():
    for kind, what in [("LSTM", "an LSTM.*gru_jax.cells.LSTM.*i, f, g, o"), ("RNN", "a simple.*gru_jax.cells.Elman")]:
        made = onnx.helper.make_node(kind, ["X", "W", "R"], ["Y"], name="rnn", hidden_size=4)
        with pytest.raises(ValueError, match=f"must have a GRU node .*; node 'rnn' is of {what}"):
            convert.from_onnx(graph([made], {"W": np.zeros((1, 1, 3)), "R": np.zeros((1, 1, 4))}))


def test_layers_and_cells_are_written_too():
    one = model(time_major=True, reverse=True)
    layer, variables = gru_jax.linen.GRU.from_model(one)
    for given in [(layer, variables), (gru_jax.nnx.GRU.from_model(one),)]:
        assert convert.to_onnx(*given) == convert.to_onnx(one)
    cell = gru_jax.CUDNN, one.params[0]
    assert convert.to_onnx(*cell, seq_lengths=True) == convert.to_onnx(convert.Model.of(*cell), seq_lengths=True)
