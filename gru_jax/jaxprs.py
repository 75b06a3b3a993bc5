"""Jaxprs, evaluated equation by equation."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.extend.core import Literal

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
