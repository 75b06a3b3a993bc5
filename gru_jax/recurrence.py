"""The two recurrences of a GRU as JAX primitives, closed under differentiation.

1. `states`: h_t = step(h_tm1, projected_t), for all t. Nonlinear.
2. `linear`: y_t = J_t y_tm1 + s_t, or transposed, λ_t = s_t + J_{t+1}ᵀ λ_{t+1}. Linear in s.

The derivative of the first is the second; the derivative of the second is itself with another source; its transpose is
itself run the other way. So these two, with sources and contractions that are parallel over time, make every derivative
of every order, and a faster way to run them is one more lowering of each. `custom_vjp` would have lost forward mode,
and `linear_call` cannot be batched.

Operands and shapes, common to both: T time, *group axes of weights that were batched by `vmap` (usually none), *batch.

    projected, source, coefficients   (T, *group, *batch, H)
    h_0, bias, drop                   (*group, *batch, H)
    kernel                            (*group, H, 3H)
    mask, resets                      (T, *group, *batch, 1), bool

`projected`, `h_0` and `source` have the full shape; every other batch axis may have size 1. So a Jacobian over many
tangents holds the coefficients once.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gru_jax.cells import GRU, Projected
from gru_jax.linearisation import Linearisation, apply, apply_transposed, linearise, source

STATES = "gru_jax.states"

save_states = jax.checkpoint_policies.save_only_these_names(STATES)
"""Policy for `jax.checkpoint`: of a GRU layer keep the inputs and the states, nothing else.

The gates are then recomputed in the backward pass, in parallel over time; the recurrence is not run again. A gradient
keeps H numbers per step beside the inputs, instead of the dozen H of plain autodiff.

