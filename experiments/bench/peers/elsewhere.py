"""Adapters of frameworks other than JAX, on the CPU, with as many threads as XLA."""

import importlib
from typing import Any

import jax
import numpy as np

from experiments.bench import machine
from experiments.bench.peers.base import Pass, Problem, Program, UnavailableError, reorder


def load_torch() -> Any:
    """Imports torch and sets its number of threads."""
    module = importlib.import_module("torch")
    _check_cpu()
    module.set_num_threads(machine.threads())
    return module


def torch(problem: Problem) -> Program:
    """`torch.nn.GRU`, eager."""
    module = load_torch()
    weights, features = problem.weights, problem.shape.H
    layer = module.nn.GRU(problem.shape.D, features, dtype=module.float32)
    arrays = {
        "weight_ih_l0": np.asarray(weights.kernel).T,
        "weight_hh_l0": np.asarray(weights.recurrent_kernel).T,
        "bias_ih_l0": weights.bias,
        "bias_hh_l0": np.zeros(3 * features, np.float32),
    }
    layer.load_state_dict({name: module.tensor(np.ascontiguousarray(array)) for name, array in arrays.items()})
    xs, g = module.tensor(problem.xs, requires_grad=True), module.tensor(problem.g)
    parameters = [*layer.parameters(), xs]

    def forward():
        with module.inference_mode():
            return layer(xs)[0]

    def gradient():
        return module.autograd.grad((layer(xs)[0] * g).sum(), parameters)

    return Program(
        Pass(forward, lambda hs: hs.numpy()),
        Pass(gradient, lambda gradients: gradients[-1].numpy()),
        _residual_bytes(module, layer, xs),
    )


def load_onnxruntime() -> tuple[Any, Any]:
    """Imports onnx, which builds the model, and onnxruntime."""
    modules = importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    _check_cpu()
    return modules


def onnxruntime(problem: Problem) -> Program:
    """The ONNX operator GRU, forward only."""
    onnx, runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = machine.threads()
    # Otherwise its idle threads would spin on the cores that the other peers need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = _onnx_model(onnx, problem).SerializeToString()
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    inputs = {"xs": problem.xs}
    return Program(Pass(lambda: session.run(["hs"], inputs)[0], lambda hs: hs[:, 0]))


def _onnx_model(onnx: Any, problem: Problem) -> Any:
    """A model of one GRU node: xs (T, B, D) to hs (T, 1, B, H), one direction."""
    steps, batch, in_features, features = problem.shape
    weights = problem.weights
    bias = np.concatenate([reorder(weights.bias, "zrn"), np.zeros(3 * features, np.float32)])
    arrays = {
        "W": reorder(weights.kernel, "zrn").T[None],
        "R": reorder(weights.recurrent_kernel, "zrn").T[None],
        "B": bias[None],
    }
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("GRU", ["xs", *arrays], ["hs"], hidden_size=features, linear_before_reset=1)],
        "gru",
        [helper.make_tensor_value_info("xs", kind, [steps, batch, in_features])],
        [helper.make_tensor_value_info("hs", kind, [steps, 1, batch, features])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in arrays.items()],
    )
    # Old versions of the operator set and the format, which every runtime reads.
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def _residual_bytes(module: Any, layer: Any, xs: Any) -> int:
    """The bytes of the tensors that autograd saves, without the arguments."""
    saved = []

    def save(tensor):
        saved.append(tensor)
        return tensor

    with module.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        layer(xs)
    arguments = {tensor.untyped_storage().data_ptr() for tensor in (*layer.parameters(), xs)}
    # Views share a storage, which counts once. The tensors stay alive in `saved`, so no address is used twice.
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    return sum(size for address, size in storages.items() if address not in arguments)


def _check_cpu() -> None:
    if jax.default_backend() != "cpu":
        raise UnavailableError(f"runs on the CPU here, while JAX runs on {jax.default_backend()}")
