"""Whole layers for Flax's linen."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from gru_jax import arguments, carries, cells, checks, initializers, layers
from gru_jax.convert.frameworks import from_linen, to_linen
from gru_jax.convert.model import Model, check_model, layer_arguments
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.layers import Carry, Outputs
from gru_jax.linen.cell import GRUCell
from gru_jax.linen.parameters import Scope, check_parts


class GRU(nn.Module):
    """A GRU over whole sequences: stacked layers, one or both directions, dropout, masks and resets.

    `GRU.from_model` makes one of trained weights: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`, and so on
    for Keras, Flax, Haiku, Equinox and ONNX; `layer.model(variables)` is the way back.

    Runs `gru_jax.unroll`, so that the input projection and most of the gradient are parallel over time. The parameter
    tree of one layer is that of `nn.RNN(nn.GRUCell(...))`, or of `nn.Bidirectional` with two of these; several layers
    are such trees under layers_0, layers_1 and so on. Random numbers are drawn for dropout alone, from the stream
    "dropout".

    Attributes:
      features: width of the state of each layer and direction.
      num_layers: each layer but the first takes the outputs of the one before.
      bidirectional: whether each layer also runs backwards; its outputs then are (..., 2·features), forward first.
      dropout: rate at which the outputs of each layer but the last are dropped, a fresh mask for every element.
      recurrent_dropout: rate at which the state is dropped where it enters the recurrent products; one mask per
        sequence, layer and direction (Gal & Ghahramani, NeurIPS 2016).
      reset_after, use_bias: as in `GRUCell`.
      time_major: inputs, outputs, mask and resets have time as their first axis.
      return_carry: what a call returns by default.
      dtype: of the computation; the promotion of inputs and parameters if None. The state stays in float32 where it is
        narrower.
      param_dtype, gate_fn, activation_fn, kernel_init, recurrent_kernel_init, bias_init, update_bias_init: as in
        `GRUCell`.
      method: how to run over time, see `gru_jax.unroll`.
      deterministic: nothing is dropped if True.
      reverse: whether each layer runs backwards only; its outputs stay beside its inputs.
      carry_init: initializer of the carry of a call that is given none.

    Raises:
      TypeError, ValueError: on construction, if an attribute is not of its kind.

    Warns:
      UserWarning: on construction, if dropout is given and there is one layer, so that nothing is dropped.

    >>> layer = GRU(features=4, num_layers=2, bidirectional=True, dropout=0.1)
    >>> variables = layer.init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> outputs = layer.apply(variables, jnp.ones((2, 10, 3)), rngs={"dropout": jax.random.key(1)})
    >>> outputs.shape
    (2, 10, 8)
    >>> carry, _ = layer.apply(variables, jnp.ones((2, 10, 3)), return_carry=True, deterministic=True)
    >>> [state.shape for state in carry]
    [(2, 4), (2, 4), (2, 4), (2, 4)]
    """

    features: int
    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    reset_after: bool = True
    use_bias: bool = True
    time_major: bool = False
    return_carry: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    gate_fn: Activation = jax.nn.sigmoid
    activation_fn: Activation = jnp.tanh
    kernel_init: Initializer = initializers.lecun_normal
    recurrent_kernel_init: Initializer = initializers.orthogonal
    bias_init: Initializer = initializers.zeros
    update_bias_init: Initializer | None = None
    method: str = "auto"
    deterministic: bool = False
    reverse: bool = False
    carry_init: Initializer = initializers.zeros

    def __post_init__(self) -> None:
        check_parts(self)
        checks.function("carry_init", self.carry_init)
        self._stack()
        if not isinstance(self.parent, flax.core.Scope):  # Flax makes a copy, bound to a scope, for every call
            layers.warn_of_unused_dropout(self.dropout, self.num_layers, stacklevel=4)
        super().__post_init__()

    @nn.nowrap
    def _stack(self) -> layers.Stack:
        return layers.Stack(
            cells.GRU(self.reset_after, self.gate_fn, self.activation_fn),
            self.features,
            num_layers=self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
            recurrent_dropout=self.recurrent_dropout,
            time_major=self.time_major,
            dtype=self.dtype,
            method=self.method,
            reverse=self.reverse,
        )

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        seq_lengths: jax.Array | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
        return_carry: bool | None = None,
        deterministic: bool | None = None,
        init_key: jax.Array | None = None,
        return_layers: bool = False,
    ) -> Outputs | tuple[Carry, Outputs]:
        """Runs over whole sequences.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: where the call begins, drawn from carry_init if None. With one layer and direction a state,
            (*batch, features) or what broadcasts to it; else a tuple or a list of such, layer 0 forward, layer 0
            backward, layer 1 forward, and so on, or all of them stacked, (layers·directions, *batch, features). What
            has one axis more than a state is stacked.
          seq_lengths: (*batch,) integers in [0, time]; steps at and after a sequence's length are masked.
          mask: (*batch, time) or (time, *batch), bool or numbers, of which those that are not 0, NaN too, are True;
            where False the step is masked: states are held, outputs are 0.
          resets: as mask; where True an episode begins at this step, with reset_state. No direction carries its state
            from one episode into another. They do not count beyond a sequence's length.
          reset_state: the state with which an episode begins, in one of the forms of initial_carry, or a single state
            for all layers and directions; zero if None, and to be given where carry_init is not zeros. In a backward
            direction it is the state that follows an episode's last step; that which follows the last step of the call
            stays initial_carry. Without resets it does nothing.
          return_carry: takes the place of the attribute.
          deterministic: takes the place of the attribute.
          init_key: PRNG key for carry_init; as in `nn.RNN`, `jax.random.key(0)` if None. Zeros do not use it.
          return_layers: whether outputs are those of every layer.

        Returns:
          outputs (*batch, time, directions·features), or with time first if time_major; with return_layers a tuple of
          such, one for each layer, before dropout. Or (carry, outputs) if return_carry, with the last state of each
          layer and direction in the form, dtype and weak type of initial_carry, in float32 where the computation is
          narrower and initial_carry is None. (A bfloat16 carry is rounded between calls, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        stack = self._stack()
        inputs = arguments.inputs(inputs, None, self.time_major)
        if initial_carry is None and not initializers.is_zeros(self.carry_init):
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.initialize_carry(key, arguments.step_shape(inputs, self.time_major))
        is_random = stack.is_random and not (self.deterministic if deterministic is None else deterministic)
        carry, outputs = stack.run(
            self._params(stack.widths(inputs.shape[-1])),
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_state=reset_state,
            key=self.make_rng("dropout") if is_random else None,
            return_layers=return_layers,
        )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    @classmethod
    def from_model(
        cls,
        model: Model,
        *,
        return_carry: bool = False,
        carry_init: Initializer = initializers.zeros,
        **changes: Any,
    ) -> tuple[Self, dict[str, Any]]:
        """Layer and variables of a trained model: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`.

        Args:
          model: as `gru_jax.convert` makes them.
          return_carry: what a call returns by default.
          carry_init: initializer of the carry.
          **changes: options that weights do not say, in place of the model's, as time_major, dropout, dtype, gate_fn
            and activation_fn.

        Raises:
          TypeError, ValueError: if the parameters of the model do not fit, or there is no such option.
        """
        model, arguments = layer_arguments(model, changes)
        return cls(return_carry=return_carry, carry_init=carry_init, **arguments), to_linen(model)

    @nn.nowrap
    def model(self, variables: Mapping[str, Any]) -> Model:
        """Parameters and stack as one value, for `gru_jax.convert`; the way back from `from_model`.

        Args:
          variables: as `init` returns them.

        Raises:
          TypeError, ValueError: if a name or a shape does not fit; names it.
        """
        stack = self._stack()
        return check_model(Model(from_linen(variables, cell=stack.cell).params, stack))

    def step(
        self,
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: `layer.apply(variables, carry, x_t, method="step")`.

        A call on a sequence is this, step by step. Nothing is dropped.

        Args:
          carry: the state before, from `initialize_carry` at first, in one of the forms of initial_carry.
          x_t: (*batch, in_features).
          resets: (*batch,), bool or numbers, of which those that are not 0 are True; where True an episode begins, and
            reset_state takes the place of carry.
          reset_state: in one of the forms of carry, or a single state for all layers; zero if None.

        Returns:
          (carry, output): the new state in the form, dtype and weak type of the old one, and (*batch, features). (A
          bfloat16 carry is rounded at every step, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, the layers run backwards too, or reset_state is
            missing beside a carry_init other than zeros.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        stack = self._stack()
        x_t = arguments.step_input("x_t", x_t, None)
        params = self._params(stack.widths(x_t.shape[-1]))
        return stack.step(params, carry, x_t, resets=resets, reset_state=reset_state)

    @nn.compact
    def _params(self, widths: Sequence[int]) -> list[cells.Params]:
        """The parameters of every cell, under the names that Flax would give them."""

        def cell(width: int) -> list[cells.Params]:
            made = GRUCell(
                self.features,
                self.gate_fn,
                self.activation_fn,
                self.kernel_init,
                self.recurrent_kernel_init,
                self.bias_init,
                self.dtype,
                self.param_dtype,
                reset_after=self.reset_after,
                use_bias=self.use_bias,
                update_bias_init=self.update_bias_init,
                name="cell",
            )
            return [made.gru_params(width)]

        def layer(width: int) -> list[cells.Params]:
            if not self.bidirectional:
                return cell(width)
            forward, backward = (Scope(cell, name=name) for name in ("forward_rnn", "backward_rnn"))
            return forward(width) + backward(width)

        if self.num_layers == 1:
            return layer(widths[0])
        firsts = enumerate(widths[:: len(widths) // self.num_layers])
        return [params for i, width in firsts for params in Scope(layer, name=f"layers_{i}")(width)]

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: Sequence[int]) -> Carry:
        """The state of every layer and direction before the first step.

        Args:
          rng: PRNG key for carry_init; None will do for zeros.
          input_shape: shape of the input of one step, (*batch, in_features), as for Flax's cells.

        Returns:
          (*batch, features), or a tuple of such; in float32 where the computation is narrower.

        Raises:
          TypeError, ValueError: if input_shape does not fit.
        """
        shape = arguments.input_shape(input_shape, None)
        return self._stack().initial_carry(shape, self.param_dtype, self.carry_init, rng)
