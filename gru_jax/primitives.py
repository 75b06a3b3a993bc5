"""The recurrences as JAX primitives: their definitions, and their rules for differentiation and transposition.

Of `states` and `linear` every rule is written out. `push` and `pull` are each other's transpose; where what they are
linearised at moves too, they are differentiated through their definition in `gru_jax.recurrence`, which is made of
`linear` and of operations that are parallel over time.

Preactivations that `states` hands to them, "kept_r" and so on, are no more than a saving: a function of their other
operands, through which they are differentiated, as if the preactivations were formed again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import checkify  # there is no public way to give a primitive its error rule
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gru_jax import lowering, meshes, partitioning, recurrence, shapes
from gru_jax.cells import GRU
from gru_jax.linearisation import Linearisation, Preactivations, apply, apply_transposed, preactivation_count
from gru_jax.recurrence import KEPT, STATES, Operands, select, shifted, unless
from gru_jax.shapes import named_operands

save_states = jax.checkpoint_policies.save_only_these_names(STATES)
"""Policy for `jax.checkpoint` around a model: of its GRU layers keep what their gradients need, nothing else.

That is the inputs and the states, and on a CPU, where that is faster, the preactivations, three or four arrays like the
states (see `gru_jax.settings`). So the recurrence is not run again. (A layer by itself keeps nothing more without the
policy either.)

