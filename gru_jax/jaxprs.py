"""Jaxprs, evaluated equation by equation; and values that are known, whatever they are made of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal, Primitive
from jax.interpreters import ad, batching, mlir

INLINED = ("jit", "pjit", "closed_call", "core_call")


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Those that are no literals."""
    return [v for v in atoms if not isinstance(v, Literal)]


def read(values: Mapping[Any, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return atom.val if isinstance(atom, Literal) else values[atom]


def evaluate(called: Any, leaves: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr; what it calls is inlined, compiled functions as well."""
    jaxpr = called.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*called.consts, *leaves), strict=True))
    for equation in jaxpr.eqns:
        given = [read(values, v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        outs = evaluate(inner, given) if equation.primitive.name in INLINED else bind(equation, given)
        values.update(zip(equation.outvars, outs, strict=True))
    return [read(values, v) for v in jaxpr.outvars]


def bind(equation: Any, values: list[Any]) -> list[Any]:
    """The results of an equation of a jaxpr."""
    primitive = equation.primitive
    with equation.ctx.manager:
        outs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(outs) if primitive.multiple_results else [outs]


def known(value: jax.Array, of: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """`value`, which is what `of(*operands)` would give, with the derivatives of that.

    On a CPU; on other platforms `of(*operands)` is formed again, as there `saved` gives no values.

    A primitive, as partial evaluation takes the body of a `jax.custom_jvp` in its place, here the value alone: a third
    derivative would be lost.
    """
    return _known_p.bind(value, *operands, of=of)


def saved(value: jax.Array) -> jax.Array:
    """`value`, to be read by `known` in a derivative; it counts as a constant.

    On other platforms than a CPU it is zero, and XLA removes what it would be made of.
    """
    return _saved_p.bind(value)


def _known_jvp(primals: Any, tangents: Any, *, of: Callable[..., jax.Array]) -> tuple[Any, Any]:
    out, nonzero = _known_p.bind(*primals, of=of), [type(t) is not ad.Zero for t in tangents[1:]]
    if not any(nonzero):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    d_operands = tuple(ad.instantiate_zeros(t) for t in tangents[1:])
    return out, jax.jvp(of, tuple(primals[1:]), d_operands)[1]


def _known_batch(args: Any, dims: Any, *, of: Callable[..., jax.Array]) -> tuple[Any, int]:
    size = next(x.shape[axis] for x, axis in zip(args, dims, strict=True) if axis is not None)
    value, axis = args[0], dims[0]
    value = jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)

    def of_each(*operands: jax.Array) -> jax.Array:
        if all(axis is None for axis in dims[1:]):
            one = of(*operands)
            return jnp.broadcast_to(one, (size, *one.shape))
        return jax.vmap(of, in_axes=tuple(dims[1:]))(*operands)

    return _known_p.bind(value, *args[1:], of=of_each), 0


_known_p = Primitive("gru_jax_known")
_known_p.def_impl(lambda value, *operands, of: value)
_known_p.def_abstract_eval(lambda value, *operands, of: value)
mlir.register_lowering(_known_p, mlir.lower_fun(lambda value, *operands, of: of(*operands), multiple_results=False))
mlir.register_lowering(_known_p, lambda ctx, value, *operands, of: [value], platform="cpu")
ad.primitive_jvps[_known_p] = _known_jvp
batching.primitive_batchers[_known_p] = _known_batch

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
