"""Stacks of layers of any cell as functions of arrays: what `gru_jax.nnx` and `gru_jax.linen` have in common.

The modules own parameters and random streams; everything that is computed from them is here. Layers and directions lie
in one flat order, that of PyTorch: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import arguments, carries, checks, initializers, parameters
from gru_jax.carries import Carry
from gru_jax.cells import PackedCell, State, check_cell
from gru_jax.dropout import dropout_mask, zoneout_mask
from gru_jax.initializers import Initializer
from gru_jax.one_step import cast, step
from gru_jax.options import Options
from gru_jax.unroll import length_mask, unroll

Outputs = jax.Array | tuple[jax.Array, ...]
"""Of the last layer, or of each."""


class _Given(NamedTuple):
    """What a caller says about the steps of a sequence: (*batch,), (T, *batch), (T, *batch); each may be None."""

    lengths: jax.Array | None
    mask: jax.Array | None
    resets: jax.Array | None


@dataclasses.dataclass(unsafe_hash=True)
class Stack(Options):
    """Layers of a cell, each on the outputs of the one before, each in one direction or in both. A value: hashable.

    Attributes:
      cell: the equations, of `gru_jax.cells` or one's own.
      features: H, the width of the outputs of each layer and direction.

    Raises:
      TypeError, ValueError: if an attribute, or an option, is not of its kind.

    >>> from gru_jax import GRU
    >>> stack = Stack(GRU(), features=4, num_layers=2)
    >>> params = [stack.cell.init(jax.random.key(i), width, 4) for i, width in enumerate(stack.widths(3))]
    >>> (h_0, h_1), outputs = stack.run(params, jnp.ones((2, 10, 3)))
    >>> outputs.shape, bool((outputs[:, -1] == h_1).all())
    ((2, 10, 4), True)
    """

    cell: Any
    features: int

    def __post_init__(self) -> None:
        check_cell(self.cell)
        checks.integer("features", self.features, at_least=1)
        checks.integer("num_layers", self.num_layers, at_least=1)
        for name in ("bidirectional", "time_major", "reverse"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.reverse and self.bidirectional:
            raise ValueError("reverse must be False with bidirectional=True, which runs both ways, got True")
        checks.rate("dropout", self.dropout)
        checks.rate("recurrent_dropout", self.recurrent_dropout)
        if self.recurrent_dropout and not parameters.accepts_keyword(self.cell.step, "recurrent_dropout_mask"):
            name = type(self.cell).__name__
            raise ValueError(
                f"recurrent_dropout must be 0 for {name}, whose step takes no recurrent_dropout_mask, got "
                f"{self.recurrent_dropout}"
            )
        checks.rates("zoneout", self.zoneout)
        checks.choice("method", self.method, tuple(dict.fromkeys(("auto", *self.cell.methods))))
        checks.dtype("dtype", self.dtype)

    @property
    def directions(self) -> int:
        """How many cells a layer has."""
        return 2 if self.bidirectional else 1

    @property
    def count(self) -> int:
        """How many cells there are."""
        return self.num_layers * self.directions

    @property
    def _has_zoneout(self) -> bool:
        return any(jax.tree.leaves(self.zoneout))

    @property
    def is_random(self) -> bool:
        """Whether `run` can make use of a key."""
        return self.recurrent_dropout > 0 or self._has_zoneout or (self.dropout > 0 and self.num_layers > 1)

    def widths(self, in_features: int) -> list[int]:
        """The input width of every cell, in the flat order of layers and directions."""
        first, rest = [in_features] * self.directions, [self.directions * self.features] * self.directions
        return first + rest * (self.num_layers - 1)

    def check(self, params: Any, name: str = "params") -> None:
        """Refuses what are not the parameters of each layer and direction; `name` is what an error calls them.

        Raises:
          TypeError, ValueError: if something is not of its kind, or does not fit; names the parameter.
        """
        each = f"one for each of {self.num_layers} layers and {self.directions} directions"
        if hasattr(params, "_fields") or not isinstance(params, tuple | list):
            raise TypeError(f"{name} must be {self.count} parameters of a cell, {each}, got {type(params).__name__}")
        if len(params) != self.count:
            raise ValueError(f"{name} must have {self.count} members, {each}, got {len(params)}")
        for i, member in enumerate(params):
            self.cell.check(member, f"{name}[{i}]")
        if (in_features := self._in_features(params)) is None:
            return
        gates = len(self.cell.order)
        for i, (member, width) in enumerate(zip(params, self.widths(in_features), strict=True)):
            symbols, expected = f"(in_features, {gates}·features)", (width, gates * self.features)
            checks.shape(f"{name}[{i}].kernel", member.kernel, symbols, expected)

    def _in_features(self, params: Sequence[Any]) -> int | None:
        """The width of the inputs, if parameters are packed by gate and so say it; of a user's own cell None."""
        return params[0].kernel.shape[0] if isinstance(self.cell, PackedCell) else None

    def zero_carry(self, params: Sequence[Any], batch: Sequence[int] = ()) -> Carry:
        """The fresh state of every layer and direction, with batch axes of these sizes; see `initial_carry`."""
        return self.initial_carry(params, batch, None, None)

    def initial_carry(
        self,
        params: Sequence[Any],
        batch: Sequence[int],
        carry_init: Initializer | None,
        key: jax.Array | None,
    ) -> Carry:
        """The state of every layer and direction before the first step.

        Args:
          params: of each layer and direction.
          batch: the sizes of the batch axes.
          carry_init: draws the leaves in floating point, each (*batch, features); if None or zeros, the cell says how
            a fresh state looks.
          key: for `carry_init`.

        Returns:
          A state, or a tuple of them, in the dtype of the computation, and float32 where it is narrower.
        """
        return carries.initial(carry_init, key, [self._fresh(member, batch) for member in params])

    def _fresh(self, params: Any, batch: Sequence[int]) -> State:
        """The state with which a cell of such parameters begins."""
        dtype = initializers.floating_dtype(params) if self.dtype is None else self.dtype
        return self.cell.initial_state(params, tuple(batch), initializers.at_least_float32(dtype))

    def run(
        self,
        params: Sequence[Any],
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
        key: jax.Array | None = None,
        return_layers: bool = False,
        carry_init: Initializer | None = None,
        carry_key: jax.Array | None = None,
        in_features: int | None = None,
    ) -> tuple[Carry, Outputs]:
        """Runs every layer over whole sequences.

        Args:
          params: of each layer and direction, in the flat order.
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: fresh if None; with one layer and direction a state, (*batch, features) or what broadcasts to
            it, else a tuple or a list of such, or all of them stacked, (layers·directions, *batch, features).
          seq_lengths: (*batch,) integers in [0, time]; steps at and after a sequence's length are masked.
          mask: (*batch, time) or (time, *batch), bool or numbers, of which those that are not 0 are True; where False
            the step is masked: states are held, outputs are 0.
          resets: (*batch, time) or (time, *batch), bool or numbers; where True an episode begins at this step: no
            direction carries its state across the boundary before it. They do not count beyond a sequence's length.
          reset_state: the state with which an episode begins, zero if None: in one of the forms of initial_carry, or a
            single state for all layers and directions. In a backward direction it follows an episode's last step.
            Without resets it does nothing.
          key: PRNG key of the masks of dropout and zoneout; if None nothing is dropped, and zoneout is its expectation.
          return_layers: whether outputs are those of every layer.
          carry_init, carry_key: draw the carry where initial_carry is None, see `initial_carry`.
          in_features: the width that inputs must have, where parameters do not say it.

        Returns:
          (carry, outputs): the last state of each layer and direction, in the form, dtype and weak type of
          initial_carry; if None, of one layer and direction the state, else a tuple, in float32 where the computation
          is narrower. And (*batch, time, directions·features), or with time first if time_major; with return_layers a
          tuple of such, one for each layer, before dropout.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit.
        """
        self.check(params)
        inputs = arguments.inputs(inputs, self._in_features(params) or in_features, self.time_major)
        xs = self._time_first(inputs, -2)
        steps, *batch = xs.shape[:-1]
        if not initializers.is_zeros(carry_init) and initial_carry is None:
            initial_carry = self.initial_carry(params, batch, carry_init, carry_key)
        zero = self._fresh(params[0], batch)
        h_0s = carries.split("initial_carry", initial_carry, zero, self.count)
        starts = carries.split("reset_state", reset_state, zero, self.count, shared=True)
        if seq_lengths is not None:
            seq_lengths = checks.array("seq_lengths", seq_lengths)
            checks.lengths("seq_lengths", seq_lengths, tuple(batch), steps)
        given = _Given(seq_lengths, self._flags("mask", mask, xs), self._flags("resets", resets, xs))
        keys = [None] * self.num_layers if key is None else jax.random.split(key, self.num_layers)
        carry: list[State] = []
        outputs: list[jax.Array] = []
        for layer, layer_key in enumerate(keys):
            cells = slice(layer * self.directions, (layer + 1) * self.directions)
            if layer > 0 and self.dropout > 0 and layer_key is not None:
                xs = xs * dropout_mask(jax.random.fold_in(layer_key, 0), self.dropout, xs.shape, xs.dtype)
            h_Ts, xs = self._layer(params[cells], xs, h_0s[cells], starts[cells], given, layer_key)
            carry.extend(h_Ts)
            if return_layers or layer == self.num_layers - 1:
                outputs.append(xs if self.time_major else jnp.moveaxis(xs, 0, -2))
        return carries.join(carry, initial_carry, zero), tuple(outputs) if return_layers else outputs[0]

    def step(
        self,
        params: Sequence[Any],
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
        in_features: int | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: `run` over a sequence is this, step by step. Nothing is random.

        Args:
          params: of each layer.
          carry: the state before, fresh at first (see `zero_carry`): in one of the forms of `run`.
          x_t: (*batch, in_features).
          resets: (*batch,), bool or numbers, of which those that are not 0 are True; where True an episode begins, and
            reset_state takes the place of carry.
          reset_state: in one of the forms of carry, or a single state for all layers; zero if None.
          in_features: the width that x_t must have, where parameters do not say it.

        Returns:
          (carry, output): the new state, in the form, dtype and weak type of the old one; and (*batch, features), in
          the dtype of the computation.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or the layers run backwards too: these begin with the
            last step.

        >>> from gru_jax import GRU
        >>> stack = Stack(GRU(), features=4, num_layers=2)
        >>> params = [stack.cell.init(jax.random.key(i), width, 4) for i, width in enumerate(stack.widths(3))]
        >>> carry, output = stack.step(params, stack.zero_carry(params, (2,)), jnp.ones((2, 3)))
        >>> output.shape, bool((output == carry[1]).all())
        ((2, 4), True)
        """
        if self.bidirectional or self.reverse:
            given = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(
                f"step needs layers that run forward only, got {given}=True: the last step of a sequence comes first"
            )
        self.check(params)
        x_t = arguments.step_input("x_t", x_t, self._in_features(params) or in_features)
        if carry is None:
            raise TypeError("carry must be the state of every layer, as zero_carry makes it, got None")
        zero = self._fresh(params[0], x_t.shape[:-1])
        states = carries.split("carry", carry, zero, self.count)
        starts = carries.split("reset_state", reset_state, zero, self.count, shared=True)
        resets = arguments.step_flags("resets", resets, x_t)
        new = []
        for layer, h_tm1, start in zip(params, states, starts, strict=True):
            layer_params, x_t = cast(layer, x_t, self.dtype)
            h_t, x_t = step(self.cell, layer_params, h_tm1, x_t, resets, start, self.zoneout)
            new.append(h_t)
        return carries.join(new, carry, zero), x_t

    def _layer(
        self,
        params: Sequence[Any],
        xs: jax.Array,
        h_0s: Sequence[State | None],
        starts: Sequence[State | None],
        given: _Given,
        key: jax.Array | None,
    ) -> tuple[list[State], jax.Array]:
        """One layer, time first: the last state of each direction, and the outputs of the directions side by side."""
        h_Ts, outputs = [], []
        for direction in range(self.directions):
            backward = self.reverse or direction == 1
            h_T, hs = unroll(
                self.cell,
                *cast(params[direction], xs, self.dtype),
                h_0s[direction],
                lengths=given.lengths,
                mask=given.mask,
                resets=backward_resets(given.resets, given.lengths) if backward else given.resets,
                reset_state=starts[direction],
                reverse=backward,
                method=self.method,
                **self._noise(params[direction], xs, direction, key),
            )
            h_Ts.append(h_T)
            outputs.append(hs)
        return h_Ts, jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]

    def _noise(self, params: Any, xs: jax.Array, direction: int, key: jax.Array | None) -> dict[str, Any]:
        """Recurrent dropout and zoneout of one layer and direction, as `unroll` takes them."""
        noise: dict[str, Any] = {"zoneout": self.zoneout} if self._has_zoneout else {}
        if key is None:
            return noise
        steps, *batch = xs.shape[:-1]
        if self.recurrent_dropout > 0:
            shape, drop_key = (*batch, self.features), jax.random.fold_in(key, 1 + direction)
            noise["recurrent_dropout_mask"] = dropout_mask(drop_key, self.recurrent_dropout, shape)
        if self._has_zoneout:
            state, zone_key = self._fresh(params, batch), jax.random.fold_in(key, 3 + direction)
            noise["zoneout_mask"] = zoneout_mask(zone_key, self.zoneout, state, steps)
        return noise

    def _time_first(self, value: jax.Array, axis: int) -> jax.Array:
        return value if self.time_major else jnp.moveaxis(value, axis, 0)

    def _flags(self, name: str, value: Any, xs: jax.Array) -> jax.Array | None:
        """mask or resets, checked in the layout of the inputs, with time first; xs has time first."""
        if value is None:
            return None
        value = checks.flags(name, value)
        steps, *batch = xs.shape[:-1]
        symbols, expected = (
            ("(time, *batch)", (steps, *batch)) if self.time_major else ("(*batch, time)", (*batch, steps))
        )
        checks.shape(name, value, symbols, expected)
        checks.unsharded_time(name, value, 0 if self.time_major else -1)
        return self._time_first(value, -1)


def backward_resets(resets: jax.Array | None, lengths: jax.Array | None = None) -> jax.Array | None:
    """The resets (T, *batch) of the backward direction.

    An episode that starts at t is cut off from t − 1. The backward direction arrives at t − 1 from t, so there it is
    step t − 1 that must not see the state before it. An episode that starts beyond a sequence's length is none.

    >>> backward_resets(jnp.array([True, False, True, False])).tolist()
    [False, True, False, False]
    """
    if resets is None:
        return None
    if lengths is not None:
        resets = resets & length_mask(lengths, resets.shape[0])
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
