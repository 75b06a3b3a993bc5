"""ONNX graphs around GRU nodes: constants that other nodes make, the way from one layer to the next, and cycles."""

import numpy as np
import pytest

from gru_jax import convert
from gru_jax.convert import onnx_constants
from tests.models import assert_identical, inputs
from tests.onnx_graphs import graph, node, onnx

make_node = onnx.helper.make_node

# --- Constants --------------------------------------------------------------------------------------------------------


def undone(kind, value, opset):
    """What a node of a kind makes a value from: its first input, its other inputs by name, and its attributes.

    Limits of Slice are inputs since version 10, axes of Unsqueeze since 13.
    """
    match kind:
        case "Slice":
            edges = [(2, 1) if axis == 1 else (0, 0) for axis in range(value.ndim)]
            limits = dict(starts=[2], ends=[2 + value.shape[1]], axes=[1])
            before = np.pad(value, edges, constant_values=7)
            return (before, {}, limits) if opset < 10 else (before, limits, {})
        case "Concat":
            return value[:, :5], dict(rest=value[:, 5:]), dict(axis=1)
        case "Unsqueeze":
            axes = dict(axes=[0])
            return (value[0], {}, axes) if opset < 13 else (value[0], axes, {})
        case "Reshape":
            return value.ravel(), dict(shape=[-1, *value.shape[1:]]), {}
        case "Transpose":
            return value.transpose(0, 2, 1), {}, dict(perm=[0, 2, 1])
        case "Cast":
            return value.astype(np.float64), {}, dict(to=onnx.TensorProto.FLOAT)


def made_by(kinds, name, value, opset):
    """Nodes of these kinds, first to last, that make a value of a name; and their constants."""
    nodes, constants = [], {}
    for kind in reversed(kinds):
        value, others, attributes = undone(kind, value, opset)
        names = [f"{name} before", *(f"{name} {other}" for other in others)]
        nodes.insert(0, make_node(kind, names, [name], **attributes))
        constants |= dict(zip(names[1:], others.values(), strict=True))
        name = names[0]
    return nodes, constants | {name: value}


FOLDED = ("Reshape", "Cast", "Unsqueeze", "Transpose", "Slice", "Concat")


@pytest.mark.parametrize("opset", [9, 11, 14, 18])
@pytest.mark.parametrize("kinds", [*((kind,) for kind in FOLDED), FOLDED])
def test_constants_come_through_nodes(kinds, opset):
    made, constants = node()
    expected = convert.from_onnx(graph([made], constants, opset=opset))
    nodes = []
    for name in ("gru.W", "gru.R"):
        before, more = made_by(kinds, name, constants.pop(name), opset)
        nodes += before
        constants |= more
    assert_identical(convert.from_onnx(graph([*nodes, made], constants, opset=opset)), expected)


def test_what_depends_on_the_input_is_no_constant():
    nodes, constants = made_by(["Slice", "Concat"], "gru.W", np.zeros((1, 12, 3), np.float32), 14)
    made, more = node()
    more.pop("gru.W")
    constants |= more
    constants.pop("gru.W before before")
    nodes[0].input[0] = "X"
    with pytest.raises(
        ValueError, match=r"node 'gru' must have W as a constant of the graph, got 'gru.W', which is not"
    ):
        convert.from_onnx(graph([*nodes, made], constants))


HUGE = {
    "ConstantOfShape": (["shape"], dict(shape=[2**25])),
    "Expand": (["zero", "shape"], dict(zero=np.float32(0), shape=[1, 2**40, 3])),
    "Expand by little": (["zero", "shape"], dict(zero=np.float32(0), shape=[2**24 + 1])),
    "Gather": (["row", "places"], dict(row=np.zeros((1, 2**12), np.float32), places=np.zeros(2**12 + 1, np.int64))),
    "Add": (["column", "row"], dict(column=np.zeros((2**13, 1)), row=np.zeros(2**10 + 1))),
}


@pytest.mark.parametrize("case", HUGE)
def test_small_files_with_huge_constants_are_refused(case):
    names, more = HUGE[case]
    made, constants = node()
    nodes = [make_node(case.split()[0], names, ["gru.W"], "large"), made]
    del constants["gru.W"]
    with pytest.raises(ValueError, match=r"node 'large' cannot be evaluated.* must take 67108864 bytes, got \d{8}"):
        convert.from_onnx(graph(nodes, constants | more))


