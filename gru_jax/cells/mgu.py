"""The minimal gated unit."""

import dataclasses
from typing import ClassVar

import jax

from gru_jax import gates
from gru_jax.cells.affine import product, project, split
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class MGU(PackedCell[Params]):
    """The minimal gated unit: a GRU that resets before the product, with a single gate in place of both.

    ::

        z = σ(x W_z + h U_z + b_z)
        n = tanh(x W_n + ((1 − z) ⊙ h) U_n + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper writes f for 1 − z, the gate that replaces the state and resets it for the candidate. Its weights W_f,
    U_f, b_f are minus our W_z, U_z, b_z. Our gate keeps, like the update gate of a GRU. ``update_bias_init`` draws b_z.

    `Params`, 2 (DH + H² + H) of them; gates in the order z, n.

    Reference:
      G.-B. Zhou, J. Wu, C.-L. Zhang, Z.-H. Zhou: Minimal gated unit for recurrent neural networks, International
      Journal of Automation and Computing 2016 (arXiv:1603.09420), section 3.

    >>> import jax.numpy as jnp
    >>> cell = MGU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "zn"
    update_gate: ClassVar[str] = "z"

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=2)
        kernel_z, kernel_n = split(params.recurrent_kernel, 2)
        z = gates.update_gate(x_z, product(h_tm1, kernel_z))
        return {"z": z, "n": gates.candidate_reset_before(x_n, product((1 - z) * h_tm1, kernel_n))}