>>> import gru_jax
>>> params = gru_jax.CUDNN.init(jax.random.key(0), 2, 3)
>>> loss = lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs)[1].sum()
>>> grads = jax.grad(jax.checkpoint(loss, policy=gru_jax.save_states))(params, jnp.ones((5, 2)))
"""


def states(operands: Operands, *, cell: GRU, reverse: bool, method: str) -> jax.Array:
    """`recurrence.states` as a primitive. `method` is "auto", "fused" or "native"; see `gru_jax.unroll`."""
    named = {name: value for name, value in operands._asdict().items() if value is not None}
    params = {"cell": cell, "reverse": reverse, "method": method}
    empty = 0 in (*operands.xs.shape, *operands.h_0.shape)
    if method == "native" and not empty and (why := lowering.obstacle("gru_states", named, params)):
        raise ValueError(f'method="native" is not to be had here: {why}')
    return _bind(_states_p, named, keep=False, followed=False, **params)[0]


def _linear(
    at: Linearisation,
    kernel: jax.Array,
    drop: jax.Array | None,
    s: jax.Array,
    mask: jax.Array | None,
    resets: jax.Array | None,
    *,
    method: str,
    reset_after: bool,
    reverse: bool,
    transposed: bool,
) -> jax.Array:
    operands = {
        **at._asdict(),
        "recurrent_kernel": kernel,
        "drop": drop,
        "source": s,
        "mask": mask,
        "resets": resets,
    }
    present = {name: value for name, value in operands.items() if value is not None}
    return _bind(_linear_p, present, method=method, reset_after=reset_after, reverse=reverse, transposed=transposed)


def _operands(named: dict[str, Any], prefix: str = "") -> Operands:
    return Operands(*(named.get(prefix + name) for name in Operands._fields))


def _kept(named: dict[str, Any]) -> Preactivations | None:
    kept = {name: named.get(KEPT + name) for name in Preactivations._fields}
    return None if kept["r"] is None else Preactivations(**kept)  # type: ignore[arg-type]


def _bind(primitive: Primitive, named: dict[str, Any], **params: Any) -> Any:
    if lowering.missing is None:
        partitioning.prepare(*_PRIMITIVES)
    # Inside shard_map, operands that are equal on all devices must be marked as varying like the others are, so that
    # their gradient is summed over devices.
    return primitive.bind(*meshes.mark_varying(tuple(named.values())), names=tuple(named), **params)


# --- Definitions ------------------------------------------------------------------------------------------------------


def _define_states(
    *args: Any, names: tuple[str, ...], cell: GRU, reverse: bool, method: str, keep: bool, followed: bool
) -> list[jax.Array]:
    o = _operands(named_operands(args, names))
    hs, _ = recurrence.states(o, cell, reverse)
    # What a CPU keeps for the gradient is no use elsewhere: a constant takes its place, which nothing reads.
    return [hs, *[jnp.zeros_like(hs)] * (preactivation_count(cell) if keep else 0)]


def _define_states_on_cpu(
    *args: Any, names: tuple[str, ...], cell: GRU, reverse: bool, method: str, keep: bool, followed: bool
) -> list[jax.Array]:
    o = _operands(named_operands(args, names))
    cell = lowering.suited(cell, o.h_0.dtype)
    return jax.tree.leaves(recurrence.states(o, cell, reverse, keep, hoist=followed or lowering.hoists(o)))


def _define_linear(*args: Any, names: tuple[str, ...], method: str, **params: Any) -> jax.Array:
    return recurrence.linear(*_unpack(named_operands(args, names)), **params)


def _define_push(
    *args: Any, names: tuple[str, ...], cell: GRU, reverse: bool, method: str, reads_kept: bool = False
) -> jax.Array:
    o = named_operands(args, names)
    solve, kept = functools.partial(_linear, method=method), _kept(o) if reads_kept else None
    return recurrence.push(_operands(o), o["hs"], _operands(o, "d_"), cell, reverse, solve, kept)


def _define_pull(
    *args: Any,
    names: tuple[str, ...],
    wrt: tuple[str, ...],
    cell: GRU,
    reverse: bool,
    method: str,
    reads_kept: bool = False,
) -> tuple[jax.Array, ...]:
    o = named_operands(args, names)
    solve, kept = functools.partial(_linear, method=method), _kept(o) if reads_kept else None
    return recurrence.pull(_operands(o), o["hs"], o["ct"], wrt, cell, reverse, solve, kept)


def _unpack(o: dict[str, Any]) -> tuple[Linearisation, Any, Any, Any, Any, Any]:
    return (
        Linearisation(*(o[name] for name in Linearisation._fields)),
        o["recurrent_kernel"],
        o.get("drop"),
        o["source"],
        o.get("mask"),
        o.get("resets"),
    )


# --- Differentiation --------------------------------------------------------------------------------------------------


def _moving(named: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tangent for name, tangent in named.items() if type(tangent) is not ad.Zero and not name.startswith(KEPT)
    }


def _states_jvp(
    args: Any, tangents: Any, *, names: tuple[str, ...], keep: bool, followed: bool, **params: Any
) -> tuple[Any, Any]:
    """`followed` tells that a derivative is taken, `keep` that the preactivations are handed to it."""
    named, d = named_operands(args, names), _moving(named_operands(tangents, names))
    wanted = keep or lowering.keeps(named, params)
    outs = _states_p.bind(*args, names=names, keep=wanted, followed=True, **params)
    hs, *kept = (checkpoint_name(x, STATES) for x in outs)
    at = {**named, "hs": hs, **{KEPT + name: x for name, x in zip(Preactivations._fields, kept, strict=False)}}
    d_hs = _bind(_push_p, {**at, **{"d_" + name: tangent for name, tangent in d.items()}}, **params)
    if not keep:
        return [hs], [d_hs]
    return [hs, *kept], [d_hs, *(ad.Zero(jax.typeof(x).to_tangent_aval()) for x in kept)]


def _jvp_at(define: Callable[..., Any], named: dict[str, Any], moving: dict[str, Any], **params: Any) -> Any:
    """The tangent of a definition, as far as it comes from the operands in `moving`."""
    named = {name: value for name, value in named.items() if not name.startswith(KEPT)}

    def moved(values):
        replaced = {**named, **values}
        return define(*replaced.values(), names=tuple(replaced), **params)

    return jax.jvp(moved, ({name: named[name] for name in moving},), (moving,))[1]


def _push_jvp(args: Any, tangents: Any, *, names: tuple[str, ...], **params: Any) -> tuple[Any, Any]:
    out = _push_p.bind(*args, names=names, **params)
    named, d = named_operands(args, names), _moving(named_operands(tangents, names))
    inputs = {name: tangent for name, tangent in d.items() if name.startswith("d_")}
    rest = {name: tangent for name, tangent in d.items() if name not in inputs}
    terms = []
    if inputs:
        at = {name: value for name, value in named.items() if not name.startswith("d_")}
        terms.append(_bind(_push_p, {**at, **inputs}, **params))
    if rest:
        terms.append(_jvp_at(_define_push, named, rest, **params))
    return out, sum(terms[1:], start=terms[0])


def _pull_jvp(args: Any, tangents: Any, *, names: tuple[str, ...], **params: Any) -> tuple[Any, Any]:
    out = _pull_p.bind(*args, names=names, **params)
    named, d = named_operands(args, names), _moving(named_operands(tangents, names))
    rest = {name: tangent for name, tangent in d.items() if name != "ct"}
    terms = []
    if "ct" in d:
        terms.append(_bind(_pull_p, {**named, "ct": d["ct"]}, **params))
    if rest:
        terms.append(_jvp_at(_define_pull, named, rest, **params))
    return out, [sum(term[1:], start=term[0]) for term in zip(*terms, strict=True)]


def _push_transpose(ct: Any, *args: Any, names: tuple[str, ...], **params: Any) -> list[Any]:
    named = named_operands(args, names)
    unknown = {name: x.aval for name, x in named.items() if ad.is_undefined_primal(x)}
    if type(ct) is ad.Zero:
        return [ad.Zero(unknown[name]) if name in unknown else None for name in names]
    at = {name: value for name, value in named.items() if not name.startswith("d_")}
    wrt = tuple(name.removeprefix("d_") for name in unknown)
    cotangents = dict(zip(unknown, _bind(_pull_p, {**at, "ct": ct}, wrt=wrt, **params), strict=True))
    return [_summed(cotangents[name], unknown[name].shape) if name in unknown else None for name in names]


def _pull_transpose(cts: Any, *args: Any, names: tuple[str, ...], wrt: tuple[str, ...], **params: Any) -> list[Any]:
    named = named_operands(args, names)
    aval = named.pop("ct").aval
    d = {"d_" + name: ct for name, ct in zip(wrt, cts, strict=True) if type(ct) is not ad.Zero}
    ct = _summed(_bind(_push_p, {**named, **d}, **params), aval.shape) if d else ad.Zero(aval)
    return [ct if name == "ct" else None for name in names]


def _summed(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The transpose of broadcasting `shape` to that of x."""
    axes = tuple(axis for axis, size in enumerate(shape) if size != x.shape[axis])
    return x.sum(axes, keepdims=True) if axes else x


