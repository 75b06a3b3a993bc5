"""The GRU for JAX: pure gate equations, composed over time, with every derivative, and wrapped as Flax modules.

>>> import jax, jax.numpy as jnp, gru_jax
>>> cell = gru_jax.GRU()
>>> params = cell.init(jax.random.key(0), in_features=8, features=16)
>>> h_T, hs = gru_jax.unroll(cell, params, jnp.ones((100, 32, 8)))
>>> hs.shape
(100, 32, 16)
"""

import importlib
from typing import Any

from gru_jax import cells, gates, initializers
from gru_jax.cells import CHO2014, CUDNN, GOODFELLOW, GRU, Params
from gru_jax.lowerings.report import lowerings
from gru_jax.recurrence import save_states
from gru_jax.settings import config
from gru_jax.unroll import unroll

__version__ = "0.1.0"

__all__ = [
    "CHO2014",
    "CUDNN",
    "GOODFELLOW",
    "GRU",
    "Params",
    "cells",
    "config",
    "convert",
    "gates",
    "initializers",
    "linen",
    "lowerings",
    "nnx",
    "save_states",
    "unroll",
]


def __getattr__(name: str) -> Any:
    # Importing Flax takes a second. Users of the functions need neither Flax nor the converters.
    if name in ("convert", "linen", "nnx"):
        return importlib.import_module(f"gru_jax.{name}")
    raise AttributeError(f"module 'gru_jax' has no attribute {name!r}")
