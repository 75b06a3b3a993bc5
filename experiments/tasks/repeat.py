"""Repeat previous: repeat at every step the symbol of k steps ago.

Morad et al., POPGym: benchmarking partially observable reinforcement learning, ICLR 2023 (arXiv:2303.01859); here the
answers are supervised targets instead of rewards.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Recipe
from experiments.tasks.symbolic import Symbolic, one_hot

SUITS = 4
ANSWERS = 48


@dataclasses.dataclass(frozen=True)
class RepeatPrevious(Symbolic):
    """Every step shows one of four suits, one-hot; from step k + 1 on, the target is the suit of k steps ago.

    The length is k, and S = k + 48, so that there are 48 answers for every k. k = 4 has the 52 steps of POPGym's easy
    level; its medium and hard levels have k = 32 and 64. Suits are independent here, while POPGym deals from decks, so
    that the loss, which counts the answers alone, is ln 4 without memory.

    >>> task = RepeatPrevious()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=4)
    >>> print(task.show(batch))
    input  1001330313020333222130031101001013123030032312120303
    target ....100133031302033322213003110100101312303003231212
    """

    name = "repeat-previous"
    summary = "repeat the symbol of k steps ago, at every step"
    paper = "Morad et al. 2023, arXiv:2303.01859 (RepeatPrevious)"
    in_features = SUITS
    out_features = SUITS
    min_length = 1
    recipe = Recipe(length=16, steps=10_000, hidden=64, batch=32, learning_rate=3e-3, init="default")
    symbols = answers = "0123"

    def steps(self, length: int) -> int:
        return length + ANSWERS

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        suits = jax.random.randint(key, (length + ANSWERS, batch), 0, SUITS, jnp.int32)
        targets = jnp.roll(suits, length, axis=0)
        weights = jnp.broadcast_to(jnp.arange(length + ANSWERS)[:, None] >= length, suits.shape)
        return Batch(one_hot(suits, SUITS), targets, weights.astype(jnp.float32))

    def baseline(self, length: int) -> float:
        return math.log(SUITS)
