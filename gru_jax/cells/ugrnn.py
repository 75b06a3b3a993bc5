"""The update gate RNN."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from gru_jax import activations, checks, gates
from gru_jax.cells.affine import product, project, split
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class UGRNN(PackedCell[Params]):
    """The update gate RNN: a simple recurrent network with one gate, which keeps the state; a GRU without reset gate.

    ::

        z = σ(x W_z + h U_z + b_z)
        n = φ(x W_n + h U_n + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper writes g for z and c for n. Its gate keeps too. ``update_bias_init`` draws b_z.

    `Params`, 2 (DH + H² + H) of them; gates in the order z, n.

    Attributes:
      candidate: φ, elementwise. It must not close over traced values.

    Raises:
      TypeError: if candidate cannot be called.

    Reference:
      J. Collins, J. Sohl-Dickstein, D. Sussillo: Capacity and trainability in recurrent neural networks, ICLR 2017
      (arXiv:1611.09913); the paper itself was not at hand.

    >>> cell = UGRNN()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "zn"
    update_gate: ClassVar[str] = "z"

    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        checks.function("candidate", self.candidate)
        object.__setattr__(self, "candidate", activations.canonical(self.candidate))

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=2)
        h_z, h_n = split(product(h_tm1, params.recurrent_kernel), 2)
        return {"z": gates.update_gate(x_z, h_z), "n": self.candidate(x_n + h_n)}
