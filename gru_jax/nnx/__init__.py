"""The GRU for Flax's nnx: a cell that takes the place of `flax.nnx.GRUCell`, and whole layers."""

from gru_jax.nnx.cell import GRUCell
from gru_jax.nnx.layer import GRU

__all__ = ["GRU", "GRUCell"]
