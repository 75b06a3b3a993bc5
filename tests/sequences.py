"""Inputs, weights and comparisons that the tests of both module APIs share."""

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax

TIME, BATCH, IN_FEATURES, FEATURES = 5, 3, 2, 4
LENGTHS = (5, 2, 4)
MASK = np.arange(TIME) < np.array(LENGTHS)[:, None]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def random_bias(key, shape, dtype):
    """One function, not a new one for each layer: compiled initialisation is cached by it."""
    return jax.random.normal(key, shape, dtype)


def random_kernel(key, shape, dtype):
    """Recurrent weights that compile sooner than orthogonal ones."""
    return 0.5 * jax.random.normal(key, shape, dtype)


def inputs(seed=0, *, batch=(BATCH,)):
    """(*batch, time, in_features)."""
    return normal(seed, *batch, TIME, IN_FEATURES)


def assert_close(actual, desired, tolerance=1e-12):
    """Equal trees up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for a, d in zip(jax.tree.leaves(actual), jax.tree.leaves(desired), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(d), rtol=0, atol=tolerance)


def composed(cell, params, xs, *, bidirectional, **options):
    """Layers of `unroll` one by one, (time, batch, features): the carry, flat, and the outputs."""
    carry, params = [], iter(params)
    for p in params:
        h_T, hs = gru_jax.unroll(cell, p, xs, **options)
        carry.append(h_T)
        if bidirectional:
            h_T, backward = gru_jax.unroll(cell, next(params), xs, reverse=True, **options)
            carry.append(h_T)
            hs = jnp.concatenate([hs, backward], axis=-1)
        xs = hs
    return tuple(carry), xs


def identity(x):
    """An activation that shows what goes into it."""
    return x


def counting(features):
    """A cell with n = 1 + m ⊙ h, r = 1, z = 0: dropped half the time, its units stay at 1 or run 1, 3, 7, 15, …"""
    zero, one = jnp.zeros((features, features)), jnp.eye(features)
    bias = jnp.repeat(jnp.array([1e3, -1e3, 1.0]), features)
    kernel = jnp.zeros((features, 3 * features))
    return gru_jax.Params(kernel, jnp.concatenate([zero, zero, one], axis=1), bias, jnp.zeros(features))


def copying(features):
    """A cell with h = x, so that its outputs show what dropout has left of its inputs."""
    zero, one = jnp.zeros((features, features)), jnp.eye(features)
    bias = jnp.repeat(jnp.array([1e3, -1e3, 0.0]), features)
    kernel = jnp.concatenate([zero, zero, one], axis=1)
    return gru_jax.Params(kernel, jnp.zeros((features, 3 * features)), bias, jnp.zeros(features))


def assert_one_mask_per_sequence(outputs, rate_of_ones):
    """Of a `counting` cell under recurrent dropout at rate 1/2, (batch, time, features)."""
    steps = outputs.shape[1]
    dropped, kept = np.ones(steps), 2.0 ** np.arange(1, steps + 1) - 1
    courses = np.moveaxis(np.asarray(outputs), 1, -1)
    is_dropped, is_kept = (courses == dropped).all(-1), (courses == kept).all(-1)
    assert (is_dropped | is_kept).all()
    assert abs(is_dropped.mean() - rate_of_ones) < 0.05
    assert (is_dropped[0] != is_dropped[1]).any()


def scan_bodies(jaxpr):
    """The bodies of all scans in a jaxpr, at any depth."""
    for eqn in jaxpr.eqns:
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                if eqn.primitive.name == "scan":
                    yield inner
                yield from scan_bodies(inner)
