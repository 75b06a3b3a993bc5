"""The recurrences as JAX primitives: their definitions, and their rules for differentiation and transposition.

Of `states` and `linear_recurrence` every rule is written out. `states_jvp` and `states_vjp` are each other's transpose;
with respect to what they are linearised at they are differentiated through their definition in `gru_jax.recurrence`,
which is made of the linear recurrence and of operations that are parallel over time.

Preactivations that `states` hands to them, the residuals, are no more than a saving: a function of their other
operands, through which they are differentiated, as if the preactivations were formed again.

What a primitive is applied to is a NamedTuple of `gru_jax.operands`, flattened; its structure is a parameter.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import checkify  # there is no public way to give a primitive its error rule
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from gru_jax import meshes, partitioning, recurrence, registry, shapes
from gru_jax.batching import batch
from gru_jax.cells import GRU
from gru_jax.cells.gru import Preactivations, jac_vector, vector_jac
from gru_jax.operands import NO_OPERANDS, JvpOperands, LinearOperands, Operands, VjpOperands
from gru_jax.recurrence import RESIDUALS, STATES, select, shifted, unless


def states(operands: Operands, *, cell: GRU, reverse: bool, method: str) -> jax.Array:
    """`recurrence.states` as a primitive. `method` is "auto", "fused" or "native"; see `gru_jax.unroll`."""
    params = {"cell": cell, "reverse": reverse, "method": method}
    empty = 0 in (*operands.xs.shape, *operands.h_0.shape)
    if method == "native" and not empty:
        question = registry.Question("gru_states", operands, params, "cpu")
        if why := registry.named("native").why_not(question):
            raise ValueError(f'method="native" is not to be had here: {why}')
    return _bind(states_p, operands, saves_residuals=False, differentiated=False, **params)[0]


def _bind(primitive: Primitive, operands: Any, **params: Any) -> Any:
    partitioning.prepare(*PRIMITIVES)
    leaves, structure = jax.tree.flatten(operands)
    # Inside shard_map, operands that are equal on all devices must be marked as varying like the others are, so that
    # their gradient is summed over devices.
    return primitive.bind(*meshes.mark_varying(tuple(leaves)), structure=structure, **params)


# --- Definitions ------------------------------------------------------------------------------------------------------


def define_states(
    o: Operands, *, cell: GRU, reverse: bool, method: str, saves_residuals: bool, differentiated: bool
) -> list[jax.Array]:
    """The states; in place of preactivations that another platform saves, constants, which nothing reads."""
    hs, _ = recurrence.states(o, cell, reverse)
    return [hs, *[jnp.zeros_like(hs)] * (shapes.residual_count(cell) if saves_residuals else 0)]


def define_states_jvp(operands: JvpOperands, *, cell: GRU, reverse: bool, method: str) -> jax.Array:
    """The tangent of the states, with preactivations that are formed again."""
    return define_states_jvp_with_residuals(
        operands._replace(residuals=None), cell=cell, reverse=reverse, method=method
    )


def define_states_jvp_with_residuals(operands: JvpOperands, *, cell: GRU, reverse: bool, method: str) -> jax.Array:
    """The tangent of the states, with saved preactivations if there are any."""
    return recurrence.states_jvp(operands, cell, reverse, _solve(method))


def define_states_vjp(
    operands: VjpOperands, *, wrt: tuple[str, ...], cell: GRU, reverse: bool, method: str
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands in `wrt`, with preactivations that are formed again."""
    again = operands._replace(residuals=None)
    return define_states_vjp_with_residuals(again, wrt=wrt, cell=cell, reverse=reverse, method=method)


