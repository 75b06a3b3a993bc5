"""The recurrences of a GRU and what differentiates them, as mathematics; `gru_jax.primitives` gives them their rules.

1. `states`: h_t = step(h_tm1, x_t), for all t. Nonlinear.
2. `linear_recurrence`: y_t = J_t y_tm1 + s_t, or transposed, λ_t = s_t + J_{t+1}ᵀ λ_{t+1}. Linear in s.

The derivative of the first is the second. The derivative of the second is itself with another source; its transpose is
itself, run the other way. So these two, with sources and contractions that are parallel over time, make every
derivative of every order. Two more stand for what is made of them:

3. `states_jvp`: the tangent of the states from those of everything they depend on: gates, source, linear recurrence.
4. `states_vjp`: its transpose, from the cotangent of the states to those of inputs, initial state and weights.

A gradient is `states` and then `states_vjp`. Between them it saves the inputs and the states alone; where forming the
gates again would cost more than memory does, the preactivations too (`gru_jax.policy`). `custom_vjp` would have lost
forward mode, and `linear_call` cannot be batched.

Operands and shapes are those of `gru_jax.operands`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gru_jax.axes import batch_shape, field_axes
from gru_jax.cells import GRU, Projected, product, project, split
from gru_jax.cells.gru import (
    Linearisation,
    Preactivations,
    gates_of,
    jac_vector,
    linearise,
    source,
    vector_jac,
)
from gru_jax.gates import interpolate
from gru_jax.operands import NO_OPERANDS, JvpOperands, LinearOperands, Operands, VjpOperands

STATES, RESIDUALS = "gru_jax.states", "gru_jax.residuals"
"""The names of what a gradient needs of a recurrence, for policies of `jax.checkpoint`: the states, and what else is
saved for it."""
save_states = jax.checkpoint_policies.save_only_these_names(STATES, RESIDUALS)
"""Policy for `jax.checkpoint` around a model: of its recurrent layers save what their gradients need, nothing else.

That is the inputs and the states, and on a CPU, where that is faster, a few arrays more (see `gru_jax.settings`). So
the recurrence is not run again. (A layer by itself saves nothing more without the policy either.)

