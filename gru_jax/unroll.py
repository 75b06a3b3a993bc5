"""A cell over a whole sequence."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers, meshes, primitives, registry
from gru_jax.cells import GRU, Cell, PackedCell, State, base
from gru_jax.operands import Operands
from gru_jax.zoneout import NO_ZONEOUT, LeafZoneout, Zoneout, check_zoneout, zone_out


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

    The input of a masked step reaches neither an output nor a gradient, even if it is NaN. On a mesh with explicit axes
    the results are sharded over the batch like the inputs; features and weights are gathered.

    Args:
      cell: the equations: `gru_jax.CUDNN`, another cell of `gru_jax.cells`, or a user's own subclass of
        `gru_jax.cells.CellBase`.
      params: as from `cell.init`.
      xs: (T, *batch, in_features), time first as in `jax.lax.scan`. T = 0 is allowed.
      h_0: the state with which the call begins, before the first step in the direction of time: (*batch, features) or
        an array that broadcasts to it; zero if None. For an LSTM a `gru_jax.cells.LSTMState` of such arrays.
      lengths: (*batch,) integers in [0, T]. Steps at and after the length of a sequence are masked.
      mask: (T, *batch), bool, or numbers, which are True if not 0 (so NaN is True). Where False the step is masked: the
        state stays as it is and the output is zero. With `lengths`, a step runs where both allow it.
      resets: (T, *batch), like `mask`. Where True an episode begins: `reset_state` takes the place of the state before
        step t. They act at the first step too, and at steps that `mask` masks, so that no episode leaks into the next;
        but not at or after the length of a sequence.
      reset_state: the state with which an episode begins, in the form of h_0; zero if None. Without `resets` it has no
        effect.
      reverse: run from step T − 1 to step 0. hs[t] still belongs to xs[t], and padding stays at the end.
      method: "scan" is plain `lax.scan` under autodiff, the oracle. "fused" does everything that is parallel over time,
        the input projection and most of the gradient, outside of the loop, in XLA. "native" is the same in C++ kernels,
        in float32 on a CPU. "auto" is native if it is available, otherwise fused; `gru_jax.lowerings` tells which.
        Other cells than the GRU have the methods `cell.methods`: "scan", "fused", and a minGRU also "parallel", an
        associative scan. For them "auto" is what is faster on the platform that is lowered for (`gru_jax.policy`).
        With "fused" a gradient saves only inputs and states, and, where that is faster on a CPU, products of the state
        with weights. If the two halves of a vjp are compiled apart, the default backend decides what is saved. The
        cell's step must be differentiable by `jax.jvp`.
      recurrent_dropout_mask: (*batch, features), a constant by which the state is multiplied where it enters the
        recurrent products (Gal & Ghahramani, NeurIPS 2016). For cells whose `step` takes it, like the GRU's.
      zoneout: the rate in [0, 1) at which a unit keeps its old value, whatever the cell computes (Krueger et al.,
        arXiv:1606.01305). Without a mask each step is the expectation, rate · old + (1 − rate) · new, as in evaluation.
        For a state of several arrays either one rate for all, or one each, e.g. ``LSTMState(h=0.05, c=0.5)``. Arrays of
        integers take no part. "native" and "parallel" have no zoneout; "auto" then chooses another method.
      zoneout_mask: (T, *batch, features), like `mask`, drawn at the rate: where True a unit keeps its old value. It
        replaces the expectation, so the rate may be left out. For a state of several arrays one mask for all, or one
        each.

    Returns:
      (h_T, hs): the state after the last step in the direction of time, (*batch, features), and the output of every
      step, (T, *batch, features); the output of an LSTM is h. hs has the compute dtype, the promotion of the dtypes of
      xs and params. Within the call the state has it too, or float32 if that is wider. h_T has the dtype and weak type
      of h_0, leaf by leaf, if h_0 is given in floating point. So a bfloat16 carry is rounded between calls: an output
      is off by 0.004 after 200 calls of one step (64 units, initial weights), by 0.01 with `chrono(100)`.

    Raises:
      TypeError, ValueError: if a shape, a dtype, or a length whose value is known does not fit; if time is sharded over
        an explicit mesh; or if the method is not available. The message says why.

    >>> import gru_jax
    >>> cell = gru_jax.CUDNN
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_T, hs = gru_jax.unroll(cell, params, jnp.ones((10, 2, 3)), lengths=jnp.array([10, 7]))
    >>> hs.shape, bool((hs[7:, 1] == 0).all()), bool((h_T[1] == hs[6, 1]).all())
    ((10, 2, 4), True, True)
    """
    base.check_cell(cell)
    base.check_method(cell, method)
    xs = checks.array("xs", xs)
    checks.unsharded_time("xs", xs, 0)
    if xs.ndim < 2:
        raise ValueError(f"xs must have shape (T, *batch, in_features), got {xs.shape}")
    params, xs, state_dtype = base.check_and_cast(cell, params, xs, "xs", "(T, *batch, in_features)")
    steps, *batch = xs.shape[:-1]
    zero = cell.initial_state(params, batch, state_dtype)
    original = zero if h_0 is None else h_0
    h_0 = base.cast_state("h_0", original, zero)
    reset_state = None if reset_state is None else base.cast_state("reset_state", reset_state, zero)
    dropout_mask = base.check_dropout_mask(cell, recurrent_dropout_mask, zero)
    zoneout = check_zoneout(zoneout, zoneout_mask, zero, steps)
    mask = checks.optional_flags("mask", mask, "(T, *batch)", (steps, *batch), 0)
    resets = checks.optional_flags("resets", resets, "(T, *batch)", (steps, *batch), 0)
    mask, resets = apply_lengths("lengths", lengths, mask, resets, (steps, *batch))
    h_T, hs = run(
        cell,
        params,
        xs,
        h_0,
        mask=mask,
        resets=resets,
        reset_state=reset_state,
        reverse=reverse,
        method=method,
        dropout_mask=dropout_mask,
        zoneout=zoneout,
    )
    return base.restore_types(h_T, original), hs


