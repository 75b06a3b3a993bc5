"""Cells as a user writes them: what is special about each is a part of the contract of `gru_jax.cells.CellBase`."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gru_jax.cells import CellBase


@dataclasses.dataclass(frozen=True)
class Joined(CellBase):
    """Input and state in one product, which is normalised; a second one depends on it. Parameters in a dict."""

    def init(self, key, in_features, features, /):
        one, two, three = jax.random.split(key, 3)
        shape = (in_features + features, 2 * features)
        return {
            "gates": jax.random.normal(one, shape) / 2,
            "scale": 1 + jax.random.normal(two, (2 * features,)) / 4,
            "out": jax.random.normal(three, (features, features)) / 2,
        }

    def step(self, params, h, x, /):
        both = jnp.concatenate([x, h], axis=-1) @ params["gates"]
        mean = both.mean(-1, keepdims=True)
        both = params["scale"] * (both - mean) / jnp.sqrt(((both - mean) ** 2).mean(-1, keepdims=True) + 1e-3)
        z, n = jnp.split(both, 2, -1)
        return jax.nn.sigmoid(z) * h + jnp.tanh((jax.nn.sigmoid(n) * h) @ params["out"])


class Clock(NamedTuple):
    """A state with a leaf of integers, whose shape is not that of the other.

    Attributes:
      t: steps since the episode began, (*batch, 1).
      h: (*batch, features).
    """

    t: jax.Array
    h: jax.Array


@dataclasses.dataclass(frozen=True)
class Clocked(CellBase):
    """Every other unit moves at every second step only: a clockwork net (Koutník et al. 2014) with two periods."""

    def init(self, key, in_features, features, /):
        one, two = jax.random.split(key)
        return (jax.random.normal(one, (in_features, features)), jax.random.normal(two, (features, features)) / 2)

    def initial_state(self, params, batch, dtype, /):
        return Clock(jnp.zeros((*batch, 1), jnp.int32), jnp.zeros((*batch, params[1].shape[-1]), dtype))

    def output(self, state, /):
        return state.h

    def step(self, params, state, x, /):
        kernel, recurrent_kernel = params
        moves = (jnp.arange(recurrent_kernel.shape[-1]) % 2 == 0) | (state.t % 2 == 0)
        n = jnp.tanh(x @ kernel + state.h @ recurrent_kernel)
        return Clock(state.t + 1, jnp.where(moves, n, state.h))


@dataclasses.dataclass(frozen=True)
class Heads(CellBase):
    """Recurrent weights in blocks, contracted by einsum; the same weights serve two products."""

    def init(self, key, in_features, features, /):
        one, two = jax.random.split(key)
        shape = (2, features // 2, features // 2)
        return {"W": jax.random.normal(one, (in_features, features)), "U": jax.random.normal(two, shape) / 2}

    def step(self, params, h, x, /):
        def heads(h):
            parts = h.reshape(*h.shape[:-1], 2, -1)
            return jnp.einsum("...ni,nij->...nj", parts, params["U"]).reshape(h.shape)

        return jnp.tanh(x @ params["W"] + heads(h) - heads(jnp.sin(h)))


@dataclasses.dataclass(frozen=True)
class Dropped(Joined):
    """A step that takes a recurrent dropout mask."""

    def step(self, params, h, x, /, *, recurrent_dropout_mask=None):
        seen = h if recurrent_dropout_mask is None else recurrent_dropout_mask * h
        return super().step(params, seen, x)


OWN = {"joined": Joined(), "clocked": Clocked(), "heads": Heads()}