>>> import gru_jax
>>> params = gru_jax.CUDNN.init(jax.random.key(0), 2, 3)
>>> loss = lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs)[1].sum()
>>> grads = jax.grad(jax.checkpoint(loss, policy=gru_jax.save_states))(params, jnp.ones((5, 2)))
"""


class _Operands(NamedTuple):
    """The operands of `states`; the optional ones are None where they are not given."""

    x_r: jax.Array
    x_z: jax.Array
    x_n: jax.Array
    h_0: jax.Array
    kernel: jax.Array
    bias: jax.Array
    drop: jax.Array | None = None
    mask: jax.Array | None = None
    resets: jax.Array | None = None

    @property
    def projected(self) -> Projected:
        return self.x_r, self.x_z, self.x_n


_FULL = ("x_r", "x_z", "x_n", "h_0", "source")
_TIMELESS = ("h_0", "bias", "drop")


def states(
    cell: GRU,
    projected: Projected,
    h_0: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    drop: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
) -> jax.Array:
    """All states of a GRU: h_t = step(h_tm1, projected_t).

    Args:
      cell: the equations.
      projected: x_t W + b of each gate, three arrays (T, *batch, H), T ≥ 1.
      h_0: (*batch, H).
      kernel: U, (H, 3H).
      bias: c_n, broadcastable to h_0, with as many axes.
      drop: recurrent dropout mask, broadcastable to h_0, with as many axes; a constant for differentiation.
      mask: (T, *batch, 1); where False the state is held.
      resets: (T, *batch, 1); where True h_0 takes the place of h_tm1.
      reverse: run time backwards; h_0 then precedes the last step.

    Returns:
      The states after every step, (T, *batch, H).
    """
    operands = _Operands(*projected, h_0, kernel, bias, drop, mask, resets)
    return _bind(_states_p, operands._asdict(), cell=cell, reverse=reverse)


def linear(
    at: Linearisation,
    kernel: jax.Array,
    drop: jax.Array | None,
    s: jax.Array,
    *,
    reset_after: bool,
    reverse: bool,
    transposed: bool = False,
) -> jax.Array:
    """The linear recurrence along a linearisation: y_t = J_t y_tm1 + s_t with y_{−1} = 0, or its transpose.

    Args:
      at: coefficients of J_t.
      kernel: U, (H, 3H).
      drop: recurrent dropout mask or None.
      s: the source, (T, *batch, H).
      reset_after: where the reset gate acts.
      reverse: whether the states ran backwards in time.
      transposed: solve λ_t = s_t + J_{t+1}ᵀ λ_{t+1} instead, which runs against the states.

    Returns:
      y or λ, shaped like s.
    """
    operands = {**at._asdict(), "kernel": kernel, "drop": drop, "source": s}
    return _bind(_linear_p, operands, reset_after=reset_after, reverse=reverse, transposed=transposed)


def _bind(primitive: Primitive, operands: dict[str, jax.Array | None], **params: Any) -> jax.Array:
    present = {name: value for name, value in operands.items() if value is not None}
    # Inside shard_map, operands that are equal on all devices must be marked as varying like the others are, so that
    # their gradient is summed over devices.
    varying = frozenset().union(*map(_varying, present.values()))
    aligned = [
        jax.lax.pcast(value, tuple(sorted(varying - _varying(value))), to="varying") for value in present.values()
    ]
    return primitive.bind(*aligned, names=tuple(present), **params)


def _varying(value: jax.Array) -> frozenset[Any]:
    """The mesh axes of a surrounding shard_map along which a value may differ."""
    return jax.typeof(value).manual_axis_type.varying


# --- The state recurrence ---------------------------------------------------------------------------------------------


def _states_impl(*args: jax.Array, names: tuple[str, ...], cell: GRU, reverse: bool) -> jax.Array:
    o = _Operands(**dict(zip(names, args, strict=True)))

    def step(h_tm1, inputs):
        projected, keep, reset = inputs
        if reset is not None:
            h_tm1 = jnp.where(reset, o.h_0, h_tm1)
        h_t = cell.advance(projected, h_tm1, o.kernel, o.bias, o.drop)
        if keep is not None:
            h_t = jnp.where(keep, h_t, h_tm1)
        return h_t, h_t

    return jax.lax.scan(step, o.h_0, (o.projected, o.mask, o.resets), reverse=reverse)[1]


def _states_jvp(
    args: Sequence[jax.Array], tangents: Sequence[Any], *, names: tuple[str, ...], cell: GRU, reverse: bool
) -> tuple[jax.Array, jax.Array]:
    o, d = _Operands(**dict(zip(names, args, strict=True))), dict(zip(names, tangents, strict=True))
    hs = checkpoint_name(_states_p.bind(*args, names=names, cell=cell, reverse=reverse), STATES)
    h_tm1 = _shifted(hs, o.h_0, reverse)
    if o.resets is not None:
        h_tm1 = jnp.where(o.resets, o.h_0, h_tm1)
    at = linearise(cell, o.projected, h_tm1, o.kernel, o.bias, o.drop)
    if o.mask is not None:
        at = at.held(o.mask)
    d_projected = tuple(ad.instantiate_zeros(d[gate]) for gate in ("x_r", "x_z", "x_n"))
    d_kernel = None if type(d["kernel"]) is ad.Zero else d["kernel"]
    d_bias = ad.instantiate_zeros(d["bias"])
    s = source(cell.reset_after, at, h_tm1, o.kernel, o.drop, d_projected, d_kernel, d_bias)
    if type(d["h_0"]) is not ad.Zero:
        s = s + _entering(cell.reset_after, at, o, d["h_0"], reverse)
    if o.resets is not None:
        at = at.cut(o.resets)
    return hs, linear(at, o.kernel, o.drop, s, reset_after=cell.reset_after, reverse=reverse)


def _entering(reset_after: bool, at: Linearisation, o: _Operands, d_h_0: jax.Array, reverse: bool) -> jax.Array:
    """J_t ḣ_0 at the steps that start from h_0, zero at the others."""
    steps = o.x_r.shape[0]
    first = steps - 1 if reverse else 0
    if o.resets is None:
        at_first = Linearisation(*(coefficient[first] for coefficient in at))
        entering = apply(reset_after, at_first, o.kernel, o.drop, d_h_0)
        return jnp.zeros_like(o.x_r).at[first].set(entering)
    starts = o.resets | (jnp.arange(steps) == first).reshape(-1, *[1] * d_h_0.ndim)
    return apply(reset_after, at, o.kernel, o.drop, jnp.where(starts, d_h_0, 0), lead=1)


def _shifted(ys: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The values before each step: `start`, then ys without its last, in the direction of time."""
    return jnp.concatenate([ys[1:], start[None]] if reverse else [start[None], ys[:-1]])


# --- The linear recurrence --------------------------------------------------------------------------------------------


def _unpack(args: Sequence[Any], names: tuple[str, ...]) -> tuple[Linearisation, Any, Any, Any]:
    o = dict(zip(names, args, strict=True))
    return Linearisation(*(o[name] for name in Linearisation._fields)), o["kernel"], o.get("drop"), o["source"]


def _linear_impl(
    *args: jax.Array, names: tuple[str, ...], reset_after: bool, reverse: bool, transposed: bool
) -> jax.Array:
    at, kernel, drop, s = _unpack(args, names)
    # Behind a barrier, or XLA on CPU transposes U anew at every step.
    kernel_t = jax.lax.optimization_barrier(jnp.swapaxes(kernel, -1, -2))

    def forward(y_tm1, inputs):
        at_t, s_t = inputs
        y_t = s_t + apply(reset_after, at_t, kernel, drop, y_tm1)
        return y_t, y_t

    def backward(pulled, inputs):
        at_t, s_t = inputs
        y_t = s_t + pulled
        return apply_transposed(reset_after, at_t, kernel_t, drop, y_t), y_t

    return jax.lax.scan(
        backward if transposed else forward, jnp.zeros_like(s[0]), (at, s), reverse=reverse != transposed
    )[1]


