"""The GRU with block-diagonal recurrent weights."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import checks, gates, initializers
from gru_jax.cells.affine import biased, project, split
from gru_jax.cells.packed import Inits, PackedCell
from gru_jax.serialization import serializable


@serializable
class BlockParams(NamedTuple):
    """Parameters of a GRU with block-diagonal recurrent weights, gates in the order r, z, n.

    Attributes:
      kernel: W, (D, 3H).
      recurrent_kernel: U, (heads, H/heads, 3H/heads), the blocks of the three gates side by side.
      bias: b, (3H,), or None.
      recurrent_bias: c_n, (H,), or None.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    recurrent_bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class BlockGRU(PackedCell[BlockParams]):
    """A GRU with block-diagonal recurrent weights: `heads` groups of units, each of which depends on itself only.

    ::

        z = σ(x W_z + h U_z + b_z)              r = σ(x W_r + h U_r + b_r)
        n = tanh(x W_n + b_n + r ⊙ (h U_n + c_n))
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    These are the equations of `gru_jax.CUDNN`, where U_r, U_z and U_n consist of blocks (H/heads, H/heads) on the
    diagonal. With one head it is that GRU. ``update_bias_init`` draws b_z, ``recurrent_kernel_init`` each block.

    `BlockParams`, 3 (DH + H²/heads + H) + H of them.

    Attributes:
      heads: the number of blocks, which divides the number of units.

    Raises:
      TypeError, ValueError: if heads is not a positive integer.

    Reference:
      D. Hafner, J. Pasukonis, J. Ba, T. Lillicrap: Mastering diverse domains through world models, arXiv:2301.04104,
      whose code (danijar/dreamerv3, dreamerv3/nets.py) has such recurrent weights, of 8 blocks, in a larger cell.

    >>> cell = BlockGRU(heads=2)
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> params.recurrent_kernel.shape, cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    ((2, 2, 6), (2, 4))
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"
    params_type: ClassVar[Any] = BlockParams

    heads: int = 8

    def __post_init__(self) -> None:
        checks.integer("heads", self.heads, at_least=1)

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        width = features // self.heads
        return super().layout(in_features, features) | {
            "recurrent_kernel": ("(heads, features/heads, 3·features/heads)", (self.heads, width, 3 * width)),
            "recurrent_bias": ("(features,)", (features,)),
        }

    def features(self, params: BlockParams) -> int:
        heads, width, _ = params.recurrent_kernel.shape
        return heads * width

    def draw_recurrent_kernel(self, key: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        if features % self.heads:
            raise ValueError(f"features must be a multiple of heads = {self.heads}, got {features}")
        return draw_blocks(key, self.heads, features // self.heads, inits, dtype)

    def gate_values(self, params: BlockParams, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_r, x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        h_r, h_z, h_n = _block_product(h_tm1, params.recurrent_kernel)
        r = gates.reset_gate(x_r, h_r)
        n = gates.candidate_reset_after(x_n, biased(h_n, params.recurrent_bias), r)
        return {"r": r, "z": gates.update_gate(x_z, h_z), "n": n}


def draw_blocks(key: jax.Array, heads: int, width: int, inits: Inits, dtype: Any) -> jax.Array:
    """Draws recurrent weights (heads, width, 3·width), every block of every gate separately."""
    keys = jax.random.split(key, heads)
    return jax.vmap(lambda k: initializers.per_gate(inits.recurrent_kernel, k, width, width, dtype))(keys)


def _block_product(h: jax.Array, kernel: jax.Array) -> list[jax.Array]:
    """h U of each gate, (*batch, H), accumulated in the dtype of h; kernel is (heads, H/heads, 3H/heads)."""
    parts = h.reshape(*h.shape[:-1], *kernel.shape[:2]).astype(kernel.dtype)
    packed = jnp.einsum("...hi,hij->...hj", parts, kernel, preferred_element_type=h.dtype)
    return [gate.reshape(h.shape) for gate in split(packed)]
