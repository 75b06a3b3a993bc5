"""The recurrences of a GRU and what differentiates them, as mathematics; `gru_jax.primitives` gives them their rules.

1. `states`: h_t = step(h_tm1, x_t), for all t. Nonlinear.
2. `linear`: y_t = J_t y_tm1 + s_t, or transposed, λ_t = s_t + J_{t+1}ᵀ λ_{t+1}. Linear in s.

The derivative of the first is the second; the derivative of the second is itself with another source; its transpose is
itself run the other way. So these two, with sources and contractions that are parallel over time, make every derivative
of every order. Two more stand for what is made of them:

3. `push`: the tangent of the states from those of everything they depend on: gates, source and `linear`.
4. `pull`: its transpose, from the cotangent of the states to those of inputs, initial state and weights.

A gradient is `states` and then `pull`, and keeps nothing between them but the inputs and the states; where forming the
gates again would cost more than memory does, the preactivations too (`gru_jax.lowering.keeps`). `custom_vjp` would have
lost forward mode, and `linear_call` cannot be batched.

Operands and shapes: T time, *group axes of weights that were batched by `vmap` (usually none), *batch; any group or
batch axis may have size 1 where another operand is wider, so that a Jacobian over many tangents holds the coefficients
once.

    xs                                (T, *group, *batch, D)
    hs, ct, source, coefficients,
    preactivations                    (T, *group, *batch, H)
    h_0, reset_state, drop            (*group, *batch, H)
    mask, resets                      (T, *group, *batch, 1), bool
    kernel W, bias b                  (*group, D, 3H), (*group, 3H)
    recurrent kernel U, bias c_n      (*group, H, 3H), (*group, H)
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gru_jax.cells import GRU, Projected, product, project, split
from gru_jax.linearisation import (
    Linearisation,
    Preactivations,
    activated,
    apply,
    apply_transposed,
    linearise,
    preactivations,
    source,
)

STATES = "gru_jax.states"
"""The name of what a gradient needs of a recurrence, for policies of `jax.checkpoint`."""
KEPT = "kept_"
"""Among the operands of `push` and `pull` the preactivations are named so, and by their own name."""


class Operands(NamedTuple):
    """What the states depend on, and their tangents; the optional ones are None where they are not given."""

    xs: Any
    h_0: Any
    kernel: Any
    recurrent_kernel: Any
    bias: Any = None
    recurrent_bias: Any = None
    drop: Any = None
    mask: Any = None
    resets: Any = None
    reset_state: Any = None

    @property
    def groups(self) -> int:
        """The number of group axes."""
        return self.recurrent_kernel.ndim - 2

    def lead(self) -> tuple[int, ...]:
        """The sizes of the group and batch axes."""
        batch = (1,) * (self.h_0.ndim - 1 - self.groups)
        shapes = [self.xs.shape[1:-1], self.h_0.shape[:-1]]
        shapes += [x.shape[1:-1] for x in (self.mask, self.resets) if x is not None]
        shapes += [x.shape[:-1] for x in (self.drop, self.reset_state) if x is not None]
        shapes += [w.shape[: self.groups] + batch for w in self.weights() if w is not None]
        return jnp.broadcast_shapes(*shapes)

    def avals(self) -> dict[str, Any]:
        """The types of those that are given, by name."""
        return {name: jax.typeof(x) for name, x in self._asdict().items() if x is not None}

    def weights(self) -> tuple[Any, ...]:
        """W, U, b, c_n."""
        return self.kernel, self.recurrent_kernel, self.bias, self.recurrent_bias

    def weight_count(self) -> int:
        """The numbers in W and U, of one group."""
        return math.prod(self.kernel.shape[-2:]) + math.prod(self.recurrent_kernel.shape[-2:])

    def projected(self) -> Projected:
        """x W + b of each gate, three arrays (T, *group, *batch, H)."""
        bias = None if self.bias is None else self.over_batch(self.bias)
        return project(self.kernel, bias, self.xs, self.h_0.dtype, time_axes=1)

    def over_batch(self, bias: jax.Array) -> jax.Array:
        """A bias (*group, K) with batch axes of size 1."""
        return bias.reshape(*bias.shape[:-1], *[1] * (self.h_0.ndim - 1 - self.groups), bias.shape[-1])

    def candidate_bias(self) -> jax.Array:
        """c_n with batch axes, or zero."""
        if self.recurrent_bias is None:
            return jnp.zeros((1,) * self.h_0.ndim, self.h_0.dtype)
        return self.over_batch(self.recurrent_bias)


def states(
    o: Operands, cell: GRU, reverse: bool, keep: bool = False, hoist: bool = True
) -> tuple[jax.Array, Preactivations | None]:
    """All states of a GRU, h_t = step(h_tm1, x_t).

    Args:
      o: the operands. Where `mask` is False the state is held; where `resets` is True `reset_state`, or zero where that
        is None, takes the place of h_tm1. `drop` multiplies the state where it enters a product with U, and is a
        constant for differentiation.
      cell: the equations.
      reverse: run time backwards; h_0 then precedes the last step.
      keep: whether the preactivations are wanted.
      hoist: project all inputs before the loop, not each within it.

    Returns:
      The states, (T, *group, *batch, H), and the preactivations or None.
    """
    h_0 = spread(o.h_0, *lead_axes(o.avals()))
    bias, start = o.candidate_bias(), 0 if o.reset_state is None else o.reset_state

    def step(h_tm1, inputs):
        x, mask, reset = inputs
        if reset is not None:
            h_tm1 = jnp.where(reset, start, h_tm1)
        projected = biased(x if hoist else split(product(x, o.kernel, dtype=h_0.dtype)))
        at = preactivations(cell, projected, h_tm1, o.recurrent_kernel, bias, o.drop, lead=0)
        h_t = activated(cell, at, h_tm1)
        if mask is not None:
            h_t = jnp.where(mask, h_t, h_tm1)
        return h_t, (h_t, at if keep else None)

    def biased(projected):
        # Within the loop, as XLA on CPU would make a pass of its own over all projected inputs for it.
        if o.bias is None:
            return projected
        return [x + b for x, b in zip(projected, split(o.over_batch(o.bias).astype(h_0.dtype)), strict=True)]

    if o.xs.shape[0] == 1:
        hoist, once = False, jax.tree.map(lambda x: x[0], (o.xs, o.mask, o.resets))
        return jax.tree.map(lambda y: y[None], step(h_0, once)[1])
    inputs = o._replace(bias=None).projected() if hoist else o.xs
    return jax.lax.scan(step, h_0, (inputs, o.mask, o.resets), reverse=reverse)[1]


def linear(
    at: Linearisation,
    kernel: jax.Array,
    drop: jax.Array | None,
    s: jax.Array,
    mask: jax.Array | None,
    resets: jax.Array | None,
    reset_after: bool,
    reverse: bool,
    transposed: bool,
) -> jax.Array:
    """The linear recurrence along a linearisation: y_t = J_t y_tm1 + s_t with y_{−1} = 0, or its transpose.

    Where `mask` is False J_t is 1, and where `resets` is True it is applied to zero. Both select: a NaN or an infinity
    does not pass, as it would through coefficients that are zero.

    Args:
      at: coefficients of J_t.
      kernel: U.
      drop: recurrent dropout mask or None.
      s: the source, (T, *group, *batch, H).
      mask, resets: those of the states, or None.
      reset_after: where the reset gate acts.
      reverse: whether the states ran backwards in time.
      transposed: solve λ_t = s_t + J_{t+1}ᵀ λ_{t+1} instead, which runs against the states.

    Returns:
      y or λ, shaped like s.
    """
    # Behind a barrier, or XLA on CPU transposes U anew at every step.
    kernel_t = jax.lax.optimization_barrier(jnp.swapaxes(kernel, -1, -2))

    def forward(y_tm1, inputs):
        at_t, s_t, mask_t, reset_t = inputs
        y_tm1 = unless(reset_t, y_tm1)
        y_t = s_t + select(mask_t, apply(reset_after, at_t, kernel, drop, y_tm1), y_tm1)
        return y_t, y_t

    def backward(pulled, inputs):
        at_t, s_t, mask_t, reset_t = inputs
        y_t = s_t + pulled
        pulled = select(mask_t, apply_transposed(reset_after, at_t, kernel_t, drop, y_t), y_t)
        return unless(reset_t, pulled), y_t

    inputs = at, s, mask, resets
    return jax.lax.scan(
        backward if transposed else forward, jnp.zeros_like(s[0]), inputs, reverse=reverse != transposed
    )[1]


def push(
    o: Operands, hs: jax.Array, d: Operands, cell: GRU, reverse: bool, solve: Any, kept: Preactivations | None = None
) -> jax.Array:
    """The tangent of the states.

    Args:
      o: operands of the states.
      hs: the states.
      d: tangents of the operands, None for zero. (They are annotated as operands for their names.)
      cell, reverse: as in `states`.
      solve: `linear`, or its primitive.
      kept: the preactivations, if they were kept; otherwise they are formed again.
    """
    after = cell.reset_after
    h_tm1 = shifted(hs, spread(o.h_0, *lead_axes({"hs": jax.typeof(hs)})), reverse)
    if o.resets is not None:
        h_tm1 = jnp.where(o.resets, 0 if o.reset_state is None else o.reset_state[None], h_tm1)
    h_tm1 = select(o.mask, h_tm1, 0)  # a state that is held enters no product
    if kept is None:
        kept = preactivations(cell, o.projected(), h_tm1, o.recurrent_kernel, o.candidate_bias(), o.drop)
    at = Linearisation(*(select(o.mask, coefficient, 0) for coefficient in linearise(cell, kept, h_tm1, o.drop)))
    d_bias = None if d.recurrent_bias is None else o.over_batch(d.recurrent_bias)
    s = source(after, at, h_tm1, o.recurrent_kernel, o.drop, _d_projected(o, d), d.recurrent_kernel, d_bias)
    s = select(o.mask, s, 0)
    if d.h_0 is not None or d.reset_state is not None:
        s = s + _entering(after, at, o, d, reverse)
    return solve(
        at, o.recurrent_kernel, o.drop, s, o.mask, o.resets, reset_after=after, reverse=reverse, transposed=False
    )


def pull(
    o: Operands,
    hs: jax.Array,
    ct: jax.Array,
    wrt: tuple[str, ...],
    cell: GRU,
    reverse: bool,
    solve: Any,
    kept: Preactivations | None = None,
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt`, with the full group and batch axes, from that of the states."""
    lead, spec = lead_axes({**o.avals(), "hs": jax.typeof(hs), "ct": jax.typeof(ct)})

    def pushed(*tangents):
        d = Operands(*[None] * len(Operands._fields))._replace(**dict(zip(wrt, tangents, strict=True)))
        return spread(push(o, hs, d, cell, reverse, solve, kept), lead, spec, first=1)

    # Of the primals' types, which inside shard_map say over which devices they vary.
    zeros = [jnp.zeros_like(getattr(o, name)) for name in wrt]
    groups = o.groups
    like = [
        spread(x, lead[:groups], spec[:groups])
        if name in WEIGHTS
        else spread(x, lead, spec, first=int(name not in TIMELESS))
        for name, x in zip(wrt, zeros, strict=True)
    ]
    return jax.linear_transpose(pushed, *like)(spread(ct, lead, spec, first=1))


