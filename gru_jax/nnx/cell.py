"""A cell that takes the place of `flax.nnx.GRUCell`."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from gru_jax import activations, arguments, carries, cells, checks, initializers, one_step
from gru_jax.gates import Activation
from gru_jax.initializers import Initializer
from gru_jax.nnx import variables


class GRUCell(nnx.RNNCellBase):
    """A GRU cell that takes the place of `flax.nnx.GRUCell`, also inside `nnx.RNN` and `nnx.Bidirectional`.

    It computes the same as Flax's cell as long as `recurrent_bias` is zero, as it is at first. That is the recurrent
    bias of the candidate, which cuDNN, PyTorch and Flax's linen have and Flax's nnx cell has not. A zero carry needs no
    random numbers.

    Attributes:
      kernel: input weights of the gates r, z, n side by side, (in_features, 3·hidden_features).
      recurrent_kernel: (hidden_features, 3·hidden_features).
      bias: (3·hidden_features,), or None.
      recurrent_bias: (hidden_features,), or None without bias or with reset_after=False.

    >>> cell = GRUCell(in_features=3, hidden_features=4, rngs=nnx.Rngs(0))
    >>> carry = cell.initialize_carry((2, 3))
    >>> carry, output = cell(carry, jnp.ones((2, 3)))
    >>> nnx.RNN(cell)(jnp.ones((2, 10, 3), jnp.float32)).shape
    (2, 10, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = initializers.lecun_normal,
        recurrent_kernel_init: Initializer = initializers.orthogonal,
        bias_init: Initializer = initializers.zeros,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        keep_rngs: bool = False,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        recurrent_kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        reset_after: bool = True,
        use_bias: bool = True,
        update_bias_init: Initializer | None = None,
    ) -> None:
        """Draws the parameters.

        Args:
          in_features, hidden_features: widths of input and state.
          gate_fn, activation_fn: activations of the gates and of the candidate.
          kernel_init, recurrent_kernel_init, bias_init: initializers, applied to each gate separately.
          dtype, promote_dtype: of the computation, and the function that casts inputs and parameters, as in
            `nnx.Linear`.
          param_dtype: of the parameters.
          carry_init, keep_rngs: initializer of the carry, and whether to keep a stream forked from rngs.carry for it.
          rngs: source of the parameters, stream "params".
          kernel_metadata, recurrent_kernel_metadata, bias_metadata: of the variables; the last for both biases.
          reset_after: whether the reset gate acts after the recurrent product, as in Flax, or before it.
          use_bias: whether there are biases.
          update_bias_init: initializer of the update gate's bias, e.g. `gru_jax.initializers.chrono(100)`; bias_init if
            None.

        Raises:
          TypeError, ValueError: if an argument is invalid; names it.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.integer("hidden_features", hidden_features, at_least=1)
        inits: dict[str, Any] = {
            "kernel_init": kernel_init,
            "recurrent_kernel_init": recurrent_kernel_init,
            "bias_init": bias_init,
            "update_bias_init": update_bias_init,
        }
        functions = {"gate_fn": gate_fn, "activation_fn": activation_fn, "promote_dtype": promote_dtype}
        arguments.gru_options(inits, functions, use_bias, param_dtype)
        checks.dtype("dtype", dtype)
        if carry_init is not None:
            checks.function("carry_init", carry_init)
        variables.check_rngs(rngs, "params")
        if keep_rngs:
            variables.check_rngs(rngs, "carry")
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.gate_fn = activations.canonical(gate_fn)
        self.activation_fn = activations.canonical(activation_fn)
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype
        self.carry_init = carry_init
        self.reset_after = reset_after
        self.use_bias = use_bias
        self.rngs = rngs.carry.fork() if keep_rngs else nnx.data(None)
        key = rngs.params()
        shapes = {
            "kernel_init": (in_features, hidden_features),
            "recurrent_kernel_init": (hidden_features, hidden_features),
        }
        boxes: dict[str, Any] = {}
        for name, init in inits.items():
            if init is not None:
                inits[name], boxes[name] = variables.unbox(init, key, shapes.get(name, (hidden_features,)))
        drawn = self.equations.init(key, in_features, hidden_features, use_bias=use_bias, dtype=param_dtype, **inits)
        kernel_box, recurrent_box, bias_box = (boxes[f"{name}_init"] for name in ("kernel", "recurrent_kernel", "bias"))
        self.kernel = variables.variable(drawn.kernel, kernel_box, kernel_metadata)
        self.recurrent_kernel = variables.variable(drawn.recurrent_kernel, recurrent_box, recurrent_kernel_metadata)
        self.bias = variables.variable(drawn.bias, bias_box, bias_metadata)
        self.recurrent_bias = variables.variable(drawn.recurrent_bias, bias_box, bias_metadata)

    @property
    def equations(self) -> cells.GRU:
        """The equations, as `gru_jax.unroll` takes them."""
        return cells.GRU(self.reset_after, self.gate_fn, self.activation_fn)

    @property
    def params(self) -> cells.Params:
        """The parameters, as `gru_jax.unroll` takes them."""
        return cells.Params(
            self.kernel.get_value(),
            self.recurrent_kernel.get_value(),
            None if self.bias is None else self.bias.get_value(),
            None if self.recurrent_bias is None else self.recurrent_bias.get_value(),
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
          carry: the state before, (*batch, hidden_features).
          inputs: (*batch, in_features).
          resets: (*batch,), bool, or numbers, which are True if not 0. Where True an episode begins: reset_state takes
            the place of carry.
          reset_state: (*batch, hidden_features), or an array that broadcasts to it; zero if None.

        Returns:
          (new_carry, output), both the new state (*batch, hidden_features). output has the dtype of the computation,
          new_carry that of carry. (A bfloat16 carry is rounded at every step, see `gru_jax.unroll`.)

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or reset_state is missing though carry_init is not
            zeros.
        """
        carries.check_reset_state(resets, reset_state, self.carry_init)
        carry, inputs, resets, reset_state = arguments.step(
            carry, inputs, resets, reset_state, self.in_features, self.hidden_features
        )
        params = self.params
        self.equations.check(params)
        kernel, recurrent_kernel, bias, recurrent_bias = params
        # Three at a time: a user's promote_dtype expects what an nnx.Linear passes. Without the carry, which stays
        # float32 in half precision.
        x, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        x, recurrent_kernel, recurrent_bias = self.promote_dtype(
            (x, recurrent_kernel, recurrent_bias), dtype=self.dtype
        )
        params = cells.Params(kernel, recurrent_kernel, bias, recurrent_bias)
        return one_step.step(self.equations, params, carry, x, resets, reset_state)

    def initialize_carry(
        self,
        input_shape: Sequence[int],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> jax.Array:
        """The state before the first step.

        Args:
          input_shape: shape of the input of one step, (*batch, in_features).
          rngs: source of the key of carry_init. Zeros need none.
          carry_init: overrides the constructor's.

        Returns:
          (*batch, hidden_features).

        Raises:
          ValueError: if input_shape does not fit, or carry_init is not zeros and there are no rngs.
        """
        batch = arguments.input_shape(input_shape, self.in_features)[:-1]
        zero = jnp.zeros((*batch, self.hidden_features), one_step.carry_dtype(self.dtype, self.param_dtype))
        init = self.carry_init if carry_init is None else carry_init
        return carries.initial(init, variables.carry_key(init, self.rngs if rngs is None else rngs), [zero])

    @property
    def num_feature_axes(self) -> int:
        """1: inputs are vectors."""
        return 1
