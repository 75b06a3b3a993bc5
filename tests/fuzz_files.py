"""Files that are in order, and seeded ways to damage them in their bytes and in their structure."""

import json
import struct

import numpy as np

import gru_jax
from gru_jax import convert
from gru_jax.convert.files import save
from tests.models import model

# --- ONNX -------------------------------------------------------------------------------------------------------------


def torch_like(helper, numpy_helper, *, static, layers=2):
    """A graph as torch's default exporter writes it without optimisation: weights are sliced, joined and unsqueezed."""
    rng = np.random.default_rng(0)
    nodes, constants, count = [], {}, 0

    def constant(value):
        name = f"c{len(constants)}"
        constants[name] = np.asarray(value)
        return name

    def add(kind, inputs, **attributes):
        nonlocal count
        count += 1
        nodes.append(helper.make_node(kind, inputs, [f"v{count}"], f"n{count}", **attributes))
        return f"v{count}"

    def gates(value):
        """A weight or bias, its first two gates swapped."""
        given = constant(value)
        ends = [constant([4 * i]) for i in range(4)]
        parts = [add("Slice", [given, ends[i], ends[i + 1], ends[0]]) for i in (1, 0, 2)]
        return add("Concat", parts, axis=0)

    def normal(*shape):
        return rng.normal(scale=0.5, size=shape).astype(np.float32)

    zero = constant([0])
    x = add("Transpose", ["xs"], perm=[1, 0, 2])
    size = add("Unsqueeze", [add("Gather", [add("Shape", ["xs"]), constant(0)]), zero])
    start = add("Expand", [constant(np.float32(0)), add("Concat", [constant([2]), size, constant([4])], axis=0)])
    finals = []
    for layer in range(layers):
        joined = []
        for kind in ("W", "R", "B"):
            each = []
            for _ in range(2):
                width = {"W": 8 if layer else 3, "R": 4}.get(kind)
                halves = [gates(normal(12, width))] if width else [gates(normal(12)), gates(normal(12))]
                whole = halves[0] if width else add("Concat", halves, axis=0)
                each.append(add("Unsqueeze", [whole, zero]))
            joined.append(add("Concat", each, axis=0))
        options = dict(hidden_size=4, direction="bidirectional", linear_before_reset=1)
        outputs = [f"Y{layer}", f"h{layer}"]
        nodes.append(helper.make_node("GRU", [x, *joined, "", start], outputs, f"gru{layer}", **options))
        finals.append(f"h{layer}")
        swapped = add("Transpose", [f"Y{layer}"], perm=[0, 2, 1, 3])
        shape = constant([5, 2, 8])
        if not static:
            sizes, at = add("Shape", [swapped]), [constant([i]) for i in range(5)]
            parts = [add("Slice", [sizes, at[i], at[i + 1]]) for i in range(4)]
            shape = add("Concat", [*parts[:2], add("Mul", parts[2:])], axis=0)
        x = add("Reshape", [swapped, shape])
    nodes.append(helper.make_node("Transpose", [x], ["outputs"], perm=[1, 0, 2]))
    kind = 1
    graph = helper.make_graph(
        nodes,
        "torch",
        [helper.make_tensor_value_info("xs", kind, [2, 5, 3] if static else ["b", "t", 3])],
        [helper.make_tensor_value_info(name, kind, None) for name in ("outputs", *finals)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def onnx_files():
    """Graphs by our writer and as others write them, as ModelProtos."""
    import onnx

    own = [
        convert.to_onnx(model()),
        convert.to_onnx(model(gru_jax.GRU(reset_after=False), reverse=True, use_bias=False)),
        convert.to_onnx(model(num_layers=2, bidirectional=True), seq_lengths=True, initial_carry=True),
        convert.to_onnx(model(num_layers=3, time_major=True), initial_carry=True),
    ]
    return own + [torch_like(onnx.helper, onnx.numpy_helper, static=static) for static in (False, True)]


def damaged_onnx(rng, files):
    """The bytes of a graph with one to three changes."""
    proto = type(files[0])()
    proto.CopyFrom(files[rng.integers(len(files))])
    if rng.random() < 0.3:
        return flipped(rng, proto.SerializeToString())
    for _ in range(rng.integers(1, 4)):
        ONNX_CHANGES[rng.integers(len(ONNX_CHANGES))](rng, proto)
    return proto.SerializeToString()


def flipped(rng, data):
    """Bytes of which some are others, missing, or there twice."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data)))
        match rng.integers(6):
            case 0:
                data[place : place + int(rng.integers(1, 9))] = b""
            case 1:
                data[place:place] = data[place : place + int(rng.integers(1, 9))]
            case 2:
                data[place] = int(rng.integers(256))
            case _:
                data[place] ^= 1 << int(rng.integers(8))
        if not data:
            break
    return bytes(data)


def any_of(rng, values):
    return values[rng.integers(len(values))] if len(values) else None


def _names(proto):
    made = [name for node in proto.graph.node for name in node.output]
    return made + [tensor.name for tensor in proto.graph.initializer] + [value.name for value in proto.graph.input]


def _remove(rng, proto):
    if len(proto.graph.node):
        del proto.graph.node[rng.integers(len(proto.graph.node))]


def _repeat(rng, proto):
    node = proto.graph.node.add()
    node.CopyFrom(any_of(rng, proto.graph.node[:-1]) or node)
    if node.output and rng.random() < 0.7:
        node.output[0] += "'"


def _rewire(rng, proto):
    node = any_of(rng, [node for node in proto.graph.node if node.input])
    if node is not None:
        node.input[rng.integers(len(node.input))] = any_of(rng, ["", *_names(proto)])


def _cycle(rng, proto):
    node = any_of(rng, [node for node in proto.graph.node if node.input])
    later = [name for node in proto.graph.node for name in node.output]
    if node is not None and later:
        node.input[0] = any_of(rng, later)


def _rename(rng, proto):
    node = any_of(rng, [node for node in proto.graph.node if node.output])
    if node is not None:
        node.output[rng.integers(len(node.output))] = any_of(rng, ["", "new", *_names(proto)])


def _operator(rng, proto):
    node = any_of(rng, proto.graph.node)
    others = [node.op_type for node in proto.graph.node]
    if node is not None:
        node.op_type = any_of(rng, [*others, "Identity", "Cast", "Split", "Constant", "Expand", "Relu", "Squeeze"])


def _domain(rng, proto):
    node = any_of(rng, proto.graph.node)
    if node is not None:
        node.domain = any_of(rng, ["ai.onnx", "com.microsoft", "elsewhere"])


def _inputs(rng, proto):
    node = any_of(rng, [node for node in proto.graph.node if node.input])
    if node is not None and rng.random() < 0.5:
        del node.input[rng.integers(len(node.input))]
    elif node is not None:
        node.input.append(any_of(rng, _names(proto)))


def _attribute(rng, proto):
    node = any_of(rng, [node for node in proto.graph.node if node.attribute])
    if node is None:
        return
    attribute = any_of(rng, node.attribute)
    match rng.integers(6):
        case 0:
            node.attribute.remove(attribute)
        case 1:
            attribute.type = int(rng.integers(0, 15))
        case 2:
            attribute.name = any_of(rng, ["axis", "axes", "perm", "layout", "clip", "direction", "allowzero", "odd"])
        case 3:
            node.attribute.add().CopyFrom(attribute)
        case 4:
            attribute.s = any_of(rng, [b"reverse", b"bidirectional", b"\xff\xfe", b""])
        case _:
            attribute.i = _number(rng)
            if attribute.ints:
                attribute.ints[rng.integers(len(attribute.ints))] = _number(rng)


def _number(rng):
    return int(any_of(rng, [-(2**63), -1, 0, 1, 2, 3, 4, 8, 17, 2**31, 2**40, 2**63 - 1]))


def _tensor(rng, proto):
    """Dimensions, dtype, bytes or numbers of a constant."""
    tensor = any_of(rng, proto.graph.initializer)
    if tensor is None:
        return
    match rng.integers(7):
        case 0:
            tensor.data_type = int(rng.integers(0, 26))
        case 1:
            tensor.raw_data = tensor.raw_data[: rng.integers(len(tensor.raw_data) + 1)]
        case 2:
            tensor.data_location = 1
            if rng.random() < 0.5:
                entry = tensor.external_data.add()
                entry.key, entry.value = "location", any_of(rng, ["weights", "../weights", "/dev/zero", "."])
        case 3 if tensor.dims:
            tensor.dims[rng.integers(len(tensor.dims))] = _number(rng)
        case 4 if tensor.data_type == 7 and len(tensor.raw_data) % 8 == 0:
            numbers = np.frombuffer(tensor.raw_data, np.int64).copy()
            if numbers.size:
                numbers[rng.integers(numbers.size)] = _number(rng)
            tensor.raw_data = numbers.tobytes()
        case 5:
            tensor.name = any_of(rng, _names(proto))
        case _:
            dims = list(tensor.dims)[::-1]
            del tensor.dims[:]
            tensor.dims.extend(dims)


def _shapes(rng, proto):
    """Sizes that the graph declares."""
    value = any_of(rng, [*proto.graph.input, *proto.graph.output, *proto.graph.value_info])
    sizes = [] if value is None else value.type.tensor_type.shape.dim
    if sizes:
        any_of(rng, sizes).dim_value = max(_number(rng), 0)
    elif value is not None:
        value.type.tensor_type.shape.dim.add().dim_value = max(_number(rng), 0)


def _version(rng, proto):
    if proto.opset_import:
        proto.opset_import[0].version = any_of(rng, [*range(1, 27), 2**40, -1])


def _swap(rng, proto):
    if len(proto.graph.node) > 1:
        nodes = [type(node).FromString(node.SerializeToString()) for node in proto.graph.node]
        i, j = rng.integers(len(nodes), size=2)
        nodes[i], nodes[j] = nodes[j], nodes[i]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)


ONNX_CHANGES = [
    *(_remove, _repeat, _rewire, _rewire, _cycle, _rename, _operator, _domain, _inputs),
    *(_attribute, _attribute, _tensor, _tensor, _shapes, _version, _swap),
]

# --- safetensors ------------------------------------------------------------------------------------------------------


def own_files(folder):
    """What `save` writes, as bytes; the metadata, whose order is another in every process, in one order."""
    models = [
        model(),
        model(gru_jax.GOODFELLOW, num_layers=2, bidirectional=True, dropout=0.1, dtype="float16"),
        model(num_layers=3, use_bias=False, time_major=True, reverse=True, dtype="float64"),
    ]
    files = []
    for one in models:
        save(folder / "own.safetensors", one)
        header, body = parts((folder / "own.safetensors").read_bytes())
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        files.append(_packed(header, body))
    return files


def torch_files(folder):
    """Checkpoints of PyTorch's, as bytes."""
    from safetensors.numpy import save as packed

    models = [model(), model(num_layers=2, bidirectional=True), model(num_layers=2, use_bias=False)]
    return [packed(convert.to_torch(one), {"format": "pt"}) for one in models]


def damaged_safetensors(rng, files):
    """The bytes of a file with one to three changes."""
    data = any_of(rng, files)
    if rng.random() < 0.4:
        place = rng.integers(len(data)) if rng.random() < 0.7 else 0  # the header is the smaller part of most files
        return data[:place] + flipped(rng, data[place:])
    header, body = parts(data)
    for _ in range(rng.integers(1, 4)):
        _change_header(rng, header)
    return _packed(header, body)


def _packed(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def parts(data):
    """(header, body) of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _change_header(rng, header):
    name = any_of(rng, list(header))
    if name is None:
        return
    if name == "__metadata__" or ("__metadata__" in header and rng.random() < 0.4):
        _change_metadata(rng, header["__metadata__"])
        return
    entry = header[name]
    match rng.integers(6):
        case 0:
            del header[name]
        case 1:
            header[any_of(rng, [name + "x", name.replace("0", "1"), name.replace("ih", "hh"), ""])] = header.pop(name)
        case 2:
            entry["dtype"] = any_of(rng, ["F16", "BF16", "F32", "F64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X"])
        case 3:
            entry["shape"] = entry["shape"][::-1]
        case 4 if entry["shape"]:
            entry["shape"][rng.integers(len(entry["shape"]))] = _number(rng)
        case _:
            other = any_of(rng, [key for key in header if key != "__metadata__"])
            entry["data_offsets"], header[other]["data_offsets"] = header[other]["data_offsets"], entry["data_offsets"]


def _change_metadata(rng, metadata):
    if "stack" not in metadata or rng.random() < 0.2:
        key = any_of(rng, [*metadata, "more"])
        metadata[key] = any_of(rng, ["", "2", "1", "x", "²", "9" * 5000, "[" * 100_000, "gru_jax", "null", "{}"])
        return
    try:
        stack = json.loads(metadata["stack"])
        inner = stack["cell"] if rng.random() < 0.3 else stack
        inner[any_of(rng, [*inner, "more"])] = any_of(rng, ODD)
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    metadata["stack"] = json.dumps(stack)


ODD = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    2**70,
    0.5,
    1.0,
    float("nan"),
    float("inf"),
    "",
    "tanh",
    "scan",
    "float32",
    "O",
]
ODD += ["f4,f4", [], [1], {}, {"a": 1}, "int8", "bfloat16", "float8_e4m3fn"]