@pytest.mark.parametrize(
    ("kind", "others", "attributes"),
    [
        ("Slice", [np.array([0], np.uint64), np.array([3], np.uint64)], {}),
        ("Gather", [np.array([0, 1, 2], np.int16)], {}),
        ("Concat", [np.zeros((2, 12, 3))], dict(axis=0)),
        ("Add", [np.zeros((1, 1, 3), np.float16)], {}),
        ("Reshape", [np.array([1, 12, 3], np.int32)], {}),
    ],
)
def test_constants_of_dtypes_that_an_operator_does_not_take_are_refused(kind, others, attributes):
    made, constants = node()
    constants |= {"whole": constants.pop("gru.W")} | {f"other {i}": other for i, other in enumerate(others)}
    names = ["whole", *(f"other {i}" for i in range(len(others)))]
    before = make_node(kind, names, ["gru.W"], "before", **attributes)
    with pytest.raises(
        ValueError, match=r"node 'before' cannot be evaluated.*: expected an input \w+ of another dtype"
    ):
        convert.from_onnx(graph([before, made], constants))


def test_the_bytes_of_all_constants_count(monkeypatch):
    made, constants = node()
    nodes = [make_node("Identity", [f"{kind} before"], [f"gru.{kind}"]) for kind in "WR"]
    proto = graph([*nodes, made], {f"{kind} before": constants.pop(f"gru.{kind}") for kind in "WR"} | constants)
    size = 4 * 12 * (3 + 4)
    monkeypatch.setattr(onnx_constants, "FOLDED_UP_TO", size)
    convert.from_onnx(proto)
    monkeypatch.setattr(onnx_constants, "FOLDED_UP_TO", size - 1)
    with pytest.raises(ValueError, match=f"must take {size - 1} bytes, got {size}"):
        convert.from_onnx(proto)


# --- From layer to layer ----------------------------------------------------------------------------------------------

SQUEEZE = ("Squeeze", ["lower.Y", "one"], {})
LINKS = {
    "another direction": ([SQUEEZE], dict(direction="reverse"), "must have direction as"),
    "another reset": ([SQUEEZE], dict(linear_before_reset=1), "linear_before_reset"),
    "another width": (
        [SQUEEZE],
        dict(width=3),
        "must have a W for X of width as .* 4, got 3",
    ),
    "another size": ([SQUEEZE], dict(features=5), "must have hidden_size as .* 4, got 5"),
    "lengths": (
        [SQUEEZE],
        dict(inputs=["xs", "gru.W", "gru.R", "gru.B", "lens"]),
        "must have sequence_lens as node 'lower' below it, '', got 'lens'",
    ),
    "batch and time swapped": (
        [SQUEEZE, ("Transpose", ["xs0"], {"perm": [1, 0, 2]})],
        {},
        r"must take its X \('time', 'batch', 'feature'\) from node 'lower', got \('batch', 'time', 'feature'\)",
    ),
    "other axis": ([("Squeeze", ["lower.Y", "two"], {})], {}, "got a Squeeze between them that mixes axes"),
    "mixed": ([("Reshape", ["lower.Y", "flat"], {})], {}, "got a Reshape between them that mixes axes"),
    "something else": ([("Relu", ["lower.Y"], {})], {}, r"must take its X from node 'lower', through .*'lower', 'gru'"),
    "training": ([("Dropout", ["lower.Y", "", "on"], {})], {}, "got a Dropout between them that mixes axes"),
}


@pytest.mark.parametrize("case", LINKS)
def test_nodes_that_are_not_one_stack_are_refused(case):
    between, changes, message = LINKS[case]
    lower, constants = node(name="lower")
    names = [f"xs{i}" for i in range(len(between) - 1)] + ["xs"]
    moves = [make_node(kind, given, [name], **more) for (kind, given, more), name in zip(between, names, strict=True)]
    upper, more = node(**{"width": 4, "inputs": ["xs", "gru.W", "gru.R", "gru.B"], **changes})
    constants |= more | {"one": [1], "two": [2], "flat": [-1, 1, 4], "on": True}
    proto = graph([lower, *moves, upper], constants, inputs=("X", "lens"))
    with pytest.raises(ValueError, match=f"node 'gru' .*{message}|node 'gru' {message}"):
        convert.from_onnx(proto)
    assert convert.from_onnx(proto, nodes=["lower"]).stack.num_layers == 1


SWAP = make_node("Transpose", ["lower.Y"], ["swapped"], perm=[0, 2, 1, 3])
JOINED = {
    "as they are": ([0, 0, 8], [None, None, 3]),
    "the rest": ([0, 0, -1], [None, None, 3]),
    "one batch": ([-1, 2, 8], [None, 2, 3]),
    "one time": ([5, -1, 8], [5, None, 3]),
    "both fixed": ([5, 2, 8], [5, 2, 3]),
    "as large": ([4, 4, 8], [4, 4, 3]),
}
MIXED = {
    "time into batch": ([1, -1, 8], [None, None, 3]),
    "batch into time": ([-1, 1, 8], [None, None, 3]),
    "batch into features": ([0, 1, -1], [5, 2, 3]),
    "any batch": ([-1, 2, 8], [None, None, 3]),
    "any time": ([5, -1, 8], [None, None, 3]),
    "any size": ([5, 2, 8], None),
    "another order": ([2, 5, 8], [5, 2, 3]),
}


