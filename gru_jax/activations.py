"""Activations as values: JAX's own activations are recognised, and represented by their names.

The identity of a function object does not tell what it computes: ``copy.deepcopy`` and cloudpickle make another object
of `jax.nn.sigmoid`, pickle refuses it, and ``lambda x: jax.nn.sigmoid(x)`` computes the same. So cells and layers store
a `Named` instead of the function: a value that is equal to all of its copies.
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
"""Activations by their names in `jax.nn` or `jax.numpy`. All are elementwise, with their default arguments."""


@dataclasses.dataclass(frozen=True)
class Named:
    """An activation of `FUNCTIONS`, compared by name, so that it can be copied and pickled.

    >>> Named("tanh")(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """

    name: str

    def __call__(self, x: jax.Array) -> jax.Array:
        return FUNCTIONS[self.name](x)


SIGMOID, TANH = Named("sigmoid"), Named("tanh")

# Some write np.tanh, which cannot be traced.
_NAMES: dict[Any, str] = {function: name for name, function in FUNCTIONS.items()} | {np.tanh: "tanh"}
# A function that casts, or differs between these, is another function.
_DTYPES = jnp.float32, jnp.bfloat16
_OPERATIONS = {"logistic": "sigmoid", "tanh": "tanh"}
_traced: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def canonical(activation: Activation) -> Activation:
    """The `Named` activation that computes the same as a function; the function itself if there is none.

    A function is recognised by its trace. σ and tanh are single operations. The other activations consist of several,
    and may define their own derivatives: a function is one of them if JAX traces it, up to its second derivative, to
    the same program. Copies of JAX's functions are.

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
    except TypeError:  # not hashable
        return activation
    return activation if name is None else Named(name)


def _traced_name(activation: Activation) -> str | None:
    """The name of the activation, by `_trace`. It is cached as long as the function exists."""
    try:
        if activation in _traced:
            return _traced[activation]
        _traced[activation] = name = _trace(activation)
    except TypeError:  # no weak references to it
        return _trace(activation)
    return name


def _trace(activation: Activation) -> str | None:
    """The name of the activation that a function is, by its trace; None if it is none."""
    inputs = [jax.ShapeDtypeStruct((2, 3), dtype) for dtype in _DTYPES]
    try:
        traced = [jax.make_jaxpr(activation, return_shape=True)(x) for x in inputs]
        if not all(hasattr(out, "shape") for _, out in traced):
            return None
        names = {_operation(jaxpr.jaxpr) for jaxpr, _ in traced}
        if len(names) == 1 and None not in names:
            return names.pop()
        return _programs(jax.config.read("jax_enable_x64")).get(_program(activation))
    except Exception:  # whatever a user's function raises, it will raise again when it is called
        return None


@functools.cache
def _programs(x64: bool) -> dict[str, str]:
    """The names of `FUNCTIONS` by their programs, whose constants have other types with `x64`."""
    return {_program(function): name for name, function in FUNCTIONS.items()}


def _program(activation: Activation) -> str:
    """The program of an activation's second-order tangent, as text, without the names of functions."""

    def tangent(x: jax.Array, d_x: jax.Array) -> Any:
        def first(x: jax.Array) -> Any:
            return jax.jvp(activation, (x,), (d_x,))

        return jax.jvp(first, (x,), (d_x,))

    with jax.disable_jit(False):
        traced = [jax.make_jaxpr(tangent)(*2 * [jax.ShapeDtypeStruct((2, 3), dtype)]) for dtype in _DTYPES]
    return re.sub(r"name=\S+", "", "\n".join(map(str, traced)))


def _operation(jaxpr: Any) -> str | None:
    """The name of the activation if a jaxpr consists of that operation only, jitted or not."""
    if len(jaxpr.eqns) != 1 or jaxpr.constvars:
        return None
    equation = jaxpr.eqns[0]
    if equation.invars != jaxpr.invars or equation.outvars != jaxpr.outvars:
        return None
    if equation.primitive.name in ("jit", "pjit"):
        return _operation(equation.params["jaxpr"].jaxpr)
    # A parameter that is not None requests an accuracy.
    return _OPERATIONS.get(equation.primitive.name) if set(equation.params.values()) <= {None} else None
