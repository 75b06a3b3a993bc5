"""Stacks of GRU layers as functions of arrays: what `gru_jax.nnx` and `gru_jax.linen` have in common.

The modules own parameters and random streams; everything that is computed from them is here. Layers and directions lie
in one flat order, that of PyTorch: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import arguments, carries, checks, initializers
from gru_jax.carries import Carry
from gru_jax.cells import GRU, Params, State, as_given
from gru_jax.initializers import Initializer
from gru_jax.unroll import unroll, within

Outputs = jax.Array | tuple[jax.Array, ...]
"""Of the last layer, or of each."""


class _Given(NamedTuple):
    """What a caller says about the steps of a sequence: (*batch,), (T, *batch), (T, *batch); each may be None."""

    lengths: jax.Array | None
    mask: jax.Array | None
    resets: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Stack:
    """Layers of a GRU, each on the outputs of the one before, each in one direction or in both.

    Attributes:
      cell: the equations.
      features: H, the width of the state of each layer and direction.
      num_layers: at least 1.
      bidirectional: whether each layer also runs backwards; its outputs are then (..., 2·features), forward first.
      reverse: whether each layer runs backwards only; its outputs stay beside its inputs.
      dropout: rate at which the outputs of every layer but the last are dropped.
      recurrent_dropout: rate at which the state is dropped where it enters the recurrent products; one mask per
        sequence, layer and direction.
      time_major: whether time is the first axis instead of the last but one.
      dtype: of the computation; the promotion of inputs and parameters if None.
      method: how `gru_jax.unroll` runs.

    Raises:
      TypeError, ValueError: if an attribute is not of its kind.

    >>> stack = Stack(GRU(), features=4, num_layers=2)
    >>> params = [stack.cell.init(jax.random.key(i), width, 4) for i, width in enumerate(stack.widths(3))]
    >>> (h_0, h_1), outputs = stack.run(params, jnp.ones((2, 10, 3)))
    >>> outputs.shape, bool((outputs[:, -1] == h_1).all())
    ((2, 10, 4), True)
    """

    cell: GRU
    features: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    time_major: bool = False
    dtype: Any = None
    method: str = "auto"
    reverse: bool = False

    def __post_init__(self) -> None:
        checks.integer("features", self.features, at_least=1)
        checks.integer("num_layers", self.num_layers, at_least=1)
        for name in ("bidirectional", "time_major", "reverse"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, got {getattr(self, name)!r}")
        if self.reverse and self.bidirectional:
            raise ValueError("reverse must be False with bidirectional=True, which runs both ways, got True")
        checks.rate("dropout", self.dropout)
        checks.rate("recurrent_dropout", self.recurrent_dropout)
        checks.choice("method", self.method, self.cell.methods)
        checks.dtype("dtype", self.dtype)

    @property
    def directions(self) -> int:
        """How many cells a layer has."""
        return 2 if self.bidirectional else 1

    @property
    def _count(self) -> int:
        """How many cells there are."""
        return self.num_layers * self.directions

    @property
    def is_random(self) -> bool:
        """Whether `run` can make use of a key."""
        return self.recurrent_dropout > 0 or (self.dropout > 0 and self.num_layers > 1)

    def widths(self, in_features: int) -> list[int]:
        """The input width of every cell, in the flat order of layers and directions."""
        first, rest = [in_features] * self.directions, [self.directions * self.features] * self.directions
        return first + rest * (self.num_layers - 1)

    def check(self, params: Any, name: str = "params") -> None:
        """Refuses what are not the parameters of each layer and direction; `name` is what an error calls them.

        Raises:
          TypeError, ValueError: if something is not of its kind, or does not fit; names the parameter.
        """
        count = self.num_layers * self.directions
        if isinstance(params, Params) or not isinstance(params, tuple | list):
            raise TypeError(
                f"{name} must be {count} gru_jax.Params, one for each of {self.num_layers} layers and "
                f"{self.directions} directions, got {type(params).__name__}"
            )
        if len(params) != count:
            raise ValueError(
                f"{name} must have {count} members, one for each of {self.num_layers} layers and "
                f"{self.directions} directions, got {len(params)}"
            )
        for i, member in enumerate(params):
            self.cell.check(member, f"{name}[{i}]")
        for i, (member, width) in enumerate(zip(params, self.widths(params[0].in_features), strict=True)):
            expected = (width, 3 * self.features)
            checks.shape(f"{name}[{i}].kernel", member.kernel, "(in_features, 3·features)", expected)

    def zero_carry(self, input_shape: Sequence[int], param_dtype: Any) -> Carry:
        """The zero state of every layer and direction before inputs (*batch, in_features) of one step."""
        return self.initial_carry(input_shape, param_dtype, None, None)

    def initial_carry(
        self,
        input_shape: Sequence[int],
        param_dtype: Any,
        carry_init: Initializer | None,
        key: jax.Array | None,
    ) -> Carry:
        """The same, drawn from an initializer (None: zeros) with a key, which zeros do not need."""
        shape, dtype = (*input_shape[:-1], self.features), carry_dtype(self.dtype, param_dtype)
        return carries.initial(carry_init, key, shape, dtype, self._count)

    def run(
        self,
        params: Sequence[Params],
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
        key: jax.Array | None = None,
        return_layers: bool = False,
    ) -> tuple[Carry, Outputs]:
        """Runs every layer over whole sequences.

        Args:
          params: of each layer and direction, in the flat order.
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: zero if None; with one layer and direction a state, (*batch, features) or what broadcasts to
            it, else a tuple or a list of such, or all of them stacked, (layers·directions, *batch, features).
          seq_lengths: (*batch,) integers in [0, time]; steps at and after a sequence's length are masked.
          mask: (*batch, time) or (time, *batch), bool or numbers, of which those that are not 0 are True; where False
            the step is masked: states are held, outputs are 0.
          resets: (*batch, time) or (time, *batch), bool or numbers; where True an episode begins at this step: no
            direction carries its state across the boundary before it. They do not count beyond a sequence's length.
          reset_state: the state with which an episode begins, zero if None: in one of the forms of initial_carry, or a
            single state for all layers and directions. In a backward direction it follows an episode's last step.
            Without resets it does nothing.
          key: PRNG key of the dropout masks; nothing is dropped if None.
          return_layers: whether outputs are those of every layer.

        Returns:
          (carry, outputs): the last state of each layer and direction, in the form, dtype and weak type of
          initial_carry; if None, of one layer and direction the state, else a tuple, in float32 where the computation
          is narrower. And (*batch, time, directions·features), or with time first if time_major; with return_layers a
          tuple of such, one for each layer, before dropout.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit.
        """
        self.check(params)
        xs = self._time_first(arguments.inputs(inputs, params[0].in_features, self.time_major), -2)
        steps, *batch = xs.shape[:-1]
        zero = self.cell.initial_state(params[0], batch)
        h_0s = carries.split("initial_carry", initial_carry, zero, self._count)
        starts = carries.split("reset_state", reset_state, zero, self._count, shared=True)
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
        return carries.joined(carry, initial_carry, zero), tuple(outputs) if return_layers else outputs[0]

    def step(
        self,
        params: Sequence[Params],
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: `run` over a sequence is this, step by step. Nothing is dropped.

        Args:
          params: of each layer.
          carry: the state before, zero at first (see `zero_carry`): in one of the forms of `run`.
          x_t: (*batch, in_features).
          resets: (*batch,), bool or numbers, of which those that are not 0 are True; where True an episode begins, and
            reset_state takes the place of carry.
          reset_state: in one of the forms of carry, or a single state for all layers; zero if None.

        Returns:
          (carry, output): the new state, in the form, dtype and weak type of the old one; and (*batch, features), in
          the dtype of the computation.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or the layers run backwards too: these begin with the
            last step.

        >>> stack = Stack(GRU(), features=4, num_layers=2)
        >>> params = [stack.cell.init(jax.random.key(i), width, 4) for i, width in enumerate(stack.widths(3))]
        >>> carry, output = stack.step(params, stack.zero_carry((2, 3), jnp.float32), jnp.ones((2, 3)))
        >>> output.shape, bool((output == carry[1]).all())
        ((2, 4), True)
        """
        if self.bidirectional or self.reverse:
            given = "bidirectional" if self.bidirectional else "reverse"
            raise ValueError(
                f"step needs layers that run forward only, got {given}=True: the last step of a sequence comes first"
            )
        self.check(params)
        x_t = arguments.step_input("x_t", x_t, params[0].in_features)
        if carry is None:
            raise TypeError("carry must be the state of every layer, as zero_carry makes it, got None")
        zero = self.cell.initial_state(params[0], x_t.shape[:-1])
        states = carries.split("carry", carry, zero, self._count)
        starts = carries.split("reset_state", reset_state, zero, self._count, shared=True)
        new = []
        for layer, h_tm1, start in zip(params, states, starts, strict=True):
            layer_params, x_t = cast(layer, x_t, self.dtype)
            h_t, x_t = step(self.cell, layer_params, h_tm1, x_t, resets=resets, reset_state=start)
            new.append(h_t)
        return carries.joined(new, carry, zero), x_t

    def _layer(
        self,
        params: Sequence[Params],
        xs: jax.Array,
        h_0s: Sequence[State | None],
        starts: Sequence[State | None],
        given: _Given,
        key: jax.Array | None,
    ) -> tuple[list[jax.Array], jax.Array]:
        """One layer, time first: the last state of each direction, and the outputs of the directions side by side."""
        h_Ts, outputs = [], []
        for direction in range(self.directions):
            backward = self.reverse or direction == 1
            drop = None
            if self.recurrent_dropout > 0 and key is not None:
                shape = (*xs.shape[1:-1], self.features)
                drop = dropout_mask(jax.random.fold_in(key, 1 + direction), self.recurrent_dropout, shape)
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
                recurrent_dropout_mask=drop,
            )
            h_Ts.append(h_T)
            outputs.append(hs)
        return h_Ts, jnp.concatenate(outputs, axis=-1) if self.bidirectional else outputs[0]

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
        checks.time_is_whole(name, value, 0 if self.time_major else -1)
        return self._time_first(value, -1)


