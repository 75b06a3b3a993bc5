"""Recurrent layers for Flax's nnx: a cell that takes the place of `flax.nnx.GRUCell`, and whole layers of any cell."""

from gru_jax.nnx.cell import GRUCell
from gru_jax.nnx.layer import GRU
from gru_jax.nnx.rnn import RNN

__all__ = ["GRU", "RNN", "GRUCell"]
