"""A cell that takes the place of `flax.linen.GRUCell`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gru_jax import arguments, carries, cells, checks, initializers, one_step
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.linen.parameters import Gate, check_gru_options


class GRUCell(nn.RNNCellBase):
    """A GRU cell that takes the place of `flax.linen.GRUCell`, also inside `nn.RNN` and `nn.Bidirectional`.

    Its parameter tree is Flax's: `kernel` and `bias` under ir, iz, in and hn, `kernel` under hr and hz. The same key
    draws the same parameters. As in Flax, the carry decides how wide the state is; `initialize_carry` makes one of
    width `features`.

    Attributes:
      features: width of the state that `initialize_carry` makes.
      gate_fn: activation of the gates.
      activation_fn: activation of the candidate.
      kernel_init: initializer of each gate's input weights.
      recurrent_kernel_init: initializer of each gate's recurrent weights.
      bias_init: initializer of all biases.
      dtype: of the computation; the promotion of inputs and parameters if None.
      param_dtype: of the parameters.
      carry_init: initializer of `initialize_carry`.
      reset_after: whether the reset gate acts after the recurrent product, as in Flax, or before it. In that case there
        is no bias under hn.
      use_bias: whether there are biases.
      update_bias_init: initializer of the update gate's bias, e.g. `gru_jax.initializers.chrono(100)`; bias_init if
        None.

    Raises:
      TypeError, ValueError: on construction, if an attribute is invalid; names it.

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
        checks.dtype("dtype", self.dtype)
        check_gru_options(self)
        super().__post_init__()

    @property
    def equations(self) -> cells.GRU:
        """The equations, as `gru_jax.unroll` takes them."""
        return cells.GRU(self.reset_after, self.gate_fn, self.activation_fn)

    @nn.compact
    def gru_params(self, in_features: int, features: int | None = None) -> cells.Params:
        """The parameters, as `gru_jax.unroll` takes them, drawn if they do not exist.

        Args:
          in_features: width of the input.
          features: width of the state; by default the attribute.
        """
        features = self.features if features is None else features
        widths = {"i": in_features, "h": features}
        inits = {"i": self.kernel_init, "h": self.recurrent_kernel_init}
        kernels: dict[str, jax.Array] = {}
        biases: dict[str, Any] = {}
        for side in "ih":
            for gate in "rzn":
                name = side + gate
                has_bias = self.use_bias and (side == "i" or (gate == "n" and self.reset_after))
                is_update_bias = name == "iz" and self.update_bias_init is not None
                bias_init = self.update_bias_init if is_update_bias else self.bias_init
                kernels[name], biases[name] = Gate(
                    features, inits[side], bias_init if has_bias else None, self.param_dtype, name=name
                )(widths[side])
        return cells.Params(
            jnp.concatenate([kernels["ir"], kernels["iz"], kernels["in"]], axis=-1),
            jnp.concatenate([kernels["hr"], kernels["hz"], kernels["hn"]], axis=-1),
            jnp.concatenate([biases["ir"], biases["iz"], biases["in"]]) if self.use_bias else None,
            biases["hn"],
        )

    def __call__(
        self,
        carry: jax.Array,
        inputs: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """One step.

        Args:
          carry: the state before, (*batch, features), of any width.
          inputs: (*batch, in_features). Batch axes broadcast.
          resets: (*batch,), bool, or numbers, which are True if not 0. Where True an episode begins: reset_state takes
            the place of carry.
          reset_state: (*batch, features), or an array that broadcasts to it; zero if None.

        Returns:
          (new_carry, output), both the new state (*batch, features). output has the dtype of the computation, new_carry
          that of carry. (A bfloat16 carry is rounded at every step, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or reset_state is missing though carry_init is not
            zeros.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        carry, inputs, resets, reset_state = arguments.step(carry, inputs, resets, reset_state, None, None)
        params = self.gru_params(inputs.shape[-1], carry.shape[-1])
        return one_step.step(self.equations, params, carry, inputs, resets, reset_state, dtype=self.dtype)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array | None, input_shape: Sequence[int]) -> jax.Array:
        """The state before the first step.

        Args:
          rng: PRNG key for carry_init; it may be None for zeros.
          input_shape: shape of the input of one step, (*batch, in_features).

        Returns:
          (*batch, features).

        Raises:
          TypeError, ValueError: if input_shape does not fit.
        """
        batch = arguments.input_shape(input_shape, None)[:-1]
        return self.carry_init(rng, (*batch, self.features), one_step.carry_dtype(self.dtype, self.param_dtype))

    @property
    def num_feature_axes(self) -> int:
        """1: inputs are vectors."""
        return 1
