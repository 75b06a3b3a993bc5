"""Jaxprs, evaluated equation by equation; and precomputed values that keep their derivatives."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir

INLINED = ("jit", "pjit", "closed_call", "core_call")


def variables(atoms: Sequence[Any]) -> list[Any]:
    """The atoms that are variables, not literals."""
    return [v for v in atoms if not isinstance(v, Literal)]


def read(values: Mapping[Any, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return atom.val if isinstance(atom, Literal) else values[atom]


def evaluate(closed_jaxpr: Any, leaves: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr. The functions that it calls are inlined, compiled ones too."""
    jaxpr = closed_jaxpr.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed_jaxpr.consts, *leaves), strict=True))
    for equation in jaxpr.eqns:
        operands = [read(values, v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        outs = evaluate(inner, operands) if equation.primitive.name in INLINED else bind(equation, operands)
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(values, v) for v in jaxpr.outvars]


def bind(equation: Any, values: list[Any]) -> list[Any]:
    """The results of one equation of a jaxpr, for operands with these values."""
    primitive = equation.primitive
    with equation.ctx.manager:
        outs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(outs) if primitive.multiple_results else [outs]


def precomputed(value: jax.Array, function: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """`value`, which must be equal to `function(*operands)`, with the derivatives of that.

    On a CPU; on other platforms `function(*operands)` is computed again, as there `saved` gives no values.

    A primitive, not a `jax.custom_jvp`: partial evaluation replaces the latter by its body, here the value alone, so
    that a third derivative would be lost.
    """
    return _precomputed_p.bind(value, *operands, function=function)


def saved(value: jax.Array) -> jax.Array:
    """`value`, to be read by `precomputed` in a derivative; it counts as a constant.

    On other platforms than a CPU it is zero, and XLA removes what it would be made of.
    """
    return _saved_p.bind(value)


def _precomputed_jvp(primals: Any, tangents: Any, *, function: Callable[..., jax.Array]) -> tuple[Any, Any]:
    out = _precomputed_p.bind(*primals, function=function)
    if all(type(t) is ad.Zero for t in tangents[1:]):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    d_operands = tuple(ad.instantiate_zeros(t) for t in tangents[1:])
    return out, jax.jvp(function, tuple(primals[1:]), d_operands)[1]


def _precomputed_batch(args: Any, dims: Any, *, function: Callable[..., jax.Array]) -> tuple[Any, int]:
    size = next(x.shape[axis] for x, axis in zip(args, dims, strict=True) if axis is not None)
    value, axis = args[0], dims[0]
    value = jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)

    def batched(*operands: jax.Array) -> jax.Array:
        if all(axis is None for axis in dims[1:]):
            one = function(*operands)
            return jnp.broadcast_to(one, (size, *one.shape))
        return jax.vmap(function, in_axes=tuple(dims[1:]))(*operands)

    return _precomputed_p.bind(value, *args[1:], function=batched), 0


_precomputed_p = Primitive("gru_jax_precomputed")
_precomputed_p.def_impl(lambda value, *operands, function: value)
_precomputed_p.def_abstract_eval(lambda value, *operands, function: value)
mlir.register_lowering(
    _precomputed_p, mlir.lower_fun(lambda value, *operands, function: function(*operands), multiple_results=False)
)
mlir.register_lowering(_precomputed_p, lambda ctx, value, *operands, function: [value], platform="cpu")
ad.primitive_jvps[_precomputed_p] = _precomputed_jvp
batching.primitive_batchers[_precomputed_p] = _precomputed_batch

_saved_p = Primitive("gru_jax_saved")
_saved_p.def_impl(lambda value: value)
_saved_p.def_abstract_eval(lambda value: value)
mlir.register_lowering(_saved_p, mlir.lower_fun(jnp.zeros_like, multiple_results=False))
mlir.register_lowering(_saved_p, lambda ctx, value: [value], platform="cpu")
ad.primitive_jvps[_saved_p] = lambda primals, tangents: (
    _saved_p.bind(*primals),
    ad.Zero(jax.typeof(primals[0]).to_tangent_aval()),
)
batching.primitive_batchers[_saved_p] = lambda args, dims: (_saved_p.bind(*args), dims[0])