def define_states_vjp_with_residuals(
    operands: VjpOperands, *, wrt: tuple[str, ...], cell: GRU, reverse: bool, method: str
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands in `wrt`, with saved preactivations if there are any."""
    return recurrence.states_vjp(operands, wrt, cell, reverse, _solve(method))


def define_linear_recurrence(operands: LinearOperands, *, method: str, **params: Any) -> jax.Array:
    """The linear recurrence, or its transpose."""
    return recurrence.linear_recurrence(operands, **params)


def _solve(method: str) -> recurrence.Solve:
    return functools.partial(_bind, linear_recurrence_p, method=method)


# --- Differentiation --------------------------------------------------------------------------------------------------


def _nonzero(tangents: Any) -> dict[int, Any]:
    """The tangents that are not zero, by place."""
    return {i: tangent for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero}


def _places(structure: Any) -> Any:
    """The operands' NamedTuple with the place of each among the arguments."""
    return jax.tree.unflatten(structure, range(structure.num_leaves))


def _tangents_of(places: Operands, nonzero: dict[int, Any]) -> Operands:
    """The tangents of operands that lie at these places, None for zero."""
    return Operands(*(None if i is None else nonzero.get(i) for i in places))


def _jvp_of(define: Callable[..., Any], structure: Any, args: Any, nonzero: dict[int, Any], **params: Any) -> Any:
    """The tangent of `define`, a function of the operands, as far as it comes from the given tangents."""

    def of_nonzero(*values: Any) -> Any:
        changed = dict(zip(nonzero, values, strict=True))
        operands = jax.tree.unflatten(structure, [changed.get(i, x) for i, x in enumerate(args)])
        return define(operands, **params)

    return jax.jvp(of_nonzero, [args[i] for i in nonzero], list(nonzero.values()))[1]


def _states_jvp(
    args: Any, tangents: Any, *, structure: Any, saves_residuals: bool, differentiated: bool, **params: Any
) -> tuple[Any, Any]:
    """`differentiated` tells that a derivative is taken, `saves_residuals` that it is handed the preactivations."""
    o = jax.tree.unflatten(structure, args)
    saves = saves_residuals or registry.saves_residuals("gru_states", o, params)
    outs = states_p.bind(*args, structure=structure, saves_residuals=saves, differentiated=True, **params)
    hs, saved = checkpoint_name(outs[0], STATES), [checkpoint_name(x, RESIDUALS) for x in outs[1:]]
    residuals = Preactivations(*saved, *[None] * (4 - len(saved))) if saves else None
    d = _tangents_of(_places(structure), _nonzero(tangents))
    d_hs = _bind(states_jvp_p, JvpOperands(o, hs, residuals, d), **params)
    if not saves_residuals:
        return [hs], [d_hs]
    return [hs, *saved], [d_hs, *(ad.Zero(jax.typeof(x).to_tangent_aval()) for x in saved)]


def _states_jvp_jvp(args: Any, tangents: Any, *, structure: Any, **params: Any) -> tuple[Any, Any]:
    out = states_jvp_p.bind(*args, structure=structure, **params)
    operands, places, nonzero = jax.tree.unflatten(structure, args), _places(structure), _nonzero(tangents)
    linear, residuals = (set(jax.tree.leaves(part)) for part in (places.tangents, places.residuals))
    terms = []
    if linear & nonzero.keys():
        d = _tangents_of(places.tangents, nonzero)
        terms.append(_bind(states_jvp_p, operands._replace(tangents=d), **params))
    if others := {i: t for i, t in nonzero.items() if i not in linear | residuals}:
        terms.append(_jvp_of(define_states_jvp, structure, args, others, **params))
    return out, sum(terms[1:], start=terms[0])


def _states_vjp_jvp(args: Any, tangents: Any, *, structure: Any, **params: Any) -> tuple[Any, Any]:
    out = states_vjp_p.bind(*args, structure=structure, **params)
    operands, places, nonzero = jax.tree.unflatten(structure, args), _places(structure), _nonzero(tangents)
    terms = []
    if places.cotangent in nonzero:
        d_ct = nonzero.pop(places.cotangent)
        terms.append(_bind(states_vjp_p, operands._replace(cotangent=d_ct), **params))
    residuals = set(jax.tree.leaves(places.residuals))
    if others := {i: t for i, t in nonzero.items() if i not in residuals}:
        terms.append(_jvp_of(define_states_vjp, structure, args, others, **params))
    return out, [sum(term[1:], start=term[0]) for term in zip(*terms, strict=True)]


def _states_jvp_transpose(ct: Any, *args: Any, structure: Any, **params: Any) -> list[Any]:
    if type(ct) is ad.Zero:
        return [ad.Zero(x.aval) if ad.is_undefined_primal(x) else None for x in args]
    operands, places = jax.tree.unflatten(structure, args), _places(structure).tangents._asdict()
    wrt = tuple(name for name, i in places.items() if i is not None and ad.is_undefined_primal(args[i]))
    vjp = VjpOperands(operands.primals, operands.hs, operands.residuals, ct)
    cotangents: list[Any] = [None] * len(args)
    for name, cotangent in zip(wrt, _bind(states_vjp_p, vjp, wrt=wrt, **params), strict=True):
        cotangents[places[name]] = _summed(cotangent, args[places[name]].aval.shape)
    return cotangents


def _states_vjp_transpose(cts: Any, *args: Any, structure: Any, wrt: tuple[str, ...], **params: Any) -> list[Any]:
    operands, place = jax.tree.unflatten(structure, args), _places(structure).cotangent
    aval = args[place].aval
    tangents = {name: ct for name, ct in zip(wrt, cts, strict=True) if type(ct) is not ad.Zero}
    jvp = JvpOperands(operands.primals, operands.hs, operands.residuals, NO_OPERANDS._replace(**tangents))
    ct = _summed(_bind(states_jvp_p, jvp, **params), aval.shape) if tangents else ad.Zero(aval)
    return [ct if i == place else None for i in range(len(args))]


def _summed(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The transpose of broadcasting `shape` to that of x."""
    axes = tuple(axis for axis, size in enumerate(shape) if size != x.shape[axis])
    return x.sum(axes, keepdims=True) if axes else x


def _linear_recurrence_jvp(args: Any, tangents: Any, *, structure: Any, **params: Any) -> tuple[Any, Any]:
    ys = linear_recurrence_p.bind(*args, structure=structure, **params)
    operands, nonzero = jax.tree.unflatten(structure, args), _nonzero(tangents)
    d_s = nonzero.pop(_places(structure).source, None)
    if nonzero:
        changes = {name: value for name, value in params.items() if name != "method"}
        tangent_source = _jvp_of(_jac_times, structure, args, nonzero, ys=ys, **changes)
        d_s = tangent_source if d_s is None else d_s + tangent_source
    return ys, _bind(linear_recurrence_p, operands._replace(source=d_s), **params)


def _jac_times(o: LinearOperands, *, ys: jax.Array, reset_after: bool, reverse: bool, transposed: bool) -> jax.Array:
    """J_t y_tm1 at all steps, or transposed, J_{t+1}ᵀ λ_{t+1}: how the linear recurrence depends on J."""
    zero = jnp.zeros_like(ys[0])
    if transposed:
        kernel_t = jnp.swapaxes(o.recurrent_kernel, -1, -2)
        adjoint = vector_jac(reset_after, o.jac, kernel_t, o.dropout_mask, select(o.mask, ys, 0), 1)
        return shifted(unless(o.resets, select(o.mask, adjoint, 0)), zero, not reverse)
    y_tm1 = select(o.mask, unless(o.resets, shifted(ys, zero, reverse)), 0)
    return select(o.mask, jac_vector(reset_after, o.jac, o.recurrent_kernel, o.dropout_mask, y_tm1, 1), 0)


def _linear_recurrence_transpose(ct: Any, *args: Any, structure: Any, transposed: bool, **params: Any) -> list[Any]:
    operands, place = jax.tree.unflatten(structure, args), _places(structure).source
    aval = args[place].aval
    if type(ct) is not ad.Zero:
        operands = operands._replace(source=ct)
        ct = _summed(_bind(linear_recurrence_p, operands, transposed=not transposed, **params), aval.shape)
    return [ct if i == place else None for i in range(len(args))]


# --- Registration -----------------------------------------------------------------------------------------------------


class _Recurrence(Primitive):
    def __repr__(self) -> str:
        # What a tool says that has no rule for a primitive.
        return f'{self.name} (of gru_jax, where method="scan" is for tools that know JAX\'s own primitives alone)'


def _evaluate(primitive: Primitive, define: Callable[..., Any], *args: Any, structure: Any, **params: Any) -> Any:
    """Within `jax.jit` the primitive itself; its definition where JAX has none: by `disable_jit`, or after a NaN."""
    if isinstance(args[0], jax.core.Tracer):
        return primitive.bind(*args, structure=structure, **params)
    return define(jax.tree.unflatten(structure, args), **params)


def _primitive(
    name: str, define: Callable[..., Any], avals: Callable[..., Any], static: tuple[str, ...], several: bool = False
) -> Primitive:
    primitive = _Recurrence(name)
    primitive.multiple_results = several
    evaluate = functools.partial(_evaluate, primitive, define)
    primitive.def_impl(jax.jit(evaluate, static_argnames=("structure", "method", "reverse", *static)))
    primitive.def_abstract_eval(avals)
    batching.primitive_batchers[primitive] = functools.partial(batch, primitive)
    checkify.error_checks[primitive] = functools.partial(checkify.nan_error_check, primitive)
    registry.install(primitive)
    return primitive


states_p = _primitive(
    "gru_states", define_states, shapes.states_avals, ("cell", "saves_residuals", "differentiated"), several=True
)
states_jvp_p = _primitive("gru_states_jvp", define_states_jvp, shapes.states_jvp_aval, ("cell",))
states_vjp_p = _primitive("gru_states_vjp", define_states_vjp, shapes.states_vjp_avals, ("cell", "wrt"), several=True)
linear_recurrence_p = _primitive(
    "gru_linear_recurrence", define_linear_recurrence, shapes.linear_recurrence_aval, ("reset_after", "transposed")
)
PRIMITIVES = (states_p, states_jvp_p, states_vjp_p, linear_recurrence_p)
ad.primitive_jvps[states_p] = _states_jvp
ad.primitive_jvps[states_jvp_p] = _states_jvp_jvp
ad.primitive_jvps[states_vjp_p] = _states_vjp_jvp
ad.primitive_jvps[linear_recurrence_p] = _linear_recurrence_jvp
ad.primitive_transposes[states_jvp_p] = _states_jvp_transpose
ad.primitive_transposes[states_vjp_p] = _states_vjp_transpose
ad.primitive_transposes[linear_recurrence_p] = _linear_recurrence_transpose
