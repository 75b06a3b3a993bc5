"""Layers of any cell for Flax's nnx."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gru_jax import arguments, carries, checks, dropout, initializers, layers, parameters
from gru_jax.cells import Cell
from gru_jax.initializers import Initializer
from gru_jax.layers import Carry, Outputs
from gru_jax.models import Model
from gru_jax.nnx import variables
from gru_jax.nnx.variables import Streams
from gru_jax.options import with_signature


class RNN(nnx.Module):
    """A cell over whole sequences: stacked layers, one or both directions, dropout, zoneout, masks and resets.

    The cell is one of `gru_jax.cells`, or a user's own (`gru_jax.cells.CellBase`). Each leaf of its parameters is an
    `nnx.Param` under its path: ``layer.cells[0].kernel`` if they are `gru_jax.Params`, ``layer.cells[0]["W"]`` if they
    are a dict. A module of Flax, such as `nnx.GRUCell`, is run by `flax.nnx.RNN`, not by this.

    It runs `gru_jax.unroll`: everything that does not depend on the state, and most of the gradient, is parallel over
    time. It draws random numbers only for dropout and zoneout, one key per call. Without these it has no random state,
    and a call changes nothing. `model.eval()` and `model.train()` set `deterministic`.

    Attributes:
      cells: the parameters of each layer and direction: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
      stack: the static part: the equations, the number of layers, rates, layout.

    >>> import gru_jax
    >>> layer = RNN(gru_jax.cells.LSTM(), 3, 4, num_layers=2, bidirectional=True, dropout=0.1, rngs=nnx.Rngs(0))
    >>> outputs = layer(jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7]))
    >>> outputs.shape
    (2, 10, 8)
    >>> layer.eval()
    >>> carry, outputs = layer(jnp.ones((2, 10, 3)), return_carry=True)
    >>> [(state.h.shape, state.c.shape) for state in carry]
    [((2, 4), (2, 4)), ((2, 4), (2, 4)), ((2, 4), (2, 4)), ((2, 4), (2, 4))]
    """

    @with_signature()
    def __init__(
        self,
        cell: Cell,
        in_features: int,
        features: int,
        *,
        init_options: Mapping[str, Any] | None = None,
        return_carry: bool = False,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        """Draws the parameters.

        Args:
          cell: the equations.
          in_features, features: widths of the input, and of the outputs of each layer and direction.
          init_options: keywords for `cell.init`, as ``{"update_bias_init": gru_jax.initializers.forget_bias}``.
          return_carry: whether a call returns the carry by default.
          param_dtype: of the parameters. It is passed to a `cell.init` that takes a dtype.
          carry_init: initializer of the carry, for calls without initial_carry; if None the carry is fresh, as the cell
            defines it.
          rngs: source of the parameters, stream "params"; of dropout and zoneout, stream "dropout"; and of carries that
            are not zero, stream "carry".
          **options: those of `gru_jax.options.Options`: num_layers, bidirectional, dropout, recurrent_dropout, zoneout,
            time_major, dtype, method, reverse.

        Raises:
          TypeError, ValueError: if an argument is invalid; names it.

        Warns:
          UserWarning: if dropout is given and there is a single layer, so that nothing is dropped.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.param_dtype(param_dtype)
        parameters.check_init_options(init_options)
        self.in_features = in_features
        self.features = features
        self.param_dtype = param_dtype
        self.return_carry = return_carry
        self.deterministic = False
        self.stack = layers.Stack(cell, features, **options)
        dropout.warn_of_unused_dropout(self.stack.dropout, self.stack.num_layers)
        variables.check_rngs(rngs, "params")
        if self.stack.is_random:
            variables.check_rngs(rngs, "dropout")
        if carry_init is not None:
            checks.function("carry_init", carry_init)
        draws_carry = not initializers.is_zeros(carry_init)
        if draws_carry:
            variables.check_rngs(rngs, "carry")
        self.carry_init = carry_init
        self.cells = nnx.List([self._cell(width, init_options, rngs) for width in self.stack.widths(in_features)])
        # After the parameters: if all share one stream, dropout must not change what the parameters are.
        self.rngs = rngs.dropout.fork() if self.stack.is_random else nnx.data(None)
        self.carry_rngs = rngs.carry.fork() if draws_carry else nnx.data(None)

    def _cell(self, in_features: int, init_options: Mapping[str, Any] | None, rngs: nnx.Rngs) -> Any:
        """The parameters of one cell as variables."""
        drawn = parameters.init_params(
            self.stack.cell, rngs.params(), in_features, self.features, self.param_dtype, init_options
        )
        return nnx.data(jax.tree.map(nnx.Param, drawn))

    @property
    def params(self) -> tuple[Any, ...]:
        """The parameters of each layer and direction, as `gru_jax.unroll` takes them."""
        return tuple(map(variables.values, self.cells))

    @property
    def model(self) -> Model:
        """Parameters and stack as one callable value, without Flax. `gru_jax.convert` takes the model of a GRU.

        A property, since the layer holds its parameters. In `gru_jax.linen` it is a method, which takes them.
        """
        return Model(self.params, self.stack)

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
        """Runs over whole sequences. A state is an array (*batch, features), or another pytree, as the cell defines it.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: the state with which the call begins; carry_init draws it if None. For one layer and direction
            a state, (*batch, features) or an array that broadcasts to it; otherwise a tuple or a list of states in the
            order of `cells`, or all of them stacked, (layers·directions, *batch, features). A stacked carry has one
            axis more than a state.
          seq_lengths: (*batch,) integers in [0, time]. Steps at and after the length of a sequence are masked.
          mask: (*batch, time) or (time, *batch), bool, or numbers, which are True if not 0 (so NaN is True). Where
            False the step is masked: the state stays as it is and the output is 0.
          resets: like mask. Where True an episode begins at this step, with reset_state. No direction carries its state
            from one episode into another. Resets at and after the length of a sequence have no effect.
          reset_state: the state with which an episode begins, in one of the forms of initial_carry, or one state for
            all layers and directions. Zero if None; it must be given if carry_init is not zeros. In a backward
            direction it follows the last step of an episode, while initial_carry follows the last step of the call.
            Without resets it has no effect.
          return_carry: overrides the constructor's.
          deterministic: if True, nothing is dropped, and zoneout is its expectation. It overrides the attribute.
          rngs: source of masks and carries, instead of the streams that the constructor made.
          return_layers: whether to return the outputs of every layer.

        Returns:
          The outputs, (*batch, time, directions·features), or with time first if time_major; with return_layers a tuple
          of such arrays, one for each layer, before dropout. With return_carry (carry, outputs), where carry is the
          last state of each layer and direction, in the form, dtype and weak type of initial_carry; without one, in
          float32 if the computation is narrower. (A bfloat16 carry is rounded between calls, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length whose value is known does not fit.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        draws = self.stack.is_random and not (self.deterministic if deterministic is None else deterministic)
        draws_carry = initial_carry is None and not initializers.is_zeros(self.carry_init)
        carry_rngs: Any = self.carry_rngs if rngs is None else rngs
        dropout_rngs: Any = self.rngs if rngs is None else rngs
        if draws and draws_carry and isinstance(rngs, jax.Array):
            dropout_rngs, carry_rngs = jax.random.split(rngs)
        carry, outputs = self.stack.run(
            self.params,
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_state=reset_state,
            key=variables.draw_key(dropout_rngs, "dropout") if draws else None,
            return_layers=return_layers,
            carry_init=self.carry_init,
            carry_key=variables.carry_key(self.carry_init, carry_rngs) if draws_carry else None,
            in_features=self.in_features,
        )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    def step(
        self,
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving. It computes what a call on a sequence does. Nothing is random.

        Args:
          carry: the state before, at first from `initialize_carry`, in one of the forms of initial_carry.
          x_t: (*batch, in_features).
          resets: (*batch,), bool, or numbers, which are True if not 0. Where True an episode begins: reset_state takes
            the place of carry.
          reset_state: in one of the forms of carry, or one state for all layers; zero if None.

        Returns:
          (carry, output): the new state, in the form, dtype and weak type of the old one, and the output (*batch,
          features). (A bfloat16 carry is rounded at every step, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, layers run backwards, or reset_state is missing and
            carry_init is not zeros.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        return self.stack.step(
            self.params, carry, x_t, resets=resets, reset_state=reset_state, in_features=self.in_features
        )

    def initialize_carry(
        self, input_shape: Sequence[int], rngs: Streams | None = None, carry_init: Initializer | None = None
    ) -> Carry:
        """The state of every layer and direction before the first step.

        Args:
          input_shape: shape of the input of one step, (*batch, in_features), as for Flax's cells.
          rngs: source of the key of carry_init, instead of the stream that the constructor made. Zeros need none.
          carry_init: overrides the constructor's.

        Returns:
          (*batch, features), or a tuple of such arrays; in float32 if the computation is narrower.

        Raises:
          TypeError, ValueError: if input_shape does not fit, or carry_init is not zeros and there are no rngs.
        """
        batch = arguments.input_shape(input_shape, self.in_features)[:-1]
        init = self.carry_init if carry_init is None else carry_init
        key = variables.carry_key(init, self.carry_rngs if rngs is None else rngs)
        return self.stack.initial_carry(self.params, batch, init, key)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets what `nnx.view` may set.

        Args:
          deterministic: whether nothing is random; unchanged if None.
        """
        if deterministic is not None:
            self.deterministic = deterministic
