"""The GRU for Flax's linen: a cell that takes the place of `flax.linen.GRUCell`, and whole layers.

Parameters have the names and shapes that Flax gives them, so that a checkpoint of Flax's modules loads unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from gru_jax import cells, checks, initializers, layers
from gru_jax.convert.frameworks import from_linen, to_linen
from gru_jax.convert.model import Model, check_model, layer_arguments
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.layers import Carry

__all__ = ["GRU", "GRUCell"]


class GRUCell(nn.RNNCellBase):
    """A GRU cell that takes the place of `flax.linen.GRUCell`, also inside `nn.RNN` and `nn.Bidirectional`.

    Its parameter tree is Flax's: `kernel` and `bias` under ir, iz, in and hn, `kernel` under hr and hz. The same key
    draws the same parameters.

    Attributes:
      features: width of the state.
      gate_fn: activation of the gates.
      activation_fn: activation of the candidate.
      kernel_init: initializer of each gate's input weights.
      recurrent_kernel_init: initializer of each gate's recurrent weights.
      bias_init: initializer of all biases.
      dtype: of the computation; the promotion of inputs and parameters if None.
      param_dtype: of the parameters.
      carry_init: initializer of `initialize_carry`.
      reset_after: whether the reset gate acts after the recurrent product, as in Flax, or before it; there is no bias
        under hn then.
      use_bias: whether there are biases.
      update_bias_init: initializer of the update gate's bias where it is to differ from the others, e.g.
        `gru_jax.initializers.chrono(100)`.

    Raises:
      TypeError, ValueError: on construction, if an attribute is not of its kind.

    >>> cell = GRUCell(features=4)
    >>> carry = cell.initialize_carry(None, (2, 3))
    >>> variables = cell.init(jax.random.key(0), carry, jnp.ones((2, 3)))
    >>> carry, output = cell.apply(variables, carry, jnp.ones((2, 3)))
    >>> sorted(variables["params"]), variables["params"]["hn"]["kernel"].shape
    (['hn', 'hr', 'hz', 'in', 'ir', 'iz'], (4, 4))
    """

    features: int
    gate_fn: Activation = jax.nn.sigmoid
    activation_fn: Activation = jnp.tanh
    kernel_init: Initializer = initializers.lecun_normal
    recurrent_kernel_init: Initializer = initializers.orthogonal
    bias_init: Initializer = initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = initializers.zeros
    reset_after: bool = True
    use_bias: bool = True
    update_bias_init: Initializer | None = None

    def __post_init__(self) -> None:
        checks.integer("features", self.features, at_least=1)
        checks.function("carry_init", self.carry_init)
        layers.check_dtype("dtype", self.dtype)
        _check_parts(self)
        super().__post_init__()

    @property
    def equations(self) -> cells.GRU:
        """The equations, as `gru_jax.unroll` takes them."""
        return cells.GRU(self.reset_after, self.gate_fn, self.activation_fn)

    @nn.compact
    def gru_params(self, in_features: int) -> cells.Params:
        """The parameters, as `gru_jax.unroll` takes them, drawn if they do not exist.

        Args:
          in_features: width of the input.
        """
        widths = {"i": in_features, "h": self.features}
        inits = {"i": self.kernel_init, "h": self.recurrent_kernel_init}
        kernels: dict[str, jax.Array] = {}
        biases: dict[str, Any] = {}
        for side in "ih":
            for gate in "rzn":
                name = side + gate
                has_bias = self.use_bias and (side == "i" or (gate == "n" and self.reset_after))
                given = self.update_bias_init if name == "iz" else None
                bias_init = self.bias_init if given is None else given
                kernels[name], biases[name] = _Gate(
                    self.features, inits[side], bias_init if has_bias else None, self.param_dtype, name=name
                )(widths[side])
        return cells.Params(
            jnp.concatenate([kernels["ir"], kernels["iz"], kernels["in"]], axis=-1),
            jnp.concatenate([kernels["hr"], kernels["hz"], kernels["hn"]], axis=-1),
            jnp.concatenate([biases["ir"], biases["iz"], biases["in"]]) if self.use_bias else None,
            biases["hn"],
        )

    def __call__(self, carry: jax.Array, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step.

        Args:
          carry: the state before, (*batch, features).
          inputs: (*batch, in_features).

        Returns:
          (new_carry, output), both the new state (*batch, features); output has the dtype of the computation, new_carry
          also that of carry where it is wider.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit.
        """
        carry, inputs = layers.check_step(carry, inputs, None, self.features)
        params, x = layers.cast(self.gru_params(inputs.shape[-1]), inputs, self.dtype)
        return layers.step(self.equations, params, carry, x)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: Sequence[int]) -> jax.Array:
        """The state before the first step.

        Args:
          rng: PRNG key for carry_init; None will do for zeros.
          input_shape: shape of the input of one step, (*batch, in_features).

        Returns:
          (*batch, features).

        Raises:
          TypeError, ValueError: if input_shape does not fit.
        """
        batch = layers.check_input_shape(input_shape, None)[:-1]
        return self.carry_init(rng, (*batch, self.features), layers.carry_dtype(self.dtype, self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        """1: inputs are vectors."""
        return 1


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

    Raises:
      TypeError, ValueError: on construction, if an attribute is not of its kind.

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

    def __post_init__(self) -> None:
        _check_parts(self)
        self._stack()
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
        return_carry: bool | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array | tuple[Carry, jax.Array]:
        """Runs over whole sequences.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: zero if None; (*batch, features) with one layer and direction, else a tuple of such: layer 0
            forward, layer 0 backward, layer 1 forward, and so on.
          seq_lengths: (*batch,) integers in [0, time]; steps at and after a sequence's length are masked.
          mask: bool, (*batch, time) or (time, *batch); where False the step is masked: states are held, outputs are 0.
          resets: bool, (*batch, time) or (time, *batch); where True a new episode starts at this step, from the initial
            carry. No direction carries its state from one episode into another.
          return_carry: takes the place of the attribute.
          deterministic: takes the place of the attribute.

        Returns:
          outputs (*batch, time, directions·features), or with time first if time_major; or (carry, outputs) if
          return_carry, with the last state of each layer and direction in the form of initial_carry.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit.
        """
        stack = self._stack()
        inputs = layers.check_inputs(inputs, None, self.time_major)
        is_random = stack.is_random and not (self.deterministic if deterministic is None else deterministic)
        carry, outputs = stack.run(
            self._params(stack.widths(inputs.shape[-1])),
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            key=self.make_rng("dropout") if is_random else None,
        )
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs

    @classmethod
    def from_model(cls, model: Model, *, return_carry: bool = False, **changes: Any) -> tuple[Self, dict[str, Any]]:
        """Layer and variables of a trained model: `GRU.from_model(gru_jax.convert.from_torch(state_dict))`.

        Args:
          model: as `gru_jax.convert` makes them.
          return_carry: what a call returns by default.
          **changes: options that weights do not say, in place of the model's, as time_major, dropout and dtype.

        Raises:
          TypeError, ValueError: if the parameters of the model do not fit, or there is no such option.
        """
        model, arguments = layer_arguments(model, changes)
        return cls(return_carry=return_carry, **arguments), to_linen(model)

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

    def step(self, carry: Carry, x_t: jax.Array) -> tuple[Carry, jax.Array]:
        """One step of every layer, for serving: `layer.apply(variables, carry, x_t, method="step")`.

        A call on a sequence is this, step by step. Nothing is dropped.

        Args:
          carry: the state before, from `initialize_carry` at first: (*batch, features) with one layer, else a tuple of
            such.
          x_t: (*batch, in_features).

        Returns:
          (carry, output): the new state in the form of the old one, and (*batch, features).

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or the layers run backwards too.
        """
        stack = self._stack()
        x_t = layers.check_step_input("x_t", x_t, None)
        return stack.step(self._params(stack.widths(x_t.shape[-1])), carry, x_t)

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
            forward, backward = (_Scope(cell, name=name) for name in ("forward_rnn", "backward_rnn"))
            return forward(width) + backward(width)

        if self.num_layers == 1:
            return layer(widths[0])
        firsts = enumerate(widths[:: len(widths) // self.num_layers])
        return [params for i, width in firsts for params in _Scope(layer, name=f"layers_{i}")(width)]

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: Sequence[int]) -> Carry:
        """The zero state of every layer and direction.

        Args:
          rng: not used.
          input_shape: shape of the input of one step, (*batch, in_features), as for Flax's cells.

        Returns:
          (*batch, features), or a tuple of such, in the form of initial_carry.

        Raises:
          TypeError, ValueError: if input_shape does not fit.
        """
        return self._stack().zero_carry(layers.check_input_shape(input_shape, None), self.param_dtype)


class _Gate(nn.Module):
    """Weights of one gate: `kernel` and, with a bias_init, `bias`, as `nn.Dense` names and draws them."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer | None
    param_dtype: Any

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        kernel = self.param("kernel", self.kernel_init, (width, self.features), self.param_dtype)
        if self.bias_init is None:
            return kernel, None
        return kernel, self.param("bias", self.bias_init, (self.features,), self.param_dtype)


class _Scope(nn.Module):
    """A level of the parameter tree: whatever submodules `build` makes lie under this module's name."""

    build: Callable[[int], list[cells.Params]]

    @nn.compact
    def __call__(self, width: int) -> list[cells.Params]:
        return self.build(width)


def _check_parts(module: GRUCell | GRU) -> None:
    """The attributes that cells and layers share."""
    inits = ("kernel_init", "recurrent_kernel_init", "bias_init", "update_bias_init")
    layers.check_parts(
        {name: getattr(module, name) for name in inits},
        {name: getattr(module, name) for name in ("gate_fn", "activation_fn")},
        module.use_bias,
        module.param_dtype,
    )
