"""Adapters of frameworks on JAX, compiled by `jax.jit` as functions of parameters and inputs."""

import importlib
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax
from experiments.bench.peers.base import Pass, Problem, Program, UnavailableError, reorder
from gru_jax.lowerings.native import native_import_error

Run = Callable[[Any, jax.Array], jax.Array]
"""(params, xs) to hs."""


def gru_jax_method(method: str, problem: Problem) -> Program:
    """`gru_jax.unroll` by one of its methods."""
    return _program(
        lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs, method=method)[1], problem.weights, problem
    )


def load_native() -> None:
    """Raises `UnavailableError` if there are no kernels."""
    if reason := native_import_error or (not gru_jax.config.native and "gru_jax.config.native is False"):
        raise UnavailableError(reason)


def flax_nnx(problem: Problem) -> Program:
    """`nnx.RNN(nnx.GRUCell)`."""
    from flax import nnx

    _, batch, in_features, features = problem.shape
    layer = nnx.RNN(nnx.GRUCell(in_features, features, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    parts: Any = nnx.split(layer, nnx.Param, ...)
    graph, params, rest = parts
    put_into_flax(params["cell"], problem.weights)

    def run(params, xs):
        # Without an initial carry the layer would draw from its random stream, which it cannot inside jax.jit.
        return nnx.merge(graph, params, rest)(xs, initial_carry=jnp.zeros((batch, features), xs.dtype))

    return _program(run, params, problem, batch_major=True)


def put_into_flax(cell: Any, weights: gru_jax.Params) -> None:
    """Puts our weights into the parameters of an `nnx.GRUCell`, which has no recurrent bias."""
    cell["dense_i"]["kernel"].set_value(jnp.asarray(weights.kernel))
    cell["dense_i"]["bias"].set_value(jnp.asarray(weights.bias))
    cell["dense_h"]["kernel"].set_value(jnp.asarray(weights.recurrent_kernel))


def flax_linen(problem: Problem) -> Program:
    """`nn.RNN(nn.GRUCell)`."""
    from flax import linen

    weights, cell = problem.weights, {}
    for name, kernel, recurrent_kernel, bias in zip(
        "rzn", *(np.split(np.asarray(packed), 3, axis=-1) for packed in weights[:3]), strict=True
    ):
        cell[f"i{name}"] = {"kernel": kernel, "bias": bias}
        cell[f"h{name}"] = {"kernel": recurrent_kernel}
    cell["hn"]["bias"] = np.asarray(weights.recurrent_bias)
    layer: Any = linen.RNN(linen.GRUCell(problem.shape.H))
    return _program(lambda params, xs: layer.apply({"params": params}, xs), {"cell": cell}, problem, batch_major=True)


def load_haiku() -> Any:
    """Imports haiku."""
    return importlib.import_module("haiku")


def haiku(problem: Problem) -> Program:
    """`hk.dynamic_unroll(hk.GRU)`. Its reset comes before the product; its update gate is 1 − z, so that the weights
    have the opposite sign."""
    hk = load_haiku()
    features, batch = problem.shape.H, problem.shape.B
    signs = np.repeat(np.array([-1, 1, 1], np.float32), features)
    names = {"w_i": "kernel", "w_h": "recurrent_kernel", "b": "bias"}
    params = {name: signs * reorder(getattr(problem.weights, ours), "zrn") for name, ours in names.items()}

    def unroll(xs):
        return hk.dynamic_unroll(hk.GRU(features), xs, jnp.zeros((batch, features), xs.dtype))[0]

    apply = hk.without_apply_rng(hk.transform(unroll)).apply
    return _program(apply, {"gru": params}, problem)


def load_equinox() -> Any:
    """Imports equinox."""
    return importlib.import_module("equinox")


def equinox(problem: Problem) -> Program:
    """`eqx.nn.GRUCell` under `jax.vmap` and `jax.lax.scan`, as its documentation shows."""
    eqx = load_equinox()
    _, batch, in_features, features = problem.shape
    weights = problem.weights
    params = eqx.tree_at(
        lambda cell: (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n),
        eqx.nn.GRUCell(in_features, features, dtype=jnp.float32, key=jax.random.key(0)),
        (np.asarray(weights.kernel).T, np.asarray(weights.recurrent_kernel).T, weights.bias, weights.recurrent_bias),
    )

    def run(cell, xs):
        def step(h_tm1, x_t):
            h_t = jax.vmap(cell)(x_t, h_tm1)
            return h_t, h_t

        return jax.lax.scan(step, jnp.zeros((batch, features), xs.dtype), xs)[1]

    return _program(run, params, problem)


def load_keras() -> Any:
    """Imports keras on its JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    module = importlib.import_module("keras")
    if module.config.backend() != "jax":
        raise UnavailableError(f"its backend is {module.config.backend()}, and can no longer be changed")
    return module


def keras(problem: Problem) -> Program:
    """`keras.layers.GRU` on Keras' JAX backend, by `stateless_call`."""
    module = load_keras()
    steps, batch, in_features, features = problem.shape
    layer = module.layers.GRU(features, return_sequences=True, dtype="float32")
    layer.build((batch, steps, in_features))
    bias = np.stack([reorder(problem.weights.bias, "zrn"), np.zeros(3 * features, np.float32)])
    params = [reorder(problem.weights.kernel, "zrn"), reorder(problem.weights.recurrent_kernel, "zrn"), bias]
    state = [variable.value for variable in layer.non_trainable_variables]
    return _program(lambda params, xs: layer.stateless_call(params, state, xs)[0], params, problem, batch_major=True)


def _program(run: Run, params: Any, problem: Problem, batch_major: bool = False) -> Program:
    """The program of a function of parameters and inputs; with `batch_major`, xs and hs are (B, T, …)."""

    def placed(array: Any) -> np.ndarray:
        return np.ascontiguousarray(np.swapaxes(array, 0, 1)) if batch_major else np.asarray(array)

    def loss(params, xs, g):
        return (run(params, xs) * g).sum()

    params, xs, g = jax.device_put((params, placed(problem.xs), placed(problem.g)))
    return Program(
        _pass(jax.jit(run), (params, xs), placed),
        _pass(jax.jit(jax.grad(loss, (0, 1))), (params, xs, g), lambda gradients: placed(gradients[1])),
        _residual_bytes(run, params, xs),
    )


def _pass(function: Any, arguments: tuple[Any, ...], array: Callable[[Any], np.ndarray]) -> Pass:
    started = time.perf_counter()
    # Calls of the function reuse this compiled program, and are faster than calls of the program itself.
    analysis = function.lower(*arguments).compile().memory_analysis()
    seconds = time.perf_counter() - started
    temporary = None if analysis is None else analysis.temp_size_in_bytes
    return Pass(lambda: jax.block_until_ready(function(*arguments)), array, seconds, temporary)


def _residual_bytes(run: Run, params: Any, xs: jax.Array) -> int:
    """The bytes of the residuals that the forward pass saves for the backward pass, without the arguments."""
    jaxpr = jax.make_jaxpr(lambda params, xs: jax.vjp(run, params, xs)[1])(params, xs).jaxpr
    arguments = {id(variable) for variable in (*jaxpr.invars, *jaxpr.constvars)}
    # A variable that is saved several times counts once.
    saved = {id(variable): variable.aval for variable in jaxpr.outvars if id(variable) not in arguments}
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in saved.values())