def step(
    cell: GRU,
    params: Params,
    carry: jax.Array,
    inputs: jax.Array,
    *,
    resets: jax.Array | None = None,
    reset_state: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of a cell in Flax's form: (carry, inputs) to (new_carry, output).

    Args:
      cell: the equations.
      params: `Params`, in the dtype of the computation.
      carry: (*batch, features).
      inputs: (*batch, in_features), in the dtype of the computation.
      resets, reset_state: as of `gru_jax.GRU.step`.

    Returns:
      The new state twice: as carry, in the dtype and weak type of the old one, so that a scan may carry it, a float32
      state through a computation in bfloat16, too; and as output, in the dtype of the computation.
    """
    h_t = cell.step(params, carry, inputs, resets=resets, reset_state=reset_state)
    compute_dtype = jnp.result_type(inputs, *jax.tree.leaves(params))
    return as_given(h_t, carry), h_t.astype(compute_dtype)


def cast(params: Params, inputs: jax.Array, dtype: Any) -> tuple[Params, jax.Array]:
    """Parameters and inputs in `dtype`; as they are if it is None, for then they promote each other."""
    if dtype is None:
        return params, inputs
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params), inputs.astype(dtype)


def warn_of_unused_dropout(dropout: float, num_layers: int, stacklevel: int) -> None:
    """Says that dropout between layers needs two of them, as PyTorch does; `stacklevel` as of `warnings.warn`."""
    if num_layers == 1 and dropout > 0:
        warnings.warn(
            f"dropout={dropout} drops nothing with num_layers=1: it acts on the outputs of every layer but the last. "
            "For the outputs of one layer use flax's Dropout, for its state recurrent_dropout.",
            stacklevel=stacklevel + 1,
        )


def carry_dtype(dtype: Any, param_dtype: Any) -> Any:
    """The dtype of a fresh state: that of the computation, and float32 where it is narrower."""
    return initializers.single_or_wider(param_dtype if dtype is None else dtype)


def dropout_mask(key: jax.Array, rate: float, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """0 with probability `rate`, otherwise 1/(1 − rate), so that the mean is 1.

    >>> sorted(set(dropout_mask(jax.random.key(0), 0.5, (20,)).tolist()))
    [0.0, 2.0]
    """
    # Drawn in float32, so that jax_enable_x64 does not change the mask.
    return jnp.where(jax.random.bernoulli(key, jnp.float32(1 - rate), shape), 1 / (1 - rate), 0).astype(dtype)


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
        resets = resets & within(lengths, resets.shape[0])
    return jnp.concatenate([resets[1:], jnp.zeros_like(resets[:1])])
