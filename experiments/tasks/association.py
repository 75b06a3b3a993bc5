"""Associative recall: which token came with this one before? Multi-query associative recall and induction heads.

Arora et al., Zoology: measuring and improving recall in efficient language models, 2023 (arXiv:2312.04927).
Olsson et al., In-context learning and induction heads, 2022 (arXiv:2209.11895); here in the form of Gu & Dao, Mamba,
2023 (arXiv:2312.00752), section 4.1.2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Recipe, Reference
from experiments.tasks.symbolic import Symbolic, last_step, one_hot

PAIRS = 4
KEYS = "abcdefghijklmnop"
VALUES = KEYS.upper()
# Exponent of the distribution of the gaps between the pairs and the queries.
POWER = 0.01

ORDINARY = "abcdefghijklmno"
SPECIAL = len(ORDINARY)


@dataclasses.dataclass(frozen=True)
class MQAR(Symbolic):
    """Four pairs of a key and a value, then N − 8 steps that show every key once more; its value is the target there.

    Inputs are one-hot over 33 categories: 0 the filler, 16 keys, 16 values (Zoology has 8192 tokens). Keys are drawn
    without replacement, and so are values. A query comes at an even distance 2g after the pairs; other steps show the
    filler. The distances of the four keys are drawn without replacement with P(g) ∝ (g + 1)^(a − 1), a = 0.01, which is
    how repeated word pairs are spaced in text. The loss counts the four queries alone. A query tells nothing about its
    value, one of 16, so the loss without memory is ln 16.

    >>> task = MQAR()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=32)
    >>> print(task.show(batch))
    input  jAkBdImMj.k.....m.............d.
    target ........A.B.....M.............I.
    """

    name = "mqar"
    summary = "recall the values of several keys"
    paper = "Arora et al. 2023, arXiv:2312.04927, section 4 (multi-query associative recall)"
    in_features = 1 + len(KEYS) + len(VALUES)
    out_features = len(VALUES)
    min_length = 4 * PAIRS
    recipe = Recipe(length=64, steps=20_000, hidden=128, batch=64, learning_rate=3e-3)
    symbols = "." + KEYS + VALUES
    answers = VALUES

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_keys, key_values, key_gaps = jax.random.split(key, 3)

        def distinct(key: jax.Array, size: int) -> jax.Array:
            """PAIRS different numbers below `size`, in random order, (PAIRS, B)."""
            return jax.random.uniform(key, (size, batch), jnp.float32).argsort(axis=0)[:PAIRS].astype(jnp.int32)

        keys, values = distinct(key_keys, len(KEYS)), distinct(key_values, len(VALUES))
        # Gumbel top-k: the largest values of log P plus Gumbel noise are a sample without replacement.
        slots = (length - 2 * PAIRS) // 2
        log_p = (POWER - 1) * jnp.log(jnp.arange(1, slots + 1, dtype=jnp.float32))
        noisy = log_p[:, None] + jax.random.gumbel(key_gaps, (slots, batch), jnp.float32)
        gaps = (-noisy).argsort(axis=0)[:PAIRS].astype(jnp.int32)
        at, column = 2 * PAIRS + 2 * gaps, jnp.arange(batch, dtype=jnp.int32)
        empty = jnp.zeros((length, batch), jnp.int32)
        categories = empty.at[0 : 2 * PAIRS : 2].set(1 + keys).at[1 : 2 * PAIRS : 2].set(1 + len(KEYS) + values)
        categories = categories.at[at, column].set(1 + keys)
        weights = jnp.zeros((length, batch), jnp.float32).at[at, column].set(1)
        return Batch(one_hot(categories, self.in_features), empty.at[at, column].set(values), weights)

    def baseline(self, length: int) -> float:
        return math.log(len(VALUES))


@dataclasses.dataclass(frozen=True)
class Induction(Symbolic):
    """Random tokens, and a special one that comes twice, the second time at the end: which token followed the first?

    Inputs are one-hot over 16 categories: 0–14 ordinary tokens, 15 the special one. It comes first at a uniformly
    random step up to the last but two, then at the last step. The target of the last step is the token after its first
    occurrence, an ordinary one; the loss counts no other step. All 15 are equally likely: without memory ln 15.

    >>> task = Induction()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=16)
    >>> print(task.show(batch))
    input  blhhbehhnakk:ji:
    target ...............j
    """

    name = "induction"
    summary = "recall the token that followed the special one"
    paper = "Olsson et al. 2022, arXiv:2209.11895; Gu & Dao 2023, arXiv:2312.00752, section 4.1.2"
    in_features = len(ORDINARY) + 1
    out_features = len(ORDINARY)
    min_length = 3
    recipe = Recipe(length=64, steps=5_000, hidden=64, batch=64, learning_rate=3e-3, beyond=(256,))
    references = (Reference(1.0, 256, "Mamba, Gu & Dao 2023, arXiv:2312.00752, table 2", "recall_accuracy"),)
    symbols = ORDINARY + ":"
    answers = ORDINARY

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_tokens, key_first = jax.random.split(key)
        tokens = jax.random.randint(key_tokens, (length, batch), 0, len(ORDINARY), jnp.int32)
        first = jax.random.randint(key_first, (batch,), 0, length - 2, jnp.int32)
        t = jnp.arange(length, dtype=jnp.int32)[:, None]
        categories = jnp.where((t == first) | (t == length - 1), SPECIAL, tokens)
        answer = jnp.take_along_axis(tokens, first[None] + 1, axis=0)
        weights = last_step(jnp.full((batch,), length, jnp.int32), length)
        return Batch(one_hot(categories, self.in_features), jnp.broadcast_to(answer, (length, batch)), weights)

    def baseline(self, length: int) -> float:
        return math.log(len(ORDINARY))
