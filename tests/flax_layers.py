"""Layers of nnx and of linen as functions of arrays, for the tests that hold of both."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx, traverse_util

import gru_jax
from gru_jax.convert import Model
from gru_jax.layers import Stack
from tests.sequences import BATCH, FEATURES, IN_FEATURES, TIME, random_bias, random_kernel

each_api = pytest.mark.parametrize("api", ["nnx", "linen"])
FLOAT64 = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64}
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer and, in linen, its variables; keys are those of dropout."""

    module: Any
    variables: Any = None

    @property
    def api(self):
        return "nnx" if self.variables is None else "linen"

    def __call__(self, x, *, key=None, **given):
        if self.api == "nnx":
            return self.module(x, **given, **({} if key is None else {"rngs": key}))
        return self.module.apply(self.variables, x, **given, rngs=None if key is None else {"dropout": key})

    def step(self, carry, x_t, **given):
        if self.api == "nnx":
            return self.module.step(carry, x_t, **given)
        return self.module.apply(self.variables, carry, x_t, method="step", **given)

    def initialize_carry(self, shape):
        return self.module.initialize_carry(shape) if self.api == "nnx" else self.module.initialize_carry(None, shape)

    @property
    def params(self):
        """The parameters of each layer and direction."""
        return self.module.params if self.api == "nnx" else self.module.model(self.variables).params

    def gradients(self, loss):
        """Of (loss, results) of a layer by the parameters of each cell, dicts by path, and the results.

        As nnx.grad and linen's apply give them.
        """
        if self.api == "nnx":
            copy = nnx.clone(self.module)  # made in this trace
            grads, results = nnx.grad(lambda module: loss(Layer(module)), has_aux=True)(copy)
            cells = nnx.to_pure_dict(grads)["cells"]
            return [_paths(cells[i]) for i in sorted(cells)], results
        run = jax.grad(lambda variables: loss(Layer(self.module, variables)), has_aux=True)
        grads, results = run(self.variables)
        names = ("forward", "backward")[: 1 + self.module.bidirectional]
        cells = [grads["params"][f"layers_{i}"][name] for i in range(self.module.num_layers) for name in names]
        return [_paths(cell) for cell in cells], results


def _paths(tree):
    return {tuple(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}


@functools.cache
def gru(api, *, in_features=IN_FEATURES, features=FEATURES, **options):
    """A GRU in float64 whose biases are not zero."""
    return _made(api, "GRU", (), in_features, features, FLOAT64 | options)


def uncached_rnn(api, cell, *, in_features=IN_FEATURES, features=FEATURES, **options):
    """A layer of any cell in float64; what its cell begins with at zero is not zero."""
    layer = _made(api, "RNN", (cell,), in_features, features, {"param_dtype": jnp.float64} | options)

    def shaken(leaf):
        return leaf + jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape) / 4

    if api == "linen":
        return Layer(layer.module, jax.tree.map(shaken, layer.variables))
    nnx.update(layer.module, jax.tree.map(shaken, nnx.state(layer.module, nnx.Param)))
    return layer


def _made(api, kind, cell, in_features, features, options):
    if api == "nnx":
        return Layer(getattr(gru_jax.nnx, kind)(*cell, in_features, features, rngs=nnx.Rngs(0), **options))
    layer = getattr(gru_jax.linen, kind)(*cell, features, **options)
    x = jnp.ones((TIME, BATCH, in_features) if options.get("time_major") else (BATCH, TIME, in_features))
    return Layer(layer, jax.jit(layer.init)({"params": KEY, "dropout": KEY}, x))


rnn = functools.cache(uncached_rnn)


def of_params(api, cell, params, **options):
    """A GRU of such parameters."""
    model = Model(tuple(params), Stack(cell, params[0].features, num_layers=len(params)))
    if api == "nnx":
        return Layer(gru_jax.nnx.GRU.from_model(model, rngs=nnx.Rngs(0), **options))
    return Layer(*gru_jax.linen.GRU.from_model(model, **options))


def construct(api, kind, **options):
    """A layer of a class of either API."""
    if api == "nnx":
        return getattr(gru_jax.nnx, kind)(in_features=IN_FEATURES, rngs=nnx.Rngs(0), **options)
    return getattr(gru_jax.linen, kind)(**options)


def flax_cell(api, **options):
    """A cell of ours, and in linen its variables."""
    options = FLOAT64 | options
    if api == "nnx":
        return gru_jax.nnx.GRUCell(IN_FEATURES, FEATURES, rngs=nnx.Rngs(0), **options), None
    cell = gru_jax.linen.GRUCell(FEATURES, **options)
    return cell, jax.jit(cell.init)(KEY, jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, IN_FEATURES)))


def call_cell(cell, variables, *given):
    return cell(*given) if variables is None else cell.apply(variables, *given)