@pytest.mark.parametrize("case", JOINED)
def test_a_reshape_may_join_directions_to_features(case):
    """In ONNX Runtime's numbers, too."""
    onnxruntime = pytest.importorskip("onnxruntime")
    shape, sizes = JOINED[case]
    proto = two_layers([SWAP, make_node("Reshape", ["swapped", "shape"], ["xs"])], shape, sizes)
    one = convert.from_onnx(proto)
    assert (one.stack.num_layers, one.stack.bidirectional) == (2, True)
    time, batch = ((size or other) for size, other in zip(sizes, (5, 2), strict=False))
    xs = inputs(batch=batch, time=time, time_major=True)
    Y = onnxruntime.InferenceSession(proto.SerializeToString()).run(["gru.Y"], {"X": xs})[0]
    np.testing.assert_allclose(one(xs)[1], np.concatenate(list(Y.swapaxes(0, 1)), -1), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", MIXED)
def test_a_reshape_may_not_mix_time_or_batch(case):
    shape, sizes = MIXED[case]
    with pytest.raises(ValueError, match=r"node 'gru' must take its X from node 'lower', got a Reshape .* mixes"):
        convert.from_onnx(two_layers([SWAP, make_node("Reshape", ["swapped", "shape"], ["xs"])], shape, sizes))


@pytest.mark.parametrize("batch", [2, 8, None])
def test_a_reshape_may_not_join_what_is_not_side_by_side(batch):
    """Directions lie before the batch: some shapes are right all the same, and the numbers are not."""
    for shape in ([0, batch or 2, 8], [0, -1, 8], [0, 0, -1], [0, 0, 8]):
        with pytest.raises(ValueError, match="got a Reshape between them that mixes axes"):
            convert.from_onnx(two_layers([make_node("Reshape", ["lower.Y", "shape"], ["xs"])], shape, [5, batch, 3]))


def two_layers(between, shape, sizes):
    """Bidirectional layers, and a constant `shape`; X has these sizes."""
    lower, constants = node(direction="bidirectional", name="lower", linear_before_reset=1)
    upper, more = node(
        direction="bidirectional", width=8, inputs=["xs", "gru.W", "gru.R", "gru.B"], linear_before_reset=1
    )
    return graph([lower, *between, upper], constants | more | dict(shape=shape), shape=sizes)


def test_a_start_may_have_a_size_of_the_layer_below_and_none_of_its_numbers():
    """An exporter that makes zeros for every layer asks the one below for the size of the batch."""
    lower, constants = node(name="lower")
    squeeze = make_node("Squeeze", ["lower.Y", "one"], ["xs"])
    of_zeros = [
        make_node("Shape", ["lower.Y_h"], ["sizes"]),
        make_node("Expand", ["zero", "sizes"], ["start"]),
    ]
    constants |= {"one": [1], "zero": np.float32(0)}
    upper, more = node(width=4, inputs=["xs", "gru.W", "gru.R", "gru.B", "", "start"])
    proto = graph([lower, squeeze, *of_zeros, upper], constants | more)
    assert convert.from_onnx(proto).stack.num_layers == 2
    for kind, place in (("initial_h", 5), ("sequence_lens", 4)):
        upper, _ = node(width=4, inputs=["xs", "gru.W", "gru.R", "gru.B", "", ""])
        upper.input[place] = "start"
        proto = graph([lower, squeeze, make_node("Relu", ["lower.Y_h"], ["start"]), upper], constants | more)
        with pytest.raises(ValueError, match=f"node 'gru' takes {kind} from a GRU, .* got 'start'"):
            convert.from_onnx(proto)


FED = {
    "lengths in floats": (dict(sequence_lens="X"), "sequence_lens of dtype int32, got float32"),
    "lengths of two axes": (dict(sequence_lens="rows"), r"sequence_lens of shape \[None\], None for .*, got \[2, 1\]"),
    "a start in integers": (dict(initial_h="lens"), "initial_h of dtype float32, got int32"),
    "a start like inputs": (dict(initial_h="X"), r"initial_h of shape \[1, None, 4\], .*, got \[None, None, 3\]"),
    "a start of no batch": (dict(initial_h="empty"), r"initial_h of shape \[1, None, 4\], .*, got \[1, 0, 4\]"),
    "a start of another batch": (
        dict(initial_h="three", X="of two"),
        r"initial_h of shape \[1, 2, 4\], .*, got \[1, 3, 4\]",
    ),
    "a start of one axis": (dict(initial_h="row"), r"initial_h of shape \[1, None, 4\], .*, got \[4\]"),
    "a number as start": (dict(initial_h="zero"), r"initial_h of shape \[1, None, 4\], .*, got \[\]"),
    "inputs of another width": (dict(X="wide"), r"X of shape \[None, None, 3\], .*, got \[None, None, 6\]"),
    "inputs in integers": (dict(X="lens"), r"X of dtype float32, got int32"),
    "batch first": (
        dict(initial_h="empty", layout=1),
        r"initial_h of shape \[None, 1, 4\], .*, got \[1, 0, 4\]",
    ),
}


@pytest.mark.parametrize("case", FED)
def test_inputs_starts_and_lengths_that_are_none_are_refused(case):
    given, message = FED[case]
    names = [given.get("X", "X"), "gru.W", "gru.R", "gru.B", given.get("sequence_lens", ""), given.get("initial_h", "")]
    made, constants = node(inputs=names, layout=given.get("layout", 0))
    constants |= {"empty": np.zeros((1, 0, 4), np.float32), "row": np.zeros(4, np.float32), "zero": np.float32(0)}
    before = [
        make_node("Reshape", ["lens", "two"], ["rows"]),
        make_node("Concat", ["X", "X"], ["wide"], axis=2),
        make_node("Reshape", ["X", "sizes"], ["of two"]),
    ]
    constants |= {"two": [2, 1], "sizes": [5, 2, 3], "three": np.zeros((1, 3, 4), np.float32)}
    with pytest.raises(ValueError, match=f"node 'gru' must have {message}"):
        convert.from_onnx(graph([*before, made], constants, inputs=("X", "lens"), shape=["time", "batch", 3]))


def test_negative_sizes_are_refused_or_not_known():
    """They end the process in the library's Slice: constants have none, and inputs of -1 have any size."""
    made, constants = node()
    proto = graph([make_node("Slice", ["X", "from", "to"], ["some"]), made], constants | {"from": [0], "to": [1]})
    for size in (-(2**63), -1, 3):
        proto.graph.input[0].type.tensor_type.shape.dim.add().dim_value = size
    assert convert.from_onnx(proto).params[0].in_features == 3
    proto.graph.node[0].input[0] = "some constant"
    proto.graph.initializer.add(name="some constant", dims=[-(2**63)], data_type=1)
    with pytest.raises(ValueError, match=r"constant 'some constant' of the graph is damaged: it has negative sizes"):
        convert.from_onnx(proto)


def test_nodes_of_one_name_are_told_apart_by_their_outputs():
    lower, constants = node(name="lower")
    upper, more = node(width=4, inputs=["xs", "gru.W", "gru.R", "gru.B"])
    lower.name = upper.name = "both"
    squeeze = make_node("Squeeze", ["lower.Y", "one"], ["xs"])
    proto = graph([lower, squeeze, upper], constants | more | {"one": [1]})
    assert convert.from_onnx(proto, nodes=["lower.Y"]).params[0].in_features == 3
    assert convert.from_onnx(proto, nodes=["gru.Y"]).params[0].in_features == 4
    with pytest.raises(ValueError, match=r"some of \['lower.Y', 'gru.Y'\], got \['both'\]"):
        convert.from_onnx(proto, nodes=["both"])


# --- Cycles -----------------------------------------------------------------------------------------------------------

CYCLES = {
    "apart": ([("a", "b"), ("b", "a")], "X"),
    "before the GRU": ([("a", "b"), ("b", "a")], "a"),
    "through it": ([("gru.Y", "a")], "a"),
    "itself": ([("a", "a")], "X"),
}


@pytest.mark.parametrize("case", CYCLES)
def test_cycles_are_refused_by_name(case):
    swaps, x = CYCLES[case]
    made, constants = node(inputs=[x, "gru.W", "gru.R", "gru.B"])
    nodes = [make_node("Transpose", [given], [name], f"makes {name}") for given, name in swaps]
    with pytest.raises(
        ValueError, match=r"source must have no cycle of nodes, got node '(\w+ )?\w+' to node "
    ) as error:
        convert.from_onnx(graph([*nodes, made], constants))
    assert all(f"node 'makes {name}'" in str(error.value) for _, name in swaps)


def test_functions_that_call_each_other_are_refused_by_name():
    version = [onnx.helper.make_opsetid(domain, 14) for domain in ("", "own")]
    made, constants = node()
    proto = graph([make_node("f", ["X"], ["xs"], domain="own"), made], constants)
    proto.opset_import.append(version[1])
    for name, called in ("fg", "gf"):
        call = make_node(called, ["x"], ["y"], domain="own")
        proto.functions.append(onnx.helper.make_function("own", name, ["x"], ["y"], [call], version))
    with pytest.raises(ValueError, match=r"no cycle of functions, got own\.(f to own\.g|g to own\.f) to own"):
        convert.from_onnx(proto)
