"""nnx layers and cells in float64 that the tests of the nnx modules share."""

import jax.numpy as jnp
from flax import nnx

from gru_jax.nnx import GRU, GRUCell
from tests.sequences import FEATURES, IN_FEATURES, random_bias, random_kernel


def make(seed=0, **options):
    """A layer in float64 whose biases are not zero."""
    options = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64, **options}
    return GRU(**{"in_features": IN_FEATURES, "features": FEATURES, "rngs": nnx.Rngs(seed), **options})


def make_cell(seed=0, **options):
    options = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64, **options}
    return GRUCell(IN_FEATURES, FEATURES, rngs=nnx.Rngs(seed), **options)


def assign(cell, params):
    """Gives a cell the parameters of a `gru_jax.Params`."""
    for name, value in params._asdict().items():
        getattr(cell, name)[...] = value.astype(jnp.float64)
