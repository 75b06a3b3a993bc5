"""A cell over a whole sequence."""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers, meshes, primitives, registry
from gru_jax.cells import GRU, Cell, Packed, State, as_given, check_cell, checked_state
from gru_jax.operands import Operands
from gru_jax.zoneout import Keep, zone_out
from gru_jax.zoneout import checked as checked_zoneout


def unroll(
    cell: Cell,
    params: Any,
    xs: jax.Array,
    h_0: State | None = None,
    *,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    resets: jax.Array | None = None,
    reset_state: State | None = None,
    reverse: bool = False,
    method: str = "auto",
    recurrent_dropout_mask: jax.Array | None = None,
    zoneout: Any = None,
    zoneout_mask: Any = None,
) -> tuple[State, jax.Array]:
    """Runs a cell over time: h_t = step(h_tm1, x_t) for t = 0 … T − 1.

    Where a step is masked, its input reaches neither an output nor a gradient, even if it is NaN. On a mesh with
    explicit axes the results are sharded over the batch as the inputs are; features and weights are gathered.

    Args:
      cell: the equations, e.g. `gru_jax.CUDNN`, another cell of `gru_jax.cells`, or one's own, a subclass of
        `gru_jax.cells.CellBase`.
      params: as from `cell.init`.
      xs: (T, *batch, in_features), time first as in `jax.lax.scan`. T = 0 is allowed.
      h_0: (*batch, features), or what broadcasts to it, the state with which the call begins, zero if None: that before
        the first step in the direction of time. For an LSTM `gru_jax.cells.LSTMState` of such.
      lengths: (*batch,) integers in [0, T]; steps at and after a sequence's length are masked.
      mask: (T, *batch), bool, or numbers of which those that are not 0, NaN too, are True; where False the step is
        masked: the state is held and the output is zero. With `lengths`, a step counts where both say so.
      resets: (T, *batch), as `mask`; where True an episode begins: `reset_state` takes the place of the state before
        step t. They count at the first step, too, and at steps that `mask` masks, so that no episode leaks into the
        next, but not beyond a sequence's length.
      reset_state: like h_0, the state with which an episode begins, zero if None. Without `resets` it does nothing.
      reverse: run from step T − 1 to step 0; hs[t] stays beside xs[t], and padding stays at the end.
      method: "scan", plain `lax.scan` under autodiff, the oracle; "fused", the input projection and all of the gradient
        that is parallel over time hoisted out of the loop, compiled by XLA; "native", the same by C++ kernels, on a CPU
        and in float32; "auto", native where it can be had, otherwise fused. `gru_jax.lowerings` tells which it is.
        Other cells have those in `cell.methods`: "scan", "fused", and a minGRU "parallel", an associative scan; "auto"
        is what is faster on the platform that is lowered for (`gru_jax.policy`). By "fused" a gradient saves inputs and
        states alone, and products of the state with weights where that is faster on a CPU; a cell's step must be one
        that `jax.jvp` can differentiate. What a vjp saves whose halves are compiled apart, the default backend decides.
      recurrent_dropout_mask: (*batch, features), a constant that multiplies the state where it enters the recurrent
        products (Gal & Ghahramani, NeurIPS 2016); for a cell whose `step` takes it, as a GRU's does.
      zoneout: the rate in [0, 1) at which a unit keeps its old value, whatever the cell says (Krueger et al.,
        arXiv:1606.01305). Without a mask each step is the expectation, rate · old + (1 − rate) · new, as in evaluation.
        Of a state of several arrays one rate for all, or one for each, e.g. ``LSTMState(h=0.05, c=0.5)``; arrays of
        integers in a state take no part. "native" and "parallel" have no zoneout, and "auto" is another method then.
      zoneout_mask: (T, *batch, features), bool or numbers as `mask`, drawn at the rate: where True the old value is
        kept. It takes the place of the expectation, so that the rate may be left out. Of a state of several arrays one
        mask for all, or one for each.

    Returns:
      (h_T, hs): the state after the last step in the direction of time, (*batch, features), and the output of every
      step, (T, *batch, features), which of an LSTM is h. hs has the compute dtype, the promotion of those of xs and
      params. Within a call the state has it too, or float32 where it is narrower; h_T comes back in the dtype and weak
      type of h_0, leaf by leaf, if h_0 is given in floating point. So a bfloat16 carry is rounded between calls: an
      output is off by 0.004 after 200 calls of one step (64 units, initial weights), by 0.01 with `chrono(100)`.

    Raises:
      TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit, time is sharded over an
        explicit mesh, or a method cannot be had: the message says why.

    >>> import gru_jax
    >>> cell = gru_jax.CUDNN
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_T, hs = gru_jax.unroll(cell, params, jnp.ones((10, 2, 3)), lengths=jnp.array([10, 7]))
    >>> hs.shape, bool((hs[7:, 1] == 0).all()), bool((h_T[1] == hs[6, 1]).all())
    ((10, 2, 4), True, True)
    """
    check_cell(cell)
    checks.choice("method", method, tuple(dict.fromkeys(("auto", *cell.methods))))
    xs = checks.array("xs", xs)
    checks.time_is_whole("xs", xs, 0)
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape (T, *batch, in_features), got {xs.shape}")
    params, xs, state_dtype = cell.prepare(params, xs, "xs", "(T, *batch, in_features)")
    dtype = initializers.floating_dtype((xs, params))
    steps, *batch = xs.shape[:-1]
    zero = cell.initial_state(params, batch, state_dtype)
    given = zero if h_0 is None else h_0
    h_0 = checked_state("h_0", given, zero)
    start = None if reset_state is None else checked_state("reset_state", reset_state, zero)
    dropout_mask = _dropout(cell, recurrent_dropout_mask, zero)
    rates, zoned = checked_zoneout(zoneout, zoneout_mask, zero, steps)
    method = _method(cell, method, zoneout=rates is not None or zoned is not None)
    mask = _flags("mask", mask, xs)
    resets = _flags("resets", resets, xs)
    if lengths is not None:
        lengths = checks.array("lengths", lengths)
        checks.lengths("lengths", lengths, tuple(batch), steps)
        counts = within(lengths, steps)[..., None]
        mask = counts if mask is None else mask & counts
        resets = None if resets is None else resets & counts
    if steps == 0:
        return as_given(h_0, given), jnp.zeros((0, *cell.output(zero).shape), dtype)
    xs, params, (mask, resets, zoned), (h_0, start, dropout_mask) = meshes.aligned(
        xs, params, (mask, resets, zoned), (h_0, start, dropout_mask)
    )
    h_0 = meshes.varied(h_0, xs, params, mask, resets, zoned, start, dropout_mask)
    if mask is not None:
        xs = jnp.where(mask, xs, 0)
    start = None if resets is None else start
    if isinstance(cell, GRU) and method != "scan" and rates is None and zoned is None:
        h_T, hs = _gru(cell, params, xs, h_0, dropout_mask, mask, resets, start, reverse, method)
    else:
        step, now = MaskedStep(cell, rates), (xs, mask, resets, zoned)
        h_T, hs = registry.run_cell(step, reverse, method, (params, start, dropout_mask), h_0, now)
    outputs = hs if mask is None else jnp.where(mask, hs, 0)
    return as_given(h_T, given), outputs.astype(dtype)


