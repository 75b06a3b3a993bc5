"""Layers for Flax's linen: the base of all layers, and the GRU."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gru_jax import arguments, carries, cells, checks, dropout, initializers, layers
from gru_jax.carries import Carry
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.layers import Outputs
from gru_jax.linen.cell import GRUCell
from gru_jax.linen.parameters import Scope, check_gru_options
from gru_jax.models import EQUATION_FIELDS, Model, check_model, layer_arguments
from gru_jax.options import Options, options_of


class Layer(nn.Module, Options, kw_only=True):
    """Base of the layers, which differ in where their parameters lie. It has the options of `gru_jax.options.Options`.

    Attributes:
      return_carry: whether a call returns the carry by default.
      param_dtype: of the parameters.
      deterministic: if True, nothing is dropped, and zoneout is its expectation.
      carry_init: initializer of the carry, for calls without initial_carry; if zeros the carry is fresh, as the cell
        defines it.
    """

    return_carry: bool = False
    param_dtype: Any = jnp.float32
    deterministic: bool = False
    carry_init: Initializer = initializers.zeros

    def __post_init__(self) -> None:
        checks.param_dtype(self.param_dtype)
        checks.function("carry_init", self.carry_init)
        self._stack()
        if not isinstance(self.parent, flax.core.Scope):  # Flax binds a copy to a scope for every call
            dropout.warn_of_unused_dropout(self.dropout, self.num_layers)
        super().__post_init__()

    @nn.nowrap
    def _stack(self) -> layers.Stack:
        """The static part: the equations, the number of layers, rates, layout."""
        raise NotImplementedError

    @nn.nowrap
    def _like(self, in_features: int) -> Any:
        """Shapes and dtypes of the parameters of a cell."""
        raise NotImplementedError

    @nn.nowrap
    def _params_in(self, variables: Mapping[str, Any]) -> Sequence[Any]:
        """The parameters of each layer and direction, out of variables, whose names are checked."""
        raise NotImplementedError

    def _params(self, stack: layers.Stack, in_features: int) -> Sequence[Any]:
        """The parameters of each layer and direction, drawn if they do not exist."""
        raise NotImplementedError

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
        """Runs over whole sequences. A state is an array (*batch, features), or another pytree, as the cell defines it.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: the state with which the call begins; carry_init draws it if None. For one layer and direction
            a state, (*batch, features) or an array that broadcasts to it; otherwise a tuple or a list of states, layer
            0 forward, layer 0 backward, layer 1 forward, and so on, or all of them stacked, (layers·directions, *batch,
            features). A stacked carry has one axis more than a state.
          seq_lengths: (*batch,) integers in [0, time]. Steps at and after the length of a sequence are masked.
          mask: (*batch, time) or (time, *batch), bool, or numbers, which are True if not 0 (so NaN is True). Where
            False the step is masked: the state stays as it is and the output is 0.
          resets: like mask. Where True an episode begins at this step, with reset_state. No direction carries its state
            from one episode into another. Resets at and after the length of a sequence have no effect.
          reset_state: the state with which an episode begins, in one of the forms of initial_carry, or one state for
            all layers and directions. Zero if None; it must be given if carry_init is not zeros. In a backward
            direction it follows the last step of an episode, while initial_carry follows the last step of the call.
            Without resets it has no effect.
          return_carry, deterministic: override the attributes.
          init_key: PRNG key for carry_init; `jax.random.key(0)` if None, as in `nn.RNN`. Zeros do not use it.
          return_layers: whether to return the outputs of every layer.

        Returns:
          The outputs, (*batch, time, directions·features), or with time first if time_major; with return_layers a tuple
          of such arrays, one for each layer, before dropout. With return_carry (carry, outputs), where carry is the
          last state of each layer and direction, in the form, dtype and weak type of initial_carry; without one, in
          float32 if the computation is narrower. (A bfloat16 carry is rounded between calls, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length whose value is known does not fit.
        """
        carry, outputs = self._run(
            self._stack(),
            inputs,
            deterministic,
            init_key,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_state=reset_state,
            return_layers=return_layers,
        )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    def _run(
        self,
        stack: layers.Stack,
        inputs: Any,
        deterministic: bool | None,
        init_key: jax.Array | None,
        **arguments_of_run: Any,
    ) -> tuple[Carry, Outputs]:
        """A call by `stack`, which may differ from the attributes; `arguments_of_run` are those of `Stack.run`."""
        resets, reset_state = (arguments_of_run.get(name) for name in ("resets", "reset_state"))
        carries.check_reset_state(resets, reset_state, self.carry_init)
        is_random = stack.is_random and not (self.deterministic if deterministic is None else deterministic)
        draws_carry = arguments_of_run.get("initial_carry") is None and not initializers.is_zeros(self.carry_init)
        inputs = arguments.inputs(inputs, None, stack.time_major)
        return stack.run(
            self._params(stack, inputs.shape[-1]),
            inputs,
            key=self.make_rng("dropout") if is_random else None,
            carry_init=self.carry_init,
            carry_key=jax.random.key(0) if draws_carry and init_key is None else init_key,
            **arguments_of_run,
        )

    def step(
        self,
        carry: Carry,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Carry | None = None,
    ) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: `layer.apply(variables, carry, x_t, method="step")`.

        It computes what a call on a sequence does. Nothing is random.

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
        stack = self._stack()
        x_t = arguments.step_input("x_t", x_t, None)
        params = self._params(stack, x_t.shape[-1])
        return stack.step(params, carry, x_t, resets=resets, reset_state=reset_state)

    @nn.nowrap
    def model(self, variables: Mapping[str, Any]) -> Model:
        """Parameters and stack as one callable value, without Flax. `gru_jax.convert` takes the model of a GRU.

        A method, since the layer does not hold its parameters. In `gru_jax.nnx` it is a property.

        Args:
          variables: as `init` returns them.

        Raises:
          TypeError, ValueError: if a name or a shape does not fit; names it.
        """
        return check_model(Model(tuple(self._params_in(variables)), self._stack()))

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: Sequence[int]) -> Carry:
        """The state of every layer and direction before the first step.

        Args:
          rng: PRNG key for carry_init; it may be None for zeros.
          input_shape: shape of the input of one step, (*batch, in_features), as for Flax's cells.

        Returns:
          (*batch, features), or a tuple of such arrays; in float32 if the computation is narrower. A cell whose fresh
          state depends on its parameters is given zeros for them, since the layer does not hold them.

        Raises:
          TypeError, ValueError: if input_shape does not fit.
        """
        *batch, in_features = arguments.input_shape(input_shape, None)
        stack = self._stack()
        like = [self._like(width) for width in stack.widths(in_features)]
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        return stack.initial_carry(zeros, batch, self.carry_init, rng)


class GRU(Layer):
    """A GRU over whole sequences: stacked layers, one or both directions, dropout, zoneout, masks and resets.

    `GRU.from_model` makes one from trained weights: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`, likewise
    for Keras, Flax, Haiku, Equinox and ONNX. `layer.model(variables)` is the way back.

    It runs `gru_jax.unroll`: the input projection and most of the gradient are parallel over time. The parameter tree
    of one layer is that of `nn.RNN(nn.GRUCell(...))`, or of `nn.Bidirectional` with two of these; several layers are
    such trees under layers_0, layers_1 and so on. Random numbers are drawn only for dropout and zoneout, from the
    stream "dropout".

    Attributes:
      features: width of the state of each layer and direction.
      reset_after, use_bias, gate_fn, activation_fn, kernel_init, recurrent_kernel_init, bias_init, update_bias_init: as
        in `GRUCell`.
      num_layers, bidirectional, dropout, recurrent_dropout, zoneout, time_major, dtype, method, reverse: see
        `gru_jax.options.Options`.
      return_carry, param_dtype, deterministic, carry_init: as in `RNN`.

    Raises:
      TypeError, ValueError: on construction, if an attribute is invalid; names it.

    Warns:
      UserWarning: on construction, if dropout is given and there is a single layer, so that nothing is dropped.

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
    _: dataclasses.KW_ONLY
    reset_after: bool = True
    use_bias: bool = True
    gate_fn: Activation = jax.nn.sigmoid
    activation_fn: Activation = jnp.tanh
    kernel_init: Initializer = initializers.lecun_normal
    recurrent_kernel_init: Initializer = initializers.orthogonal
    bias_init: Initializer = initializers.zeros
    update_bias_init: Initializer | None = None

    def __post_init__(self) -> None:
        check_gru_options(self)
        super().__post_init__()

    @nn.nowrap
    def _stack(self) -> layers.Stack:
        cell = cells.GRU(**{field: getattr(self, name) for name, field in EQUATION_FIELDS.items()})
        return layers.Stack(cell, self.features, **options_of(self))

    @nn.nowrap
    def _like(self, in_features: int) -> cells.Params:
        shapes = ((width, 3 * self.features) for width in (in_features, self.features))
        kernels: Any = (jax.ShapeDtypeStruct(shape, self.param_dtype) for shape in shapes)
        return cells.Params(*kernels)

    @nn.nowrap
    def _params_in(self, variables: Mapping[str, Any]) -> Sequence[cells.Params]:
        from gru_jax.convert.frameworks import from_linen

        return from_linen(variables, cell=self._stack().cell).params

    @nn.compact
    def _params(self, stack: layers.Stack, in_features: int) -> list[cells.Params]:
        """The parameters of every cell, under the names that Flax gives them."""
        names = [field.name for field in dataclasses.fields(GRUCell) if field.name not in ("parent", "name")]

        def cell(width: int) -> list[cells.Params]:
            return [GRUCell(**{name: getattr(self, name) for name in names}, name="cell").gru_params(width)]

        def layer(width: int) -> list[cells.Params]:
            if not self.bidirectional:
                return cell(width)
            forward, backward = (Scope(cell, name=name) for name in ("forward_rnn", "backward_rnn"))
            return forward(width) + backward(width)

        if self.num_layers == 1:
            return layer(in_features)
        widths = enumerate(stack.widths(in_features)[:: stack.directions])
        return [params for i, width in widths for params in Scope(layer, name=f"layers_{i}")(width)]

    @classmethod
    def from_model(cls, model: Model, **changes: Any) -> tuple[Self, dict[str, Any]]:
        """Layer and variables of a trained model: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`.

        Args:
          model: as from `gru_jax.convert`.
          **changes: options that override the model's, such as time_major, dropout, dtype, gate_fn and activation_fn;
            and return_carry and carry_init.

        Raises:
          TypeError, ValueError: if the parameters of the model do not fit, or an option is not known.
        """
        from gru_jax.convert.frameworks import to_linen

        model, arguments = layer_arguments(model, changes)
        return cls(**arguments), to_linen(model)