TIMELESS = ("h_0", "reset_state", "drop")
WEIGHTS = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")


def lead_axes(avals: dict[str, Any]) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The sizes of the group and batch axes, and how an explicit mesh shards each: as the first sharded operand.

    Args:
      avals: the types of operands by name; that of a tangent is "d_" and the name of its operand. Among them is one
        that has all axes.
    """
    bases = {name: name.removeprefix("d_") for name in avals}
    ndim = max(x.ndim - 1 - (bases[name] not in TIMELESS) for name, x in avals.items() if bases[name] not in WEIGHTS)
    sizes: list[int] = [1] * ndim
    spec: list[Any] = [None] * ndim
    for name, aval in avals.items():
        weight = bases[name] in WEIGHTS
        skip = int(not weight and bases[name] not in TIMELESS)
        for axis in range(aval.ndim - (1 if bases[name].endswith("bias") else 2) if weight else ndim):
            if aval.shape[axis + skip] != 1:
                sizes[axis] = aval.shape[axis + skip]
                spec[axis] = spec[axis] or aval.sharding.spec[axis + skip]
    return tuple(sizes), tuple(spec)


def spread(x: jax.Array, lead: tuple[int, ...], spec: tuple[Any, ...], first: int = 0) -> jax.Array:
    """x with all group and batch axes, which begin at axis `first`, and sharded like these; see `lead_axes`."""
    last = first + len(lead)
    x = jnp.broadcast_to(x, (*x.shape[:first], *lead, *x.shape[last:]))
    own = tuple(jax.typeof(x).sharding.spec)
    if own[first:last] == spec:
        return x
    return jax.sharding.reshard(x, PartitionSpec(*own[:first], *spec, *own[last:]))


def _d_projected(o: Operands, d: Operands) -> Projected | None:
    """The tangent of x W + b, which is linear in each of its factors; None for zero."""
    terms: list[Any] = []
    if d.xs is not None:
        terms.append(project(o.kernel, None, d.xs, o.h_0.dtype, time_axes=1))
    if d.kernel is not None:
        terms.append(project(d.kernel, None, o.xs, o.h_0.dtype, time_axes=1))
    if d.bias is not None:
        terms.append(split(o.over_batch(d.bias)[None].astype(o.h_0.dtype)))
    if not terms:
        return None
    d_r, d_z, d_n = (sum(gate[1:], start=gate[0]) for gate in zip(*terms, strict=True))
    return d_r, d_z, d_n


def _entering(reset_after: bool, at: Linearisation, o: Operands, d: Operands, reverse: bool) -> jax.Array:
    """J_t times the tangent of the state that takes the place of h_tm1: ḣ_0 at the first step, and where it resets."""
    steps = at.z.shape[0]
    first = steps - 1 if reverse else 0
    if o.resets is None:
        at_first = Linearisation(*(coefficient[first] for coefficient in at))
        entering = apply(reset_after, at_first, o.recurrent_kernel, o.drop, d.h_0)
        entering = entering if o.mask is None else jnp.where(o.mask[first], entering, d.h_0)
        padding = [(first, steps - 1 - first, 0)] + [(0, 0, 0)] * entering.ndim
        return jax.lax.pad(entering[None], jnp.zeros((), entering.dtype), padding)
    is_first = (jnp.arange(steps) == first).reshape(-1, *[1] * o.h_0.ndim)
    d_h_0, d_start = (0 if x is None else x[None] for x in (d.h_0, d.reset_state))
    d_h_tm1 = jnp.where(o.resets, d_start, jnp.where(is_first, d_h_0, jnp.zeros((), o.h_0.dtype)))
    entering = apply(reset_after, at, o.recurrent_kernel, o.drop, select(o.mask, d_h_tm1, 0), lead=1)
    return jnp.where(o.resets | is_first, select(o.mask, entering, d_h_tm1), 0)


def select(mask: jax.Array | None, x: jax.Array, otherwise: Any) -> jax.Array:
    """x where `mask` is True or None, otherwise the other."""
    return x if mask is None else jnp.where(mask, x, otherwise)


def unless(resets: jax.Array | None, x: jax.Array) -> jax.Array:
    """x, but zero where `resets` is True."""
    return x if resets is None else jnp.where(resets, 0, x)


def shifted(ys: jax.Array, start: jax.Array, reverse: bool) -> jax.Array:
    """The values before each step: `start`, then ys without its last, in the direction of time."""
    return jnp.concatenate([ys[1:], start[None]] if reverse else [start[None], ys[:-1]])
