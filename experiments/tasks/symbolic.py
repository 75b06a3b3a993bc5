"""What tasks of symbols in and symbols out share: one-hot inputs, cross-entropy where an answer is due, only there."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Metrics, Task, accuracy, cross_entropy


class Symbolic(Task):
    """A task whose inputs are one-hot categories and whose answers are classes; steps without an answer weigh nothing.

    So the loss is per answer, a predictor that guesses among n equally likely ones has ln n, and the accuracy counts
    nothing that is trivially right.

    Attributes:
      symbols: a glyph for each of the D input categories; an input of zeros, after the end of a sequence, has none.
      answers: a glyph for each of the K classes.
      accuracy_name: what the accuracy over the answers is called among the metrics.
    """

    symbols: str
    answers: str
    loss_name = "cross-entropy per answer (nats)"
    criterion = "accuracy of the answers > 0.99"
    accuracy_name = "recall_accuracy"

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        return {"loss": self.loss(outputs, batch), self.accuracy_name: accuracy(outputs, batch)}

    def solved(self, metrics: Mapping[str, float]) -> bool:
        return metrics[self.accuracy_name] > 0.99

    def show(self, batch: Batch) -> str:
        # Category −1, after the end, is the blank behind the last glyph.
        shown = jnp.where(batch.inputs[:, 0].any(axis=-1), batch.inputs[:, 0].argmax(axis=-1), -1).tolist()
        due = jnp.where(batch.weights[:, 0] > 0, batch.targets[:, 0], -1).tolist()
        inputs = "".join((self.symbols + " ")[category] for category in shown)
        targets = "".join((self.answers + ".")[category] for category in due)
        return f"input  {inputs.rstrip()}\ntarget {targets[: len(inputs.rstrip())]}"


def one_hot(categories: jax.Array, size: int) -> jax.Array:
    """Categories (…,) int32 as float32 inputs (…, size); a category that is out of range gives zeros."""
    return jax.nn.one_hot(categories, size, dtype=jnp.float32)


def last_step(lengths: jax.Array, steps: int) -> jax.Array:
    """Weights (steps, B) float32: 1 at the last step of each sequence, which has `lengths` (B,) steps."""
    return (jnp.arange(steps, dtype=jnp.int32)[:, None] == lengths - 1).astype(jnp.float32)
