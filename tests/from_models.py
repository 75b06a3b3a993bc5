"""Layers of both APIs with the weights of a model, as functions of arrays."""

import functools

import numpy as np

import gru_jax
from tests.models import inputs, model

BATCH, TIME, IN_FEATURES, FEATURES = 3, 6, 2, 4
RESETS = np.array([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]], bool)


def made(options, dtype="float64"):
    return model(gru_jax.CUDNN, IN_FEATURES, FEATURES, dtype=dtype, **options)


def sequences():
    """(batch, time, in_features) in float64."""
    return inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)


def module(api, one, method=None, **changes):
    """A layer of one API with the weights of a model, as a function; or its method."""
    if api == "nnx":
        layer = gru_jax.nnx.GRU.from_model(one, **changes)
        return layer if method is None else getattr(layer, method)
    layer, variables = gru_jax.linen.GRU.from_model(one, **changes)
    return functools.partial(layer.apply, variables, method=method)
