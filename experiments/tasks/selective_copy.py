"""Selective copying: recall a few symbols that came at random times among noise.

Gu & Dao, Mamba: linear-time sequence modeling with selective state spaces, 2023 (arXiv:2312.00752), section 4.1.1.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Metrics, Recipe, exact_match
from experiments.tasks.symbolic import Symbolic, one_hot

RECALLED = 4
VOCABULARY = 8
NOISE, MARKER = 0, VOCABULARY - 1
SYMBOLS = VOCABULARY - 2


@dataclasses.dataclass(frozen=True)
class SelectiveCopy(Symbolic):
    """L steps that show four symbols at random times and noise at the others; at four more, recall them in order.

    The vocabulary has eight categories, one-hot: 0 the noise, 1–6 the symbols, 7 the marker, shown at the L + 1st step
    and the three after it, as in the S4 authors' generator (github.com/state-spaces/s4, copying.py; Mamba has L = 4096,
    16 symbols to recall and 16 categories). Symbols are drawn with replacement, their times without. Targets are the
    categories of the symbols, and the loss counts the four steps of the marker alone: guessing among six gives ln 6.
    The marker says that an answer is due but not which, so no single input helps.

    >>> task = SelectiveCopy()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=16)
    >>> print(task.show(batch))
    input  26......2...2...::::
    target ................2622
    """

    name = "selective-copy"
    summary = "recall four symbols that came among noise"
    paper = "Gu & Dao 2023, arXiv:2312.00752, section 4.1.1"
    criterion = "all four symbols right in > 0.99 of the sequences"
    in_features = VOCABULARY
    out_features = VOCABULARY
    min_length = RECALLED
    recipe = Recipe(length=64, steps=5_000, hidden=128, batch=32, learning_rate=5e-3, init="default")
    symbols = answers = ".123456:"

    def steps(self, length: int) -> int:
        return length + RECALLED

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_symbols, key_times = jax.random.split(key)
        recalled = jax.random.randint(key_symbols, (RECALLED, batch), 1, 1 + SYMBOLS, jnp.int32)
        # A step shows a symbol if its place in a random order of all steps is among the first.
        order = jax.random.uniform(key_times, (length, batch), jnp.float32).argsort(axis=0)
        chosen = order.argsort(axis=0) < RECALLED
        nth = jnp.maximum(jnp.cumsum(chosen, axis=0) - 1, 0)
        shown = jnp.where(chosen, jnp.take_along_axis(recalled, nth, axis=0), NOISE)
        categories = jnp.concatenate([shown, jnp.full((RECALLED, batch), MARKER, jnp.int32)])
        targets = jnp.concatenate([jnp.full((length, batch), NOISE, jnp.int32), recalled])
        weights = jnp.broadcast_to(jnp.arange(length + RECALLED)[:, None] >= length, targets.shape)
        return Batch(one_hot(categories, VOCABULARY), targets, weights.astype(jnp.float32))

    def baseline(self, length: int) -> float:
        return math.log(SYMBOLS)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        return super().metrics(outputs, batch) | {"exact_match": exact_match(outputs, batch)}

    def solved(self, metrics: Mapping[str, float]) -> bool:
        return metrics["exact_match"] > 0.99
