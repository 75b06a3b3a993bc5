"""Stacks of layers of any cell as functions of arrays, on which `gru_jax.nnx` and `gru_jax.linen` are built.

The modules own parameters and random streams; what is computed from them is here. Layers and directions have one flat
order, that of PyTorch: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import arguments, carries, checks, initializers
from gru_jax.carries import Carry
from gru_jax.cells import PackedCell, State, base
from gru_jax.dropout import dropout_mask, zoneout_mask
from gru_jax.initializers import Initializer
from gru_jax.one_step import step
from gru_jax.options import Options
from gru_jax.unroll import apply_lengths, run
from gru_jax.zoneout import check_zoneout

Outputs = jax.Array | tuple[jax.Array, ...]
"""The outputs of the last layer, or of each layer."""


@dataclasses.dataclass(unsafe_hash=True)
class Stack(Options):
    """Layers of a cell. Each runs on the outputs of the one before, in one direction or in both. A hashable value.

    Attributes:
      cell: the equations: a cell of `gru_jax.cells` or a user's own.
      features: H, the width of the outputs of each layer and direction.

    Raises:
      TypeError, ValueError: if an attribute or an option is invalid; names it.

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
        base.check_cell(self.cell)
        checks.integer("features", self.features, at_least=1)
        checks.integer("num_layers", self.num_layers, at_least=1)
        for name in ("bidirectional", "time_major", "reverse"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.reverse and self.bidirectional:
            raise ValueError("reverse must be False with bidirectional=True, which runs both ways, got True")
        checks.rate("dropout", self.dropout)
        checks.rate("recurrent_dropout", self.recurrent_dropout)
        if self.recurrent_dropout and not self.cell.takes_recurrent_dropout:
            name = type(self.cell).__name__
            raise ValueError(
                f"recurrent_dropout must be 0 for {name}, whose step takes no recurrent_dropout_mask, got "
                f"{self.recurrent_dropout}"
            )
        checks.rates("zoneout", self.zoneout)
        base.check_method(self.cell, self.method)
        checks.dtype("dtype", self.dtype)

    @property
    def directions(self) -> int:
        """The number of cells in a layer."""
        return 2 if self.bidirectional else 1

    @property
    def count(self) -> int:
        """The number of cells in all layers."""
        return self.num_layers * self.directions

    @property
    def _has_zoneout(self) -> bool:
        return any(jax.tree.leaves(self.zoneout))

    @property
    def is_random(self) -> bool:
        """Whether `run` needs a key to draw masks."""
        return self.recurrent_dropout > 0 or self._has_zoneout or (self.dropout > 0 and self.num_layers > 1)

    def widths(self, in_features: int) -> list[int]:
        """The input width of every cell, in the flat order of layers and directions."""
        first, rest = [in_features] * self.directions, [self.directions * self.features] * self.directions
        return first + rest * (self.num_layers - 1)

    def check(self, params: Any, name: str = "params") -> None:
        """Checks that `params` are the parameters of each layer and direction. Errors call them `name`.

        Raises:
          TypeError, ValueError: if a parameter has another type, or does not fit; names the parameter.
        """
        each = f"one for each of {self.num_layers} layers and {self.directions} directions"
        if hasattr(params, "_fields") or not isinstance(params, tuple | list):
            raise TypeError(f"{name} must be {self.count} parameters of a cell, {each}, got {type(params).__name__}")
        if len(params) != self.count:
            raise ValueError(f"{name} must have {self.count} members, {each}, got {len(params)}")
        for i, member in enumerate(params):
            self.cell.check(member, f"{name}[{i}]")
        if not isinstance(self.cell, PackedCell):
            return
        gates = len(self.cell.order)
        for i, (member, width) in enumerate(zip(params, self.widths(self.cell.in_features(params[0])), strict=True)):
            symbols, expected = f"(in_features, {gates}·features)", (width, gates * self.features)
            checks.shape(f"{name}[{i}].kernel", member.kernel, symbols, expected)

    def zero_carry(self, params: Sequence[Any], batch: Sequence[int] = ()) -> Carry:
        """`initial_carry` of fresh states."""
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
          carry_init: draws the floating-point leaves, (*batch, features) each; if None or zeros, the states are fresh,
            as the cell defines it.
          key: for `carry_init`.

        Returns:
          A state, or a tuple of them, in the dtype of the computation, or float32 if that is narrower.
        """
        return carries.initial(carry_init, key, [self._fresh(member, batch) for member in params])

    def _fresh(self, params: Any, batch: Sequence[int]) -> State:
        """The fresh state of a cell with these parameters."""
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
          initial_carry: the state with which the call begins, fresh if None. For one layer and direction a state,
            (*batch, features) or an array that broadcasts to it; otherwise a tuple or a list of states, or all of them
            stacked, (layers·directions, *batch, features).
          seq_lengths: (*batch,) integers in [0, time]. Steps at and after the length of a sequence are masked.
          mask: (*batch, time) or (time, *batch), bool, or numbers, which are True if not 0. Where False the step is
            masked: the state stays as it is and the output is 0.
          resets: like mask. Where True an episode begins at this step. No direction carries its state from one episode
            into another. Resets at and after the length of a sequence have no effect.
          reset_state: the state with which an episode begins, zero if None: in one of the forms of initial_carry, or
            one state for all layers and directions. In a backward direction it follows the last step of an episode.
            Without resets it has no effect.
          key: PRNG key for the masks of dropout and zoneout; if None, nothing is dropped, and zoneout is its
            expectation.
          return_layers: whether to return the outputs of every layer.
          carry_init, carry_key: draw the carry if initial_carry is None, see `initial_carry`.
          in_features: the width that inputs must have, used if the parameters do not tell it.

        Returns:
          (carry, outputs): the last state of each layer and direction, in the form, dtype and weak type of
          initial_carry; without one, a state, or a tuple if there are several, in float32 if the computation is
          narrower. The outputs are (*batch, time, directions·features), or with time first if time_major; with
          return_layers a tuple of such arrays, one for each layer, before dropout.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length whose value is known does not fit.
        """
        self.check(params)
        inputs = arguments.inputs(inputs, self.cell.in_features(params[0]) or in_features, self.time_major)
        xs = inputs if self.time_major else jnp.moveaxis(inputs, -2, 0)
        steps, *batch = xs.shape[:-1]
        if not initializers.is_zeros(carry_init) and initial_carry is None:
            initial_carry = self.initial_carry(params, batch, carry_init, carry_key)
        zero = self._fresh(params[0], batch)
        h_0s = carries.split("initial_carry", initial_carry, zero, self.count)
        reset_states = carries.split("reset_state", reset_state, zero, self.count, shared=True)
        flags = self._flags("mask", mask, xs), self._flags("resets", resets, xs)
        mask, resets = apply_lengths("seq_lengths", seq_lengths, *flags, (steps, *batch))
        keys = [None] * self.num_layers if key is None else jax.random.split(key, self.num_layers)
        carry: list[State] = []
        outputs: list[jax.Array] = []
        for layer, layer_key in enumerate(keys):
            first = layer * self.directions
            if layer > 0 and self.dropout > 0 and layer_key is not None:
                xs = xs * dropout_mask(jax.random.fold_in(layer_key, 0), self.dropout, xs.shape, xs.dtype)
            results = [
                self._run_cell(direction, params[i], xs, h_0s[i], mask, resets, reset_states[i], layer_key)
                for direction, i in enumerate(range(first, first + self.directions))
            ]
            carry += [h_T for h_T, _ in results]
            xs = jnp.concatenate([hs for _, hs in results], axis=-1) if self.bidirectional else results[0][1]
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
        """One step of every layer, for serving. It computes what `run` does at this step. Nothing is random.

        Args:
          params: of each layer.
          carry: the state before, at first from `zero_carry`, in one of the forms of `run`.
          x_t: (*batch, in_features).
          resets: (*batch,), bool, or numbers, which are True if not 0. Where True an episode begins: reset_state takes
            the place of carry.
          reset_state: in one of the forms of carry, or one state for all layers; zero if None.
          in_features: the width that x_t must have, used if the parameters do not tell it.

        Returns:
          (carry, output): the new state, in the form, dtype and weak type of the old one; and the output (*batch,
          features), in the dtype of the computation.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or layers run backwards, which begin with the last
            step.

        >>> from gru_jax import GRU
        >>> stack = Stack(GRU(), features=4, num_layers=2)
        >>> params = [stack.cell.init(jax.random.key(i), width, 4) for i, width in enumerate(stack.widths(3))]
        >>> carry, output = stack.step(params, stack.zero_carry(params, (2,)), jnp.ones((2, 3)))
        >>> output.shape, bool((output == carry[1]).all())
        ((2, 4), True)
        """
        if self.bidirectional or self.reverse:
            option = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(
                f"step needs layers that run forward only, got {option}=True: the last step of a sequence comes first"
            )
        self.check(params)
        x_t = arguments.step_input("x_t", x_t, self.cell.in_features(params[0]) or in_features)
        if carry is None:
            raise TypeError("carry must be the state of every layer, as zero_carry makes it, got None")
        zero = self._fresh(params[0], x_t.shape[:-1])
        states = carries.split("carry", carry, zero, self.count)
        reset_states = carries.split("reset_state", reset_state, zero, self.count, shared=True)
        resets = checks.optional_flags("resets", resets, "(*batch,)", x_t.shape[:-1])
        new = []
        for layer, h_tm1, start in zip(params, states, reset_states, strict=True):
            h_t, x_t = step(self.cell, layer, h_tm1, x_t, resets, start, self.zoneout, self.dtype)
            new.append(h_t)
        return carries.join(new, carry, zero), x_t

    def _run_cell(
        self,
        direction: int,
        params: Any,
        xs: jax.Array,
        h_0: State | None,
        mask: jax.Array | None,
        resets: jax.Array | None,
        reset_state: State | None,
        key: jax.Array | None,
    ) -> tuple[State, jax.Array]:
        """Last state and outputs of one layer and direction, time first. The arguments have been checked."""
        backward = self.reverse or direction == 1
        params, xs, state_dtype = self.cell.cast(params, xs, self.dtype)
        steps, *batch = xs.shape[:-1]
        zero = self.cell.initial_state(params, tuple(batch), state_dtype)
        original = zero if h_0 is None else h_0
        h_T, hs = run(
            self.cell,
            params,
            xs,
            base.astype_like(original, zero),
            mask=mask,
            resets=backward_resets(resets) if backward else resets,
            reset_state=None if reset_state is None else base.astype_like(reset_state, zero),
            reverse=backward,
            method=self.method,
            **self._regularisation(zero, steps, direction, key),
        )
        return base.restore_types(h_T, original), hs

    def _regularisation(self, zero: State, steps: int, direction: int, key: jax.Array | None) -> dict[str, Any]:
        """Recurrent dropout and zoneout of one layer and direction, as `gru_jax.unroll.run` takes them."""
        masks: dict[str, Any] = {}
        if key is not None and self.recurrent_dropout > 0:
            like, dropout_key = self.cell.output(zero), jax.random.fold_in(key, 1 + direction)
            masks["dropout_mask"] = dropout_mask(dropout_key, self.recurrent_dropout, like.shape, like.dtype)
        if self._has_zoneout:
            drawn = None
            if key is not None:
                drawn = zoneout_mask(jax.random.fold_in(key, 3 + direction), self.zoneout, zero, steps)
            masks["zoneout"] = check_zoneout(self.zoneout, drawn, zero, steps)
        return masks

    def _flags(self, name: str, value: Any, xs: jax.Array) -> jax.Array | None:
        """mask or resets as bool (time, *batch), checked in the layout of the inputs. xs has time first."""
        steps, *batch = xs.shape[:-1]
        if self.time_major:
            return checks.optional_flags(name, value, "(time, *batch)", (steps, *batch), 0)
        value = checks.optional_flags(name, value, "(*batch, time)", (*batch, steps), -1)
        return None if value is None else jnp.moveaxis(value, -1, 0)


def backward_resets(resets: jax.Array | None) -> jax.Array | None:
    """The resets (T, *batch) of the backward direction.

    An episode that begins at t is separated from step t − 1. The backward direction goes from t to t − 1, so it must
    drop its state before step t − 1.

    >>> backward_resets(jnp.array([True, False, True, False])).tolist()
    [False, True, False, False]
    """
    if resets is None:
        return None
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
