"""Recurrent layers for Flax's nnx: a replacement of its `GRUCell`, and layers of any cell."""

from gru_jax.nnx.cell import GRUCell
from gru_jax.nnx.layer import GRU
from gru_jax.nnx.rnn import RNN

__all__ = ["GRU", "RNN", "GRUCell"]