def _linear_jvp(args: Any, tangents: Any, *, names: tuple[str, ...], **params: Any) -> tuple[Any, Any]:
    ys = _linear_p.bind(*args, names=names, **params)
    named, d = named_operands(args, names), _moving(named_operands(tangents, names))
    d_s = d.pop("source", None)
    if d:
        moved = _moved_source(named, d, ys, **params)
        d_s = moved if d_s is None else d_s + moved
    return ys, _bind(_linear_p, {**named, "source": d_s}, **params)


def _moved_source(
    named: dict[str, Any],
    moving: dict[str, Any],
    ys: jax.Array,
    method: str,
    reset_after: bool,
    reverse: bool,
    transposed: bool,
) -> jax.Array:
    """What a change of J adds to the source: J̇_t y_tm1, or transposed, J̇_{t+1}ᵀ λ_{t+1}."""
    zero = jnp.zeros_like(ys[0])

    def changed(moved):
        at, kernel, drop, _, mask, resets = _unpack({**named, **moved})
        if transposed:
            kernel_t = jnp.swapaxes(kernel, -1, -2)
            pulled = apply_transposed(reset_after, at, kernel_t, drop, select(mask, ys, 0), lead=1)
            return shifted(unless(resets, select(mask, pulled, 0)), zero, not reverse)
        y_tm1 = select(mask, unless(resets, shifted(ys, zero, reverse)), 0)
        return select(mask, apply(reset_after, at, kernel, drop, y_tm1, lead=1), 0)

    return jax.jvp(changed, ({name: named[name] for name in moving},), (moving,))[1]