def run(
    cell: Cell,
    params: Any,
    xs: jax.Array,
    h_0: State,
    *,
    mask: jax.Array | None,
    resets: jax.Array | None,
    reset_state: State | None,
    reverse: bool,
    method: str,
    dropout_mask: jax.Array | None = None,
    zoneout: Zoneout = NO_ZONEOUT,
) -> tuple[State, jax.Array]:
    """`unroll` without its checks.

    Args:
      cell, reverse, method: as for `unroll`.
      params, xs: in the compute dtype, as from `cell.cast`.
      h_0, reset_state: (*batch, features), in the dtype of the state; reset_state may be None.
      mask, resets: (T, *batch) bool, lengths included; or None.
      dropout_mask: recurrent_dropout_mask, (*batch, features), in the dtype of the state; or None.
      zoneout: as from `check_zoneout`.

    Returns:
      (h_T, hs), in the dtype of the state and in the compute dtype.
    """
    method = _method(cell, method, zoneout != NO_ZONEOUT)
    dtype = initializers.floating_dtype((xs, params))
    if xs.shape[0] == 0:
        return h_0, jnp.zeros((0, *cell.output(h_0).shape), dtype)
    rates, zoneout_masks = zoneout
    # With a feature axis, so that they broadcast against states.
    mask, resets = (None if flags is None else flags[..., None] for flags in (mask, resets))
    xs, params, (mask, resets, zoneout_masks), (h_0, reset_state, dropout_mask) = meshes.align_shardings(
        xs, params, (mask, resets, zoneout_masks), (h_0, reset_state, dropout_mask)
    )
    h_0 = meshes.mark_varying(h_0, xs, params, mask, resets, zoneout_masks, reset_state, dropout_mask)
    if mask is not None:
        xs = jnp.where(mask, xs, 0)
    reset_state = None if resets is None else reset_state
    if isinstance(cell, GRU) and method != "scan" and zoneout == NO_ZONEOUT:
        h_T, hs = _gru(cell, params, xs, h_0, dropout_mask, mask, resets, reset_state, reverse, method)
    else:
        constants, sequences = (params, reset_state, dropout_mask), (xs, mask, resets, zoneout_masks)
        h_T, hs = registry.run_cell(MaskedStep(cell, rates), reverse, method, constants, h_0, sequences)
    outputs = hs if mask is None else jnp.where(mask, hs, 0)
    return h_T, outputs.astype(dtype)