def _linear_jvp(
    args: Sequence[jax.Array], tangents: Sequence[Any], *, names: tuple[str, ...], **params: Any
) -> tuple[jax.Array, Any]:
    ys = _linear_p.bind(*args, names=names, **params)
    *_, d_s = tangents
    moving = [i for i, tangent in enumerate(tangents[:-1]) if type(tangent) is not ad.Zero]
    if moving:
        d_s = ad.instantiate_zeros(d_s) + _moved_source(args, tangents, moving, ys, names, **params)
    if type(d_s) is ad.Zero:
        return ys, d_s
    at, kernel, drop, _ = _unpack(args, names)
    return ys, linear(at, kernel, drop, d_s, **params)


def _moved_source(
    args: Sequence[jax.Array],
    tangents: Sequence[Any],
    moving: list[int],
    ys: jax.Array,
    names: tuple[str, ...],
    reset_after: bool,
    reverse: bool,
    transposed: bool,
) -> jax.Array:
    """What a change of J adds to the source: J̇_t y_tm1, or transposed, J̇_{t+1}ᵀ λ_{t+1}."""
    zero = jnp.zeros_like(ys[0])

    def changed(*moved):
        replaced = list(args)
        for i, value in zip(moving, moved, strict=True):
            replaced[i] = value
        at, kernel, drop, _ = _unpack(replaced, names)
        if transposed:
            pulled = apply_transposed(reset_after, at, jnp.swapaxes(kernel, -1, -2), drop, ys, lead=1)
            return _shifted(pulled, zero, not reverse)
        return apply(reset_after, at, kernel, drop, _shifted(ys, zero, reverse), lead=1)

    return jax.jvp(changed, [args[i] for i in moving], [tangents[i] for i in moving])[1]


def _linear_transpose(ct: Any, *args: Any, names: tuple[str, ...], transposed: bool, **params: Any) -> list[Any]:
    at, kernel, drop, s = _unpack(args, names)
    zero = type(ct) is ad.Zero
    ct_s = ad.Zero(s.aval) if zero else linear(at, kernel, drop, ct, transposed=not transposed, **params)
    return [None] * (len(args) - 1) + [ct_s]


# --- Rules common to both ---------------------------------------------------------------------------------------------


def _batch(
    primitive: Primitive, args: Sequence[jax.Array], dims: Sequence[Any], *, names: tuple[str, ...], **params: Any
) -> tuple[jax.Array, int]:
    """Batched weights open a new group axis in front; any other operand a new batch axis behind the groups."""
    operands, axes = dict(zip(names, args, strict=True)), dict(zip(names, dims, strict=True))
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    grouped = axes["kernel"] is not None
    place = 0 if grouped else operands["kernel"].ndim - 2
    batched = []
    for name, value in operands.items():
        mapped = axes[name] is not None
        if name == "kernel":
            batched.append(jnp.moveaxis(value, axes[name], 0) if mapped else value)
            continue
        axis = place + (name not in _TIMELESS)
        value = jnp.moveaxis(value, axes[name], axis) if mapped else jnp.expand_dims(value, axis)
        if not mapped and name in _FULL:
            value = jnp.broadcast_to(value, (*value.shape[:axis], size, *value.shape[axis + 1 :]))
        batched.append(value)
    return primitive.bind(*batched, names=names, **params), place + 1


def _like(name: str) -> Callable[..., Any]:
    """Abstract evaluation: the output is typed like the operand `name`, with its sharding."""

    def rule(*avals: Any, names: tuple[str, ...], **params: Any) -> Any:
        return avals[names.index(name)].strip_weak_type()

    return rule


def _primitive(name: str, impl: Callable[..., jax.Array], shaped_like: str, static: tuple[str, ...]) -> Primitive:
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(impl, static_argnames=("names", *static)))
    primitive.def_abstract_eval(_like(shaped_like))
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    return primitive


_states_p = _primitive("gru_states", _states_impl, "x_r", ("cell", "reverse"))
_linear_p = _primitive("gru_linear", _linear_impl, "source", ("reset_after", "reverse", "transposed"))
ad.primitive_jvps[_states_p] = _states_jvp
ad.primitive_jvps[_linear_p] = _linear_jvp
ad.primitive_transposes[_linear_p] = _linear_transpose
