"""The GRU with diagonal recurrent weights."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax

from gru_jax import gates
from gru_jax.cells.affine import lifted, project, split
from gru_jax.cells.block import draw_blocks
from gru_jax.cells.packed import Inits, PackedCell
from gru_jax.serialization import serializable


@serializable
class DiagonalParams(NamedTuple):
    """Parameters of a GRU with diagonal recurrent weights, gates in the order r, z, n.

    Attributes:
      kernel: W, (D, 3H).
      recurrent_kernel: u, (3H,), the diagonals.
      bias: b, (3H,), or None.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class DiagonalGRU(PackedCell[DiagonalParams]):
    """A GRU whose recurrent weights are vectors: a unit depends on the input and on itself. Also called IndyGRU.

    ::

        z = σ(x W_z + u_z ⊙ h + b_z)            r = σ(x W_r + u_r ⊙ h + b_r)
        n = tanh(x W_n + u_n ⊙ r ⊙ h + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    So the Jacobian ∂h_t/∂h_tm1 is diagonal, and a parallel scan over time is affordable. It makes no difference whether
    the reset comes before the product or after it. ``recurrent_kernel_init`` draws each weight as a matrix (1, 1); of
    these 1 and −1 are orthogonal. ``update_bias_init`` draws b_z.

    `DiagonalParams`, 3 (DH + 2H) of them.

    Reference:
      F. Danieli, P. Rodríguez, M. Sarabia, X. Suau, L. Zappella: ParaRNN: Unlocking parallel training of nonlinear RNNs
      for large language models, arXiv:2510.21450, which trains such a GRU in parallel over time, after a summary: the
      paper itself was not at hand. S. Li et al.: Independently recurrent neural network, CVPR 2018 (arXiv:1803.04831),
      for a network without gates.

    >>> import jax.numpy as jnp
    >>> cell = DiagonalGRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> params.recurrent_kernel.shape, cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    ((12,), (2, 4))
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"
    params_type: ClassVar[Any] = DiagonalParams

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout = super().layout(in_features, features)
        return layout | {"recurrent_kernel": ("(3·features,)", (3 * features,))}

    def features(self, params: DiagonalParams) -> int:
        return params.recurrent_kernel.shape[0] // 3

    def draw_recurrent_kernel(self, key: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        return draw_blocks(key, features, 1, inits, dtype)[:, 0].T.reshape(3 * features)

    def gate_values(self, params: DiagonalParams, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_r, x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        u_r, u_z, u_n = split(lifted(params.recurrent_kernel, h_tm1.ndim).astype(h_tm1.dtype))
        r = gates.reset_gate(x_r, u_r * h_tm1)
        n = gates.candidate_reset_before(x_n, u_n * (r * h_tm1))
        return {"r": r, "z": gates.update_gate(x_z, u_z * h_tm1), "n": n}