@dataclasses.dataclass(frozen=True)
class MaskedStep:
    """The step of a cell within a call: with resets, zoneout and masks.

    It takes (params, reset_state, recurrent_dropout_mask), a state, and (x, mask, reset, zoneout masks) of one step.
    All but params and x may be None.

    Attributes:
      cell: the equations.
      rates: of zoneout, where there are no masks for it.
    """

    cell: Cell
    rates: LeafZoneout = None

    def __call__(self, constants: Any, state: State, inputs: Any) -> State:
        params, reset_state, dropout_mask = constants
        x_t, mask, reset, zoneout_masks = inputs
        # This package's cells check their arguments in `step`, and these have been checked. Another cell has only that.
        step: Any = self.cell.unchecked_step if isinstance(self.cell, PackedCell) else self.cell.step
        options = {} if dropout_mask is None else {"recurrent_dropout_mask": dropout_mask}
        zero = jax.tree.map(jnp.zeros_like, state)
        zoneout = self.rates if zoneout_masks is None else zoneout_masks
        if reset is not None:
            start = zero if reset_state is None else reset_state
            state = jax.tree.map(functools.partial(jnp.where, reset), start, state)
        if mask is None:
            return zone_out(zoneout, state, step(params, state, x_t, **options))
        # The state of a masked step may be NaN. If it entered the step, its derivative would be 0 · NaN.
        where_unmasked = functools.partial(jax.tree.map, functools.partial(jnp.where, mask))
        before = where_unmasked(state, zero)
        return where_unmasked(zone_out(zoneout, before, step(params, before, x_t, **options)), state)


def _gru(
    cell: Any,
    params: Any,
    xs: jax.Array,
    h_0: jax.Array,
    dropout_mask: jax.Array | None,
    mask: jax.Array | None,
    resets: jax.Array | None,
    reset_state: jax.Array | None,
    reverse: bool,
    method: str,
) -> tuple[jax.Array, jax.Array]:
    """Last state and outputs of a GRU, by the primitives of `gru_jax.primitives`."""
    recurrent_bias = None if params.recurrent_bias is None else params.recurrent_bias.astype(h_0.dtype)
    weights = (params.kernel, params.recurrent_kernel, params.bias, recurrent_bias)
    operands = Operands(xs, h_0, *weights, dropout_mask, mask, resets, reset_state)
    hs = primitives.states(operands, cell=cell, reverse=reverse, method=method)
    return hs[0 if reverse else -1], hs


def apply_lengths(
    name: str, lengths: Any, mask: jax.Array | None, resets: jax.Array | None, shape: tuple[Any, ...]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Mask and resets that hold within the lengths of the sequences only.

    Args:
      name: what an error calls the lengths.
      lengths: (*batch,), to be checked; or None.
      mask, resets: (T, *batch) bool, or None.
      shape: (T, *batch).
    """
    if lengths is None:
        return mask, resets
    lengths = checks.array(name, lengths)
    checks.lengths(name, lengths, shape[1:], shape[0])
    t = jnp.arange(shape[0]).reshape(-1, *[1] * lengths.ndim)
    within = t < lengths.astype(t.dtype)[None]
    return within if mask is None else mask & within, None if resets is None else resets & within


def _method(cell: Cell, method: str, zoneout: bool) -> str:
    """What "auto" stands for. Only methods that run the cell's own step have zoneout."""
    chosen = cell.methods[0] if method == "auto" else method
    if not zoneout or chosen in ("auto", "scan", "fused"):
        return chosen
    if method != "auto":
        raise ValueError(f"method={method!r} has no zoneout: it does not run the cell's step; take 'fused' or 'scan'")
    return "fused"
