"""Recall ten symbols: after a blank, after a blank of unknown length, or from among noise.

The copy memory problem goes back to Hochreiter & Schmidhuber 1997; here in the form of Arjovsky, Shah & Bengio, Unitary
evolution recurrent neural networks, ICML 2016 (arXiv:1511.06464), section 5.2. The variable gap is from Henaff, Szlam &
LeCun, Recurrent orthogonal networks and long-memory tasks, ICML 2016 (arXiv:1602.06662), the noise from Jing et al.,
Gated orthogonal recurrent units: on learning to forget, Neural Computation 31(4), 2019 (arXiv:1706.02761).
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, Reference, Task, accuracy, cross_entropy

SYMBOLS = 8
BLANK = 8
DELIMITER = 9
RECALLED = 10


@dataclasses.dataclass(frozen=True)
class Recall(Task):
    """Ten symbols from an alphabet of eight are shown; after a delimiter they must be recalled in order.

    Inputs are one-hot over ten categories: 0–7 the symbols, 8 the blank, 9 the delimiter. Targets are categories too,
    blanks but for the ten symbols. The loss is the cross-entropy per step in nats, over all S steps. A model that knows
    when to answer but not what has a loss of 10 ln 8 / S. Blanks are trivial to get right, so the criterion counts the
    ten recalled symbols alone.
    """

    loss_name = "cross-entropy per step (nats)"
    criterion = Criterion("accuracy on the ten recalled symbols > 0.99", "recall_accuracy", 0.99, higher_is_better=True)
    in_features = SYMBOLS + 2
    out_features = SYMBOLS + 2
    recipe = Recipe(length=50, steps=30_000, hidden=128, batch=16, learning_rate=3e-3)

    @abc.abstractmethod
    def steps(self, length: int) -> int: ...

    def baseline(self, length: int) -> float:
        return RECALLED * math.log(SYMBOLS) / self.steps(length)

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        recalled = batch._replace(weights=(batch.targets != BLANK).astype(jnp.float32))
        return {"loss": self.loss(outputs, batch), "recall_accuracy": accuracy(outputs, recalled)}

    def show(self, batch: Batch) -> str:
        glyphs = "01234567.:"  # eight symbols, the blank, the delimiter
        shown = batch.inputs[:, 0].argmax(axis=-1).tolist()
        return "\n".join(
            [
                "input  " + "".join(glyphs[category] for category in shown),
                "target " + "".join(glyphs[category] for category in batch.targets[:, 0].tolist()),
            ]
        )

    def _batch(self, symbols: jax.Array, slots: jax.Array, delimiter: jax.Array | int, length: int) -> Batch:
        """Symbols (10, B), shown at the steps `slots`, (10, B) or (10, 1); targets after `delimiter`, () or (B,)."""
        sequence = jnp.arange(symbols.shape[1], dtype=jnp.int32)
        blanks = jnp.full((self.steps(length), sequence.size), BLANK, jnp.int32)
        shown = blanks.at[slots, sequence].set(symbols).at[delimiter, sequence].set(DELIMITER)
        due = delimiter + 1 + jnp.arange(RECALLED, dtype=jnp.int32)[:, None]
        targets = blanks.at[due, sequence].set(symbols)
        inputs = jax.nn.one_hot(shown, self.in_features, dtype=jnp.float32)
        return Batch(inputs, targets, jnp.ones(targets.shape, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Copy(Recall):
    """Ten symbols, T − 1 blanks, a delimiter, ten blanks: recall the symbols at the last ten steps.

    The encoding, the loss over all T + 20 steps and the baseline, 10 ln 8 / (T + 20), are those of `Recall`.

    >>> task = Copy()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=5)
    >>> print(task.show(batch))
    input  5005330753....:..........
    target ...............5005330753
    """

    name = "copy"
    summary = "recall ten symbols after a blank"
    paper = "Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016, arXiv:1511.06464, section 5.2"
    min_length = 1
    references = (Reference(0.0197, 1000, "GRU, Bai et al. 2018, arXiv:1803.01271, table 1"),)

    def steps(self, length: int) -> int:
        return length + 2 * RECALLED

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        return self._batch(_symbols(key, batch), _at_once(), length + RECALLED - 1, length)


@dataclasses.dataclass(frozen=True)
class CopyVariable(Recall):
    """Ten symbols, 1 to T blanks, a delimiter: recall the symbols at the ten steps after it.

    Unlike in `Copy`, counting steps does not tell when to answer. The number of blanks is uniform (as in Tallec &
    Ollivier, Can recurrent neural networks warp time?, ICLR 2018, section 3). All sequences have the T + 21 steps of
    the longest gap; the targets after the ten symbols are blanks, and count. Baseline: 10 ln 8 / (T + 21).

    >>> task = CopyVariable()
    >>> print(task.show(task.sample(jax.random.key(0), batch=1, length=5)))
    input  7171201554...:............
    target ..............7171201554..
    """

    name = "copy-variable"
    summary = "recall ten symbols after a blank of unknown length"
    paper = "Henaff et al. 2016, arXiv:1602.06662"
    min_length = 1

    def steps(self, length: int) -> int:
        return length + 2 * RECALLED + 1

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_symbol, key_gap = jax.random.split(key)
        gap = jax.random.randint(key_gap, (batch,), 1, length + 1, jnp.int32)
        return self._batch(_symbols(key_symbol, batch), _at_once(), RECALLED + gap, length)


@dataclasses.dataclass(frozen=True)
class Denoise(Recall):
    """Ten symbols among T − 10 blanks, a delimiter, ten blanks: recall the symbols at the last ten steps.

    The blanks are the noise, which must be ignored. The ten steps with symbols are drawn without replacement from the
    first T; all choices are equally likely. (The authors' code draws with replacement, so that some symbols are
    overwritten but must be recalled all the same; and it has nine symbols.) Baseline: 10 ln 8 / (T + 11).

    >>> task = Denoise()
    >>> print(task.show(task.sample(jax.random.key(0), batch=1, length=20)))
    input  71.712..01....5..54.:..........
    target .....................7171201554
    """

    name = "denoise"
    summary = "recall ten symbols that came among noise"
    paper = "Jing et al. 2019, arXiv:1706.02761"
    min_length = RECALLED
    recipe = Recipe(length=60, steps=30_000, hidden=128, batch=16, learning_rate=3e-3)

    def steps(self, length: int) -> int:
        return length + RECALLED + 1

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_symbol, key_slot = jax.random.split(key)
        steps = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[:, None], (length, batch))
        slots = jax.random.permutation(key_slot, steps, independent=True)[:RECALLED]
        return self._batch(_symbols(key_symbol, batch), jnp.sort(slots, axis=0), length, length)


def _symbols(key: jax.Array, batch: int) -> jax.Array:
    """Random symbols, (10, B) int32."""
    return jax.random.randint(key, (RECALLED, batch), 0, SYMBOLS, jnp.int32)


def _at_once() -> jax.Array:
    """The first ten steps, (10, 1) int32."""
    return jnp.arange(RECALLED, dtype=jnp.int32)[:, None]
