"""The copy memory problem: recall ten symbols after a long blank.

Hochreiter & Schmidhuber 1997; here in the form of Arjovsky, Shah & Bengio, Unitary evolution recurrent neural networks,
ICML 2016 (arXiv:1511.06464), section 5.2.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Metrics, Recipe, Reference, Task, cross_entropy

SYMBOLS = 8
BLANK = 8
DELIMITER = 9
RECALLED = 10


@dataclasses.dataclass(frozen=True)
class Copy(Task):
    """Ten symbols out of eight, T − 1 blanks, a delimiter, ten blanks: at those last ten, recall the symbols.

    Inputs are one-hot over ten categories, 0–7 the symbols, 8 the blank, 9 the delimiter; targets are categories,
    T + 10 blanks, then the symbols. The loss is the cross-entropy per step in nats, over all T + 20 steps. Knowing when
    to answer but not what gives 10 ln 8 / (T + 20). Steps where a blank is due are trivially right, so the criterion
    counts the ten recalled ones alone.

    >>> task = Copy()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=5)
    >>> print(task.show(batch))
    input  5005330753....:..........
    target ...............5005330753
    """

    name = "copy"
    summary = "recall ten symbols after a blank"
    paper = "Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016, arXiv:1511.06464, section 5.2"
    loss_name = "cross-entropy per step (nats)"
    criterion = "accuracy on the ten recalled symbols > 0.99"
    in_features = SYMBOLS + 2
    out_features = SYMBOLS + 2
    min_length = 1
    recipe = Recipe(length=50, steps=30_000, hidden=128, batch=16, learning_rate=3e-3)
    references = (Reference(0.0197, 1000, "GRU, Bai et al. 2018, arXiv:1803.01271, table 1"),)

    def steps(self, length: int) -> int:
        return length + 2 * RECALLED

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        symbols = jax.random.randint(key, (RECALLED, batch), 0, SYMBOLS, jnp.int32)

        def blanks(steps: int) -> jax.Array:
            return jnp.full((steps, batch), BLANK, jnp.int32)

        delimiter = jnp.full((1, batch), DELIMITER, jnp.int32)
        shown = jnp.concatenate([symbols, blanks(length - 1), delimiter, blanks(RECALLED)])
        targets = jnp.concatenate([blanks(length + RECALLED), symbols])
        inputs = jax.nn.one_hot(shown, self.in_features, dtype=jnp.float32)
        return Batch(inputs, targets, jnp.ones(targets.shape, jnp.float32))

    def baseline(self, length: int) -> float:
        return RECALLED * math.log(SYMBOLS) / self.steps(length)

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        right = outputs[-RECALLED:].argmax(axis=-1) == batch.targets[-RECALLED:]
        return {"loss": self.loss(outputs, batch), "recall_accuracy": right.mean(dtype=jnp.float32)}

    def solved(self, metrics: Mapping[str, float]) -> bool:
        return metrics["recall_accuracy"] > 0.99

    def show(self, batch: Batch) -> str:
        glyphs = "01234567.:"  # eight symbols, the blank, the delimiter
        shown = batch.inputs[:, 0].argmax(axis=-1).tolist()
        return "\n".join(
            [
                "input  " + "".join(glyphs[category] for category in shown),
                "target " + "".join(glyphs[category] for category in batch.targets[:, 0].tolist()),
            ]
        )
