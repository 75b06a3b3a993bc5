"""The GRU for Flax's linen: a cell that takes the place of `flax.linen.GRUCell`, and whole layers.

Parameters have the names and shapes that Flax gives them, so that a checkpoint of Flax's modules loads unchanged.
"""

from gru_jax.linen.cell import GRUCell
from gru_jax.linen.layer import GRU

__all__ = ["GRU", "GRUCell"]
