"""What a model read from an ONNX file is held against: what onnxruntime computes of the file's graph."""

import numpy as np

from tests import oracle


def check_onnx(data, result):
    """Raises if the model is not what the graph computes."""
    import onnx

    one, carry = result
    proto = onnx.load_model_from_string(data)
    layers = [node for node in proto.graph.node if node.op_type == "GRU" and node.domain in ("", "ai.onnx")]
    for node in layers:  # ONNX derives it from R, onnxruntime does not
        if not any(attribute.name == "hidden_size" for attribute in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("hidden_size", one.stack.features))
    for node in proto.graph.node:  # onnxruntime wants them to be unique
        node.name = ""
    if not all(
        np.abs(np.asarray(leaf, np.float64)).max() < 1e6 for params in one.params for leaf in params if leaf is not None
    ):
        check_weights(onnx, proto, layers, one)  # what they lead to is not one thing
        return
    states = (
        np.stack([np.asarray(state) for state in carry] if isinstance(carry, tuple) else [carry])
        if carry is not None
        else None
    )
    sizes = {(5, 2)}
    for value in proto.graph.input:  # sizes that the graph fixes, time first or batch first
        if len(fixed := [size.dim_value or 0 for size in value.type.tensor_type.shape.dim]) == 3:
            sizes |= {(fixed[0] or 5, fixed[1] or 2), (fixed[1] or 5, fixed[0] or 2)}
    sizes = [(5, 2 if states is None else states.shape[1]), *(pair for pair in sorted(sizes) if max(pair) < 100)]
    sizes += [(5, batch) for batch in (1, 3, 4, 8, 12, 17)]  # a start of zeros may fix it
    errors = []
    for time_steps, batch in sizes:
        try:
            compared = _computed(onnx, proto, layers, one, states, time_steps, batch)
        except RefusedError as error:
            errors.append(str(error))
            continue
        for ours, theirs in compared:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        return
    raise RefusedError(errors[0])


class RefusedError(Exception):
    """onnxruntime does not compute the graph."""


def _computed(onnx, proto, layers, one, states, time_steps, batch):
    """Pairs of what the model and the graph compute: Y of the last layer, and Y_h of each."""
    rng = np.random.default_rng(0)
    dtype = one.params[0].kernel.dtype
    directions, features = one.stack.directions, one.stack.features
    elem = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    feed = {layers[0].input[0]: rng.normal(size=(time_steps, batch, one.params[0].in_features)).astype(dtype)}
    given = {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    starts, lengths = [], None
    for i, node in enumerate(layers):
        inputs = [*node.input, *[""] * 6][:6]
        start = np.zeros((directions, batch, features), dtype)
        if inputs[5] and given & ancestors(proto, [inputs[5]]):
            start = feed.setdefault(inputs[5], rng.normal(size=start.shape).astype(dtype))
        elif inputs[5] and states is not None:
            start = states[i * directions : (i + 1) * directions].astype(dtype)
        starts.append(start)
        if inputs[4]:
            lengths = feed.setdefault(inputs[4], np.arange(time_steps, time_steps - batch, -1, np.int32).clip(1))
    wanted = [name for node in layers for name in [*node.output, "", ""][:2] if name]
    theirs = dict(zip(wanted, of_onnxruntime(onnx, proto, wanted, feed, elem), strict=True))
    mask = None if lengths is None else np.arange(time_steps)[:, None] < lengths
    xs, pairs = feed[layers[0].input[0]].astype(np.float64), []
    for i, node in enumerate(layers):
        runs = []
        for j, start in enumerate(starts[i].astype(np.float64)):
            params = one.params[i * directions + j]
            reverse = one.stack.reverse or j == 1
            options = dict(reset_after=one.stack.cell.reset_after, mask=mask, reverse=reverse)
            runs.append(oracle.gru(oracle.weights(params), xs, start, **options))
        xs = np.concatenate([hs for _, hs in runs], -1)
        outputs = [*node.output, "", ""][:2]
        expected = np.stack([hs for _, hs in runs], 1), np.stack([h for h, _ in runs])
        pairs += [(value, theirs[name]) for name, value in zip(outputs, expected, strict=True) if name]
    return pairs


def of_onnxruntime(onnx, proto, wanted, feed, elem):
    """What onnxruntime computes for tensors by name, from these; they and other inputs have this type."""
    import onnxruntime

    given = {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    part = onnx.ModelProto()
    part.CopyFrom(proto)
    kept = ancestors(proto, wanted, set(feed))
    for field in ("node", "initializer", "input", "output", "value_info"):
        part.graph.ClearField(field)
    part.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in kept)
    part.graph.node.extend(
        node for node in proto.graph.node if set(node.output) & kept and not set(node.output) & set(feed)
    )
    for name, value in feed.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        part.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    for value in proto.graph.input:  # those whose shapes constants are made of
        if value.name in kept - set(feed) and value.name in given:
            shape = [size.dim_value or 2 for size in value.type.tensor_type.shape.dim]
            part.graph.input.append(onnx.helper.make_tensor_value_info(value.name, elem, shape))
            feed[value.name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(elem))
    part.graph.output.extend(onnx.helper.make_tensor_value_info(name, elem, None) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(wanted, feed)
    except Exception as error:
        raise RefusedError(str(error).replace("\n", " ")[:600]) from error


def check_weights(onnx, proto, layers, one):
    """Raises if the parameters are not those of W, R and B."""
    elem = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(one.params[0].kernel.dtype))
    params = iter(one.params)
    for node in layers:
        names = [name for name in node.input[1:4] if name]
        weights = of_onnxruntime(onnx, proto, names, {}, elem)
        for W, R, *biases in zip(*weights, strict=True):
            params_of_cell = next(params)
            (z, r, n), (z_h, r_h, n_h) = (np.split(weight, 3) for weight in (W, R))
            np.testing.assert_array_equal(params_of_cell.kernel, np.concatenate([r, z, n]).T)
            np.testing.assert_array_equal(params_of_cell.recurrent_kernel, np.concatenate([r_h, z_h, n_h]).T)
            assert (params_of_cell.bias is None) == (not biases)
            if biases:
                z, r, n, z_h, r_h, n_h = np.split(biases[0], 6)
                after = one.stack.cell.reset_after
                expected = np.concatenate([r + r_h, z + z_h, n if after else n + n_h])
                np.testing.assert_array_equal(params_of_cell.bias, expected)
                if after:
                    np.testing.assert_array_equal(params_of_cell.recurrent_bias, n_h)
    assert next(params, None) is None


def ancestors(proto, names, stop=frozenset()):
    """The tensors that some are made of, and they themselves; what `stop` is made of is left out."""
    producers = {name: node for node in proto.graph.node for name in node.output}
    found, pending = set(), list(names)
    while pending:
        name = pending.pop()
        if name and name not in found:
            found.add(name)
            if name in producers and name not in stop:
                pending += producers[name].input
    return found
