"""Whole layers for Flax's nnx."""

import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from gru_jax import arguments, carries, cells, checks, initializers, layers
from gru_jax.convert.model import Model, layer_arguments
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.layers import Carry, Outputs
from gru_jax.nnx import variables
from gru_jax.nnx.cell import GRUCell
from gru_jax.nnx.variables import Streams


class GRU(nnx.Module):
    """A GRU over whole sequences: stacked layers, one or both directions, dropout, masks and resets.

    `GRU.from_model` makes one of trained weights: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`, and so on
    for Keras, Flax, Haiku, Equinox and ONNX; `layer.model` is the way back.

    Runs `gru_jax.unroll`, so that the input projection and most of the gradient are parallel over time. It draws random
    numbers only for dropout, one key per call; without dropout it holds no random state and mutates nothing.
    `deterministic` obeys `model.eval()` and `model.train()`.

    Attributes:
      cells: a `GRUCell` for each layer and direction: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
      stack: what does not change: the equations, the number of layers, rates, layout.

    >>> layer = GRU(3, 4, num_layers=2, bidirectional=True, dropout=0.1, rngs=nnx.Rngs(0))
    >>> outputs = layer(jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7]))
    >>> outputs.shape
    (2, 10, 8)
    >>> layer.eval()
    >>> carry, outputs = layer(jnp.ones((2, 10, 3)), return_carry=True)
    >>> [state.shape for state in carry]
    [(2, 4), (2, 4), (2, 4), (2, 4)]
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        reset_after: bool = True,
        use_bias: bool = True,
        time_major: bool = False,
        return_carry: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = initializers.lecun_normal,
        recurrent_kernel_init: Initializer = initializers.orthogonal,
        bias_init: Initializer = initializers.zeros,
        update_bias_init: Initializer | None = None,
        method: str = "auto",
        reverse: bool = False,
        carry_init: Initializer | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Draws the parameters.

        Args:
          in_features, features: widths of the input, and of the state of each layer and direction.
          num_layers: each layer but the first takes the outputs of the one before.
          bidirectional: whether each layer also runs backwards; its outputs then are (..., 2·features), forward first.
          dropout: rate at which the outputs of each layer but the last are dropped, a fresh mask for every element.
          recurrent_dropout: rate at which the state is dropped where it enters the recurrent products; one mask per
            sequence, layer and direction (Gal & Ghahramani, NeurIPS 2016).
          time_major: inputs, outputs, mask and resets have time as their first axis.
          return_carry: what a call returns by default.
          dtype: of the computation; the promotion of inputs and parameters if None. The state stays in float32 where
            it is narrower.
          method: how to run over time, see `gru_jax.unroll`.
          reverse: whether each layer runs backwards only; its outputs stay beside its inputs.
          reset_after, use_bias, param_dtype, gate_fn, activation_fn, kernel_init, recurrent_kernel_init, bias_init,
            update_bias_init: as in `GRUCell`.
          carry_init: initializer of the carry of a call that is given none; zeros if None.
          rngs: source of the parameters, stream "params", of dropout, stream "dropout", and of carries that are not
            zero, stream "carry".

        Raises:
          TypeError, ValueError: if an argument is not of its kind, or rngs lacks a stream.

        Warns:
          UserWarning: if dropout is given and there is one layer, so that nothing is dropped.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.function("gate_fn", gate_fn)
        checks.function("activation_fn", activation_fn)
        self.in_features = in_features
        self.features = features
        self.param_dtype = param_dtype
        self.return_carry = return_carry
        self.deterministic = False
        self.stack = layers.Stack(
            cells.GRU(reset_after, gate_fn, activation_fn),
            features,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            time_major=time_major,
            dtype=dtype,
            method=method,
            reverse=reverse,
        )
        layers.warn_of_unused_dropout(dropout, num_layers, stacklevel=5)
        if self.stack.is_random:
            variables.check_rngs(rngs, "dropout")
        if carry_init is not None:
            checks.function("carry_init", carry_init)
        draws_carry = not initializers.is_zeros(carry_init)
        if draws_carry:
            variables.check_rngs(rngs, "carry")
        self.carry_init = carry_init
        make = functools.partial(
            GRUCell,
            hidden_features=features,
            gate_fn=gate_fn,
            activation_fn=activation_fn,
            kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
            reset_after=reset_after,
            use_bias=use_bias,
            update_bias_init=update_bias_init,
            carry_init=carry_init,
        )
        self.cells = nnx.List([make(width) for width in self.stack.widths(in_features)])
        # After the parameters, so that these are the same with dropout as without where both share one stream.
        self.rngs = rngs.dropout.fork() if self.stack.is_random else nnx.data(None)
        self.carry_rngs = rngs.carry.fork() if draws_carry else nnx.data(None)

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
        rngs: Streams | None = None,
        return_layers: bool = False,
    ) -> Outputs | tuple[Carry, Outputs]:
        """Runs over whole sequences.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: where the call begins, drawn from carry_init if None. With one layer and direction a state,
            (*batch, features) or what broadcasts to it; else a tuple or a list of such in the order of `cells`, or all
            of them stacked, (layers·directions, *batch, features). What has one axis more than a state is stacked.
          seq_lengths: (*batch,) integers in [0, time]; steps at and after a sequence's length are masked.
          mask: (*batch, time) or (time, *batch), bool or numbers, of which those that are not 0, NaN too, are True;
            where False the step is masked: states are held, outputs are 0.
          resets: as mask; where True an episode begins at this step, with reset_state. No direction carries its state
            from one episode into another. They do not count beyond a sequence's length.
          reset_state: the state with which an episode begins, in one of the forms of initial_carry, or a single state
            for all layers and directions; zero if None, and to be given where carry_init is not zeros. In a backward
            direction it is the state that follows an episode's last step; that which follows the last step of the call
            stays initial_carry. Without resets it does nothing.
          return_carry: takes the place of the constructor's.
          deterministic: nothing is dropped if True; takes the place of the attribute.
          rngs: where dropout masks and carries come from, in place of the streams made by the constructor.
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
        drops = self.stack.is_random and not (self.deterministic if deterministic is None else deterministic)
        draws_carry = initial_carry is None and not initializers.is_zeros(self.carry_init)
        carry_rngs: Any = self.carry_rngs if rngs is None else rngs
        dropout_rngs: Any = self.rngs if rngs is None else rngs
        if drops and draws_carry and isinstance(rngs, jax.Array):
            dropout_rngs, carry_rngs = jax.random.split(rngs)
        key = variables.draw_key(dropout_rngs, "dropout") if drops else None
        if draws_carry:
            inputs = arguments.inputs(inputs, self.in_features, self.stack.time_major)
            initial_carry = self.initialize_carry(arguments.step_shape(inputs, self.stack.time_major), carry_rngs)
        carry, outputs = self.stack.run(
            [cell.params for cell in self.cells],
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_state=reset_state,
            key=key,
            return_layers=return_layers,
        )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    @classmethod
    def from_model(
        cls,
        model: Model,
        *,
        rngs: nnx.Rngs | None = None,
        return_carry: bool = False,
        carry_init: Initializer | None = None,
        **changes: Any,
    ) -> Self:
        """The layer of a trained model: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`.

        Args:
          model: as `gru_jax.convert` makes them. JAX turns float64 into float32 unless jax_enable_x64 is on.
          rngs: source of dropout, stream "dropout", and of carries, stream "carry"; needed only if the layer draws any.
          return_carry: what a call returns by default.
          carry_init: initializer of the carry.
          **changes: options that weights do not say, in place of the model's, as time_major, dropout, dtype, gate_fn
            and activation_fn.

        Raises:
          TypeError, ValueError: if the parameters of the model do not fit, or there is no such option.
        """
        model, arguments = layer_arguments(model, changes)
        layer = cls(
            model.params[0].in_features,
            # Replaced at once: an orthogonal matrix would take seconds to compile.
            kernel_init=initializers.zeros,
            recurrent_kernel_init=initializers.zeros,
            return_carry=return_carry,
            carry_init=carry_init,
            rngs=nnx.Rngs(0) if rngs is None else rngs,
            **arguments,
        )
        for cell, params in zip(layer.cells, model.params, strict=True):
            for name, value in params._asdict().items():
                if value is not None:
                    getattr(cell, name).set_value(jnp.asarray(value))
        return layer

    @property
    def model(self) -> Model:
        """Parameters and stack as one value, for `gru_jax.convert`."""
        return Model(tuple(cell.params for cell in self.cells), self.stack)

    def step(
        self,
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: a call on a sequence is this, step by step. Nothing is dropped.

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
        params = [cell.params for cell in self.cells]
        return self.stack.step(params, carry, x_t, resets=resets, reset_state=reset_state)

    def initialize_carry(
        self, input_shape: Sequence[int], rngs: Streams | None = None, carry_init: Initializer | None = None
    ) -> Carry:
        """The state of every layer and direction before the first step; zeros draw nothing.

        Args:
          input_shape: shape of the input of one step, (*batch, in_features), as for Flax's cells.
          rngs: where a random carry_init takes its key from, in place of the stream made by the constructor.
          carry_init: takes the place of the constructor's.

        Returns:
          (*batch, features), or a tuple of such; in float32 where the computation is narrower.

        Raises:
          TypeError, ValueError: if input_shape does not fit, or a carry_init other than zeros has no rngs.
        """
        shape = arguments.input_shape(input_shape, self.in_features)
        init = self.carry_init if carry_init is None else carry_init
        key = variables.carry_key(init, self.carry_rngs if rngs is None else rngs)
        return self.stack.initial_carry(shape, self.param_dtype, init, key)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` may set.

        Args:
          deterministic: nothing is dropped if True.
        """
        if deterministic is not None:
            self.deterministic = deterministic