>>> import gru_jax
>>> params = gru_jax.CUDNN.init(jax.random.key(0), 2, 3)
>>> loss = lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs)[1].sum()
>>> grads = jax.grad(jax.checkpoint(loss, policy=gru_jax.save_states))(params, jnp.ones((5, 2)))
"""

Solve = Callable[..., jax.Array]
"""`linear_recurrence`, or its primitive."""


def states(
    o: Operands, cell: GRU, reverse: bool, save: bool = False, hoist: bool = True
) -> tuple[jax.Array, Preactivations | None]:
    """All states of a GRU, h_t = step(h_tm1, x_t).

    Args:
      o: the operands.
      cell: the equations.
      reverse: run time backwards; h_0 then precedes the last step.
      save: whether the preactivations are wanted.
      hoist: project all inputs before the loop, not each within it.

    Returns:
      The states, (T, *weight_batch, *batch, H), and the preactivations or None.
    """
    h_0 = spread(o.h_0, *batch_shape(o))
    bias, start = o.candidate_bias(), 0 if o.reset_state is None else o.reset_state

    def step(h_tm1, inputs):
        x, mask, reset = inputs
        if reset is not None:
            h_tm1 = jnp.where(reset, start, h_tm1)
        projected = biased(x if hoist else split(product(x, o.kernel, dtype=h_0.dtype)))
        gates, pre = gates_of(cell, projected, h_tm1, o.recurrent_kernel, bias, o.dropout_mask)
        h_t = interpolate(gates.z, h_tm1, gates.n)
        if mask is not None:
            h_t = jnp.where(mask, h_t, h_tm1)
        return h_t, (h_t, pre if save else None)

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


def linear_recurrence(o: LinearOperands, reset_after: bool, reverse: bool, transposed: bool) -> jax.Array:
    """The linear recurrence along a linearisation: y_t = J_t y_tm1 + s_t with y_{−1} = 0, or its transpose.

    Where `mask` is False J_t is 1, and where `resets` is True it is applied to zero. Both select: a NaN or an infinity
    does not pass, as it would through coefficients that are zero.

    Args:
      o: the operands.
      reset_after: where the reset gate acts.
      reverse: whether the states ran backwards in time.
      transposed: solve λ_t = s_t + J_{t+1}ᵀ λ_{t+1} instead, which runs against the states.

    Returns:
      y or λ, shaped like the source.
    """
    # Behind a barrier, or XLA on CPU transposes U anew at every step.
    kernel_t = jax.lax.optimization_barrier(jnp.swapaxes(o.recurrent_kernel, -1, -2))

    def forward(y_tm1, inputs):
        jac_t, s_t, mask_t, reset_t = inputs
        y_tm1 = unless(reset_t, y_tm1)
        y_t = s_t + select(mask_t, jac_vector(reset_after, jac_t, o.recurrent_kernel, o.dropout_mask, y_tm1), y_tm1)
        return y_t, y_t

    def backward(adjoint, inputs):
        jac_t, s_t, mask_t, reset_t = inputs
        y_t = s_t + adjoint
        adjoint = select(mask_t, vector_jac(reset_after, jac_t, kernel_t, o.dropout_mask, y_t), y_t)
        return unless(reset_t, adjoint), y_t

    inputs = o.jac, o.source, o.mask, o.resets
    step = backward if transposed else forward
    return jax.lax.scan(step, jnp.zeros_like(o.source[0]), inputs, reverse=reverse != transposed)[1]


def states_jvp(operands: JvpOperands, cell: GRU, reverse: bool, solve: Solve) -> jax.Array:
    """The tangent of the states.

    Args:
      operands: the operands. Preactivations that are not among them are formed again.
      cell, reverse: as in `states`.
      solve: `linear_recurrence`, or its primitive.
    """
    (o, hs, pre, d), after = operands, cell.reset_after
    h_tm1 = shifted(hs, spread(o.h_0, jax.typeof(hs).shape[1:-1], tuple(jax.typeof(hs).sharding.spec[1:-1])), reverse)
    if o.resets is not None:
        h_tm1 = jnp.where(o.resets, 0 if o.reset_state is None else o.reset_state[None], h_tm1)
    h_tm1 = select(o.mask, h_tm1, 0)  # a masked state enters no product
    if pre is None:
        bias = o.candidate_bias()
        _, pre = gates_of(cell, o.projected(), h_tm1, o.recurrent_kernel, bias, o.dropout_mask, 1)
    coefficients = linearise(cell, pre, h_tm1, o.dropout_mask)
    jac = Linearisation(*(select(o.mask, coefficient, 0) for coefficient in coefficients))
    d_bias = None if d.recurrent_bias is None else o.over_batch(d.recurrent_bias)
    s = source(after, jac, h_tm1, o.recurrent_kernel, o.dropout_mask, _d_projected(o, d), d.recurrent_kernel, d_bias)
    s = select(o.mask, s, 0)
    if d.h_0 is not None or d.reset_state is not None:
        s = s + _entering(after, jac, o, d, reverse)
    linear = LinearOperands(jac, o.recurrent_kernel, o.dropout_mask, o.mask, o.resets, s)
    return solve(linear, reset_after=after, reverse=reverse, transposed=False)


def states_vjp(
    operands: VjpOperands, wrt: tuple[str, ...], cell: GRU, reverse: bool, solve: Solve
) -> tuple[jax.Array, ...]:
    """The cotangents of the operands named in `wrt`, with all batch axes, from that of the states."""
    (o, hs, residuals, ct), weight_axes = operands, operands.weight_axes
    sizes, spec = batch_shape(operands)

    def tangent(*tangents):
        d = NO_OPERANDS._replace(**dict(zip(wrt, tangents, strict=True)))
        return spread(states_jvp(JvpOperands(o, hs, residuals, d), cell, reverse, solve), sizes, spec, first=1)

    # Of the primals' types, which inside shard_map say over which devices they vary.
    like = []
    for name in wrt:
        axes, zero = field_axes(Operands, name), jnp.zeros_like(getattr(o, name))
        last = None if axes.batch else weight_axes
        like.append(spread(zero, sizes[:last], spec[:last], first=axes.time))
    return jax.linear_transpose(tangent, *like)(spread(ct, sizes, spec, first=1))


def spread(x: jax.Array, sizes: tuple[int, ...], spec: tuple[Any, ...], first: int = 0) -> jax.Array:
    """x with all batch axes, which begin at axis `first`, and sharded like these; see `batch_shape`."""
    last = first + len(sizes)
    x = jnp.broadcast_to(x, (*x.shape[:first], *sizes, *x.shape[last:]))
    own = tuple(jax.typeof(x).sharding.spec)
    if own[first:last] == spec:
        return x
    return jax.sharding.reshard(x, PartitionSpec(*own[:first], *spec, *own[last:]))


def _d_projected(o: Operands, d: Operands) -> Projected | None:
    """The tangent of x W + b, which is linear in each of its factors; None for zero."""
    terms: list[Any] = []
    if d.xs is not None:
        terms.append(project(o.kernel, None, d.xs, o.h_0.dtype, 1))
    if d.kernel is not None:
        terms.append(project(d.kernel, None, o.xs, o.h_0.dtype, 1))
    if d.bias is not None:
        terms.append(split(o.over_batch(d.bias)[None].astype(o.h_0.dtype)))
    if not terms:
        return None
    d_r, d_z, d_n = (sum(gate[1:], start=gate[0]) for gate in zip(*terms, strict=True))
    return d_r, d_z, d_n


def _entering(reset_after: bool, jac: Linearisation, o: Operands, d: Operands, reverse: bool) -> jax.Array:
    """J_t times the tangent of the state that takes the place of h_tm1: ḣ_0 at the first step, and where it resets."""
    steps = jac.z.shape[0]
    first = steps - 1 if reverse else 0
    if o.resets is None:
        jac_first = Linearisation(*(coefficient[first] for coefficient in jac))
        entering = jac_vector(reset_after, jac_first, o.recurrent_kernel, o.dropout_mask, d.h_0)
        entering = entering if o.mask is None else jnp.where(o.mask[first], entering, d.h_0)
        padding = [(first, steps - 1 - first, 0)] + [(0, 0, 0)] * entering.ndim
        return jax.lax.pad(entering[None], jnp.zeros((), entering.dtype), padding)
    is_first = (jnp.arange(steps) == first).reshape(-1, *[1] * o.h_0.ndim)
    d_h_0, d_start = (0 if x is None else x[None] for x in (d.h_0, d.reset_state))
    d_h_tm1 = jnp.where(o.resets, d_start, jnp.where(is_first, d_h_0, jnp.zeros((), o.h_0.dtype)))
    entering = jac_vector(reset_after, jac, o.recurrent_kernel, o.dropout_mask, select(o.mask, d_h_tm1, 0), 1)
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