def _linear_transpose(ct: Any, *args: Any, names: tuple[str, ...], transposed: bool, **params: Any) -> list[Any]:
    named = named_operands(args, names)
    aval = named["source"].aval
    if type(ct) is not ad.Zero:
        ct = _bind(_linear_p, {**named, "source": ct}, transposed=not transposed, **params)
        ct = _summed(ct, aval.shape)
    return [ct if name == "source" else None for name in names]


# --- Registration -----------------------------------------------------------------------------------------------------


class _Recurrence(Primitive):
    def __repr__(self) -> str:
        # What a tool says that has no rule for a primitive.
        return f'{self.name} (of gru_jax, where method="scan" is for tools that know JAX\'s own primitives alone)'


def _evaluate(primitive: Primitive, define: Callable[..., Any], *args: Any, **params: Any) -> Any:
    """Within `jax.jit` the primitive itself; its definition where JAX has none: by `disable_jit`, or after a NaN."""
    return (primitive.bind if isinstance(args[0], jax.core.Tracer) else define)(*args, **params)


def _primitive(
    name: str,
    define: Callable[..., Any],
    avals: Callable[..., Any],
    static: tuple[str, ...],
    several: bool = False,
    on_cpu: Callable[..., Any] | None = None,
) -> Primitive:
    primitive = _Recurrence(name)
    primitive.multiple_results = several
    primitive.def_impl(jax.jit(functools.partial(_evaluate, primitive, define), static_argnames=("names", *static)))
    primitive.def_abstract_eval(avals)
    batching.primitive_batchers[primitive] = functools.partial(shapes.batch, primitive)
    checkify.error_checks[primitive] = functools.partial(checkify.nan_error_check, primitive)
    portable = mlir.lower_fun(define, multiple_results=several)
    mlir.register_lowering(primitive, portable)
    loops = mlir.lower_fun(on_cpu or define, multiple_results=several)
    mlir.register_lowering(primitive, lowering.rule(name, portable, loops), platform="cpu")
    return primitive


_COMMON = ("cell", "reverse", "method")
_states_p = _primitive(
    "gru_states",
    _define_states,
    shapes.states_avals,
    (*_COMMON, "keep", "followed"),
    several=True,
    on_cpu=_define_states_on_cpu,
)
_push_p = _primitive(
    "gru_push",
    _define_push,
    shapes.like_states,
    _COMMON,
    on_cpu=functools.partial(_define_push, reads_kept=True),
)
_pull_p = _primitive(
    "gru_pull",
    _define_pull,
    shapes.pull_avals,
    ("wrt", *_COMMON),
    several=True,
    on_cpu=functools.partial(_define_pull, reads_kept=True),
)
_linear_p = _primitive(
    "gru_linear", _define_linear, shapes.like_states, ("method", "reset_after", "reverse", "transposed")
)
_PRIMITIVES = (_states_p, _push_p, _pull_p, _linear_p)
ad.primitive_jvps[_states_p] = _states_jvp
ad.primitive_jvps[_push_p] = _push_jvp
ad.primitive_jvps[_pull_p] = _pull_jvp
ad.primitive_jvps[_linear_p] = _linear_jvp
ad.primitive_transposes[_push_p] = _push_transpose
ad.primitive_transposes[_pull_p] = _pull_transpose
ad.primitive_transposes[_linear_p] = _linear_transpose
