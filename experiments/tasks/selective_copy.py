"""Selective copying: recall a few symbols that came at random times among noise.

Gu & Dao, Mamba: linear-time sequence modeling with selective state spaces, 2023 (arXiv:2312.00752), section 4.1.1.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, exact_match
from experiments.tasks.symbolic import Symbolic, one_hot

RECALLED = 4
VOCABULARY = 8
NOISE, MARKER = 0, VOCABULARY - 1
SYMBOLS = VOCABULARY - 2


@dataclasses.dataclass(frozen=True)
class SelectiveCopy(Symbolic):
    """L steps show four symbols at random times and noise otherwise; at four more steps they are recalled in order.

    Inputs are one-hot over eight categories: 0 the noise, 1–6 the symbols, 7 the marker, which is shown at the last
    four steps, as in the S4 authors' generator (github.com/state-spaces/s4, copying.py; Mamba has L = 4096, 16 symbols
    to recall and 16 categories). Symbols are drawn with replacement, their times without. Targets are the categories of
    the symbols; the loss counts the four steps of the marker alone. The marker does not tell which symbol to recall, so
    a predictor without memory guesses among six: ln 6.

    >>> task = SelectiveCopy()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=16)
    >>> print(task.show(batch))
    input  26......2...2...::::
    target ................2622
    """

    name = "selective-copy"
    summary = "recall four symbols that came among noise"
    paper = "Gu & Dao 2023, arXiv:2312.00752, section 4.1.1"
    criterion = Criterion(
        "all four symbols right in > 0.99 of the sequences", "exact_match", 0.99, higher_is_better=True
    )
    scores = ("recall_accuracy",)
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
        # A step shows a symbol if it is among the first RECALLED in a random order of all steps.
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
