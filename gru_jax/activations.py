"""Activations as values: JAX's own are known by name, whichever object stands for one.

A function object is no name. ``copy.deepcopy`` and cloudpickle make another object of `jax.nn.sigmoid`, pickle refuses
it, and ``lambda x: jax.nn.sigmoid(x)`` is as good. So cells and layers hold `Named` in place of each: a value that is
equal to its copies, wherever and however these were made.
"""

import dataclasses
import functools
import re
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax.gates import Activation

FUNCTIONS: dict[str, Activation] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "celu": jax.nn.celu,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "softplus": jax.nn.softplus,
    "soft_sign": jax.nn.soft_sign,
    "squareplus": jax.nn.squareplus,
    "log_sigmoid": jax.nn.log_sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_tanh": jax.nn.hard_tanh,
    "sparse_plus": jax.nn.sparse_plus,
    "sparse_sigmoid": jax.nn.sparse_sigmoid,
    "exp": jnp.exp,
    "identity": jax.nn.identity,
}
"""By the name in `jax.nn`, or `jax.numpy`. All are elementwise, with their default arguments."""


@dataclasses.dataclass(frozen=True)
class Named:
    """An activation of `FUNCTIONS`. Equal by name, so that it can be copied, pickled and compared.

    >>> Named("tanh")(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """

    name: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return FUNCTIONS[self.name](x)


SIGMOID, TANH = Named("sigmoid"), Named("tanh")

# np.tanh, of which a trace could make nothing, is what some write.
_NAMES: dict[Any, str] = {function: name for name, function in FUNCTIONS.items()} | {np.tanh: "tanh"}
# A function that casts, or differs between them, is another one.
_DTYPES = jnp.float32, jnp.bfloat16
_OPERATIONS = {"logistic": "sigmoid", "tanh": "tanh"}
_traced: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def canonical(activation: Activation) -> Activation:
    """The `Named` activation that a function is; itself if it is another.

    It is known by what it does: a function that a trace shows to be one operation, σ or tanh, and nothing else is that.
    The others are made of several, and defined with their derivatives: known is what JAX makes the same program of, to
    second order, as copies of JAX's own are.

    >>> canonical(lambda x: jnp.tanh(x)) == canonical(jax.lax.tanh) == Named("tanh")
    True
    >>> canonical(lambda x: jax.nn.relu(x)) == Named("relu")
    True
    >>> canonical(abs) is abs
    True
    """
    if isinstance(activation, Named):
        return activation
    try:
        name = _NAMES.get(activation) or _traced_name(activation)
    except TypeError:  # it cannot be hashed
        return activation
    return activation if name is None else Named(name)


def _traced_name(activation: Activation) -> str | None:
    """What a trace shows a function to be; remembered as long as the function is there."""
    try:
        if activation in _traced:
            return _traced[activation]
        _traced[activation] = name = _trace(activation)
    except TypeError:  # it cannot be referred to weakly
        return _trace(activation)
    return name


def _trace(activation: Activation) -> str | None:
    like = [jax.ShapeDtypeStruct((2, 3), dtype) for dtype in _DTYPES]
    try:
        made = [jax.make_jaxpr(activation, return_shape=True)(x) for x in like]
        if not all(hasattr(out, "shape") for _, out in made):
            return None
        names = {_operation(jaxpr.jaxpr) for jaxpr, _ in made}
        if len(names) == 1 and None not in names:
            return names.pop()
        return _programs(jax.config.read("jax_enable_x64")).get(_program(activation))
    except Exception:  # whatever a user's function raises: it will again when it is called
        return None


@functools.cache
def _programs(x64: bool) -> dict[str, str]:
    """The names of `FUNCTIONS` by their programs, in which constants have other types with `x64`."""
    return {_program(function): name for name, function in FUNCTIONS.items()}


def _program(activation: Activation) -> str:
    """The second-order tangent of an activation as a trace shows it, without the names of functions."""

    def tangent(x: jax.Array, d_x: jax.Array) -> Any:
        def first(x: jax.Array) -> Any:
            return jax.jvp(activation, (x,), (d_x,))

        return jax.jvp(first, (x,), (d_x,))

    with jax.disable_jit(False):
        traced = [jax.make_jaxpr(tangent)(*2 * [jax.ShapeDtypeStruct((2, 3), dtype)]) for dtype in _DTYPES]
    return re.sub(r"name=\S+", "", "\n".join(map(str, traced)))


def _operation(jaxpr: Any) -> str | None:
    """The activation that a jaxpr consists of, jitted or not."""
    if len(jaxpr.eqns) != 1 or jaxpr.constvars:
        return None
    equation = jaxpr.eqns[0]
    if equation.invars != jaxpr.invars or equation.outvars != jaxpr.outvars:
        return None
    if equation.primitive.name in ("jit", "pjit"):
        return _operation(equation.params["jaxpr"].jaxpr)
    # A parameter other than None asks for an accuracy.
    return _OPERATIONS.get(equation.primitive.name) if set(equation.params.values()) <= {None} else None
