"""Recurrent layers for Flax's linen: replacements of its `GRUCell` and `RNN`, and layers of any cell.

Parameters of a GRU have the names and shapes that Flax gives them, so that a checkpoint of Flax's modules loads.
"""

from gru_jax.linen.cell import GRUCell
from gru_jax.linen.layer import GRU
from gru_jax.linen.rnn import RNN

__all__ = ["GRU", "RNN", "GRUCell"]
