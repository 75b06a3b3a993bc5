"""The LSTM."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax.cells.affine import product, project, split
from gru_jax.cells.packed import PackedCell, Params
from gru_jax.serialization import serializable


@serializable
class LSTMState(NamedTuple):
    """The state of an LSTM.

    Attributes:
      h: the output, (*batch, features).
      c: the memory, (*batch, features).
    """

    h: jax.Array
    c: jax.Array


@dataclasses.dataclass(frozen=True)
class LSTM(PackedCell[Params]):
    """Long short-term memory with a forget gate and without peepholes.

    ::

        i = σ(x W_i + h U_i + b_i)    f = σ(x W_f + h U_f + b_f)
        g = tanh(x W_g + h U_g + b_g)    o = σ(x W_o + h U_o + b_o)
        c_t = f ⊙ c_tm1 + i ⊙ g
        h_t = o ⊙ tanh(c_t)

    `Params`, 4 (DH + H² + H) of them; gates in the order i, f, g, o, as in PyTorch, whose two biases are one here. The
    forget gate keeps: f = 1 leaves the memory as it is. ``update_bias_init`` draws b_f.

    Reference:
      S. Hochreiter, J. Schmidhuber: Long short-term memory, Neural Computation 1997; F. Gers, J. Schmidhuber, F.
      Cummins: Learning to forget, Neural Computation 2000; Goodfellow et al. 2016, equations 10.40 to 10.44, there with
      σ in place of the tanh of g.

    >>> cell = LSTM()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_1, c_1 = cell.step(params, cell.initial_state(params, (2,)), jnp.ones((2, 3)))
    >>> h_1.shape, c_1.shape
    ((2, 4), (2, 4))
    """

    order: ClassVar[str] = "ifgo"
    update_gate: ClassVar[str] = "f"

    def init(self, *args: Any, opposed_input_gate: bool = False, **options: Any) -> Params:
        """Fresh parameters.

        Args:
          *args, **options: as for `gru_jax.GRU.init`.
          opposed_input_gate: whether the input gate's bias is minus the forget gate's, so that i = 1 − f at first: the
            chrono initialisation of an LSTM (Tallec & Ollivier, arXiv:1804.11188).

        Returns:
          `Params`.

        Raises:
          TypeError, ValueError: as `gru_jax.GRU.init`; and if opposed_input_gate is given without biases.
        """
        params = super().init(*args, **options)
        if not opposed_input_gate:
            return params
        if params.bias is None:
            raise ValueError("opposed_input_gate=True needs use_bias=True, got use_bias=False")
        _, b_f, b_g, b_o = split(params.bias, 4)
        return params._replace(bias=jnp.concatenate([-b_f, b_f, b_g, b_o]))

    def initial_state(self, params: Params, batch: Sequence[int] = (), dtype: Any = None) -> LSTMState:
        """A fresh state, zero: `LSTMState` of arrays (*batch, features)."""
        zero = super().initial_state(params, batch, dtype)
        return LSTMState(zero, zero)

    def gate_values(self, params: Params, state_tm1: LSTMState, x_t: jax.Array, /) -> dict[str, jax.Array]:
        h_tm1 = state_tm1.h
        x_gates = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=4)
        h_gates = split(product(h_tm1, params.recurrent_kernel), 4)
        i, f, g, o = (x_g + h_g for x_g, h_g in zip(x_gates, h_gates, strict=True))
        return {"i": jax.nn.sigmoid(i), "f": jax.nn.sigmoid(f), "g": jnp.tanh(g), "o": jax.nn.sigmoid(o)}

    def next_state(self, gates: dict[str, jax.Array], state_tm1: LSTMState, /) -> LSTMState:
        c_t = gates["f"] * state_tm1.c + gates["i"] * gates["g"]
        return LSTMState(gates["o"] * jnp.tanh(c_t), c_t)
