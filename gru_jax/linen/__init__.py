"""The GRU for Flax's linen: cell and loop that take the place of `flax.linen`'s `GRUCell` and `RNN`, and whole layers.

Parameters have the names and shapes that Flax gives them, so that a checkpoint of Flax's modules loads unchanged.
"""

from gru_jax.linen.cell import GRUCell
from gru_jax.linen.layer import GRU
from gru_jax.linen.rnn import RNN

__all__ = ["GRU", "RNN", "GRUCell"]
