"""The GRU with a refine gate."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gru_jax import gates
from gru_jax.cells.affine import biased, product, project, split
from gru_jax.cells.packed import Inits, PackedCell, Params
from gru_jax.gates import interpolate


@dataclasses.dataclass(frozen=True)
class RefineGRU(PackedCell[Params]):
    """A GRU with a refine gate, which moves the update gate within (z², 1 − (1 − z)²): it learns even when saturated.

    ::

        r = σ(x W_r + h U_r + b_r)      z = σ(x W_z + h U_z + b_z)      s = σ(x W_s + h U_s + b_s)
        n = tanh(x W_n + b_n + r ⊙ (h U_n + c_n))
        g = s ⊙ (1 − (1 − z)²) + (1 − s) ⊙ z² = z + (2s − 1) ⊙ z ⊙ (1 − z)
        h_t = g ⊙ h_tm1 + (1 − g) ⊙ n

    Except for g it is `gru_jax.CUDNN`. With ``update_bias_init=gru_jax.initializers.uniform_gate`` it is the paper's
    UR-GRU: uniform gate initialisation and a refine gate, whose bias starts as b_s = −b_z, as with any
    ``update_bias_init``. (In the paper b_z is one parameter, which both gates use; here they are two.) In terms of
    gates that replace, 1 − z and 1 − s, g has the same form.

    `Params`, 4 (DH + H² + H) + H of them; gates in the order r, z, s, n.

    Reference:
      A. Gu, C. Gulcehre, T. Le Paine, M. Hoffman, R. Pascanu: Improving the gating mechanism of recurrent neural
      networks, ICML 2020 (arXiv:1910.09890), section 3, there for the forget gate of an LSTM.

    >>> cell = RefineGRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "rzsn"
    update_gate: ClassVar[str] = "z"

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return super().layout(in_features, features) | {"recurrent_bias": ("(features,)", (features,))}

    def draw_bias(self, keys: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        bias = super().draw_bias(keys, features, inits, dtype)
        if inits.update_bias is None:
            return bias
        b_r, b_z, _, b_n = split(bias, 4)
        return jnp.concatenate([b_r, b_z, -b_z, b_n])

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_r, x_z, x_s, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=4)
        h_r, h_z, h_s, h_n = split(product(h_tm1, params.recurrent_kernel), 4)
        r, z, s = gates.reset_gate(x_r, h_r), gates.update_gate(x_z, h_z), jax.nn.sigmoid(x_s + h_s)
        n = gates.candidate_reset_after(x_n, biased(h_n, params.recurrent_bias), r)
        return {"r": r, "z": z, "s": s, "n": n, "g": gates.refine(z, s)}

    def next_state(self, gates: dict[str, jax.Array], h_tm1: jax.Array, /) -> jax.Array:
        return interpolate(gates["g"], h_tm1, gates["n"])