@dataclasses.dataclass(frozen=True)
class MaskedStep:
    """A cell's step within a call: at resets from another state, zoned out, and none where it is masked.

    It takes (params, reset_state, recurrent_dropout_mask), a state, and (x, mask, reset, zoneout masks), of which all
    but params and x may be None.

    Attributes:
      cell: the equations.
      rates: of zoneout, where there are no masks for it.
    """

    cell: Cell
    rates: Keep = None

    def __call__(self, params: Any, state: State, now: Any) -> State:
        params, start, dropout_mask = params
        x_t, mask, reset, zoned = now
        # The arguments of this package's cells have been checked; another's step is all there is.
        advance: Any = self.cell.advance if isinstance(self.cell, Packed) else self.cell.step
        options = {} if dropout_mask is None else {"recurrent_dropout_mask": dropout_mask}
        zero = jax.tree.map(jnp.zeros_like, state)
        keep = self.rates if zoned is None else zoned
        if reset is not None:
            state = jax.tree.map(functools.partial(jnp.where, reset), zero if start is None else start, state)
        if mask is None:
            return zone_out(keep, state, advance(params, state, x_t, **options))
        # A state that is held, which may be a NaN, enters no step: there its derivative would be 0 · NaN.
        held = functools.partial(jax.tree.map, functools.partial(jnp.where, mask))
        before = held(state, zero)
        return held(zone_out(keep, before, advance(params, before, x_t, **options)), state)


def _gru(
    cell: Any,
    params: Any,
    xs: jax.Array,
    h_0: jax.Array,
    dropout_mask: jax.Array | None,
    mask: jax.Array | None,
    resets: jax.Array | None,
    start: jax.Array | None,
    reverse: bool,
    method: str,
) -> tuple[jax.Array, jax.Array]:
    """Last state and outputs of a GRU, by the primitives of `gru_jax.primitives`."""
    recurrent_bias = None if params.recurrent_bias is None else params.recurrent_bias.astype(h_0.dtype)
    operands = Operands(
        xs, h_0, params.kernel, params.recurrent_kernel, params.bias, recurrent_bias, dropout_mask, mask, resets, start
    )
    hs = primitives.states(operands, cell=cell, reverse=reverse, method=method)
    return hs[0 if reverse else -1], hs


def within(lengths: jax.Array, steps: int) -> jax.Array:
    """Which steps (T, *batch) lie within the lengths (*batch,) of the sequences."""
    t = jnp.arange(steps).reshape(-1, *[1] * lengths.ndim)
    return t < lengths.astype(t.dtype)[None]


def _method(cell: Cell, method: str, zoneout: bool) -> str:
    """The method that "auto" is; with zoneout only those are left that run the cell's own step."""
    chosen = cell.methods[0] if method == "auto" else method
    if zoneout and chosen not in ("auto", "scan", "fused"):
        if method != "auto":
            raise ValueError(
                f"method={method!r} has no zoneout: it does not run the cell's step; take 'fused' or 'scan'"
            )
        return "fused"
    return chosen


def _dropout(cell: Cell, mask: Any, zero: State) -> jax.Array | None:
    """The recurrent dropout mask, shaped and typed like the output; or None."""
    if mask is None:
        return None
    if "recurrent_dropout_mask" not in inspect.signature(cell.step).parameters:
        raise ValueError(f"recurrent_dropout_mask must be None: the step of {type(cell).__name__} does not take it")
    mask, like = checks.array("recurrent_dropout_mask", mask), cell.output(zero)
    checks.shape("recurrent_dropout_mask", mask, "(*batch, features)", like.shape)
    checks.floating("recurrent_dropout_mask", mask)
    return jax.lax.stop_gradient(mask.astype(like.dtype))


def _flags(name: str, value: Any, xs: jax.Array) -> jax.Array | None:
    """A bool array (T, *batch), with a feature axis added for broadcasting; or None."""
    if value is None:
        return None
    value = checks.flags(name, value)
    checks.time_is_whole(name, value, 0)
    checks.shape(name, value, "(T, *batch)", xs.shape[:-1])
    return value[..., None]
