"""The chaos-free network."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from gru_jax.cells.affine import product, project, split
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class CFN(PackedCell[Params]):
    """The chaos-free network: without inputs its state decays to zero, whatever its gates do.

    ::

        f = σ(x W_f + h U_f + b_f)
        i = σ(x W_i + h U_i + b_i)
        n = tanh(x W_n + b_n)
        h_t = f ⊙ tanh(h_tm1) + i ⊙ n

    The paper writes θ for f, which keeps, and η for i. It has no b_n; zero gives the paper's network.
    ``update_bias_init`` draws b_f.

    `Params`, 3 (DH + H) + 2 H² of them; gates in the order f, i, n, of which f and i have recurrent weights.

    Reference:
      T. Laurent, J. von Brecht: A recurrent neural network without chaos, ICLR 2017 (arXiv:1612.06212);
      the paper itself was not at hand.

    >>> cell = CFN()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "fin"
    recurrent_order: ClassVar[str] = "fi"
    update_gate: ClassVar[str] = "f"

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_f, x_i, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        h_f, h_i = split(product(h_tm1, params.recurrent_kernel), 2)
        return {"f": jax.nn.sigmoid(x_f + h_f), "i": jax.nn.sigmoid(x_i + h_i), "n": jnp.tanh(x_n)}

    def next_state(self, gates: dict[str, jax.Array], h_tm1: jax.Array, /) -> jax.Array:
        return gates["f"] * jnp.tanh(h_tm1) + gates["i"] * gates["n"]
