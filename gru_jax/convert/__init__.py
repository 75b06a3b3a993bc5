"""Weights of trained GRUs from and to other frameworks and files: arrays in, arrays out, no framework imported."""

from gru_jax.convert.model import Model as Model
