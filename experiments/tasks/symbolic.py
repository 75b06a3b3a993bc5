"""The base of tasks with symbols as inputs and outputs: one-hot inputs, cross-entropy at the steps with an answer."""

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Criterion, Metrics, Task, accuracy, cross_entropy


class Symbolic(Task):
    """A task whose inputs are one-hot categories and whose answers are classes; steps without an answer have no weight.

    So the loss is per answer, and ln n for a guess among n equally likely ones; the accuracy counts answers alone.

    Attributes:
      symbols: a character for each of the D input categories; an input of zeros, after the end of a sequence, has none.
      answers: a character for each of the K classes.
      accuracy_name: the name of the accuracy over the answers among the metrics.
    """

    symbols: str
    answers: str
    loss_name = "cross-entropy per answer (nats)"
    criterion = Criterion("accuracy of the answers > 0.99", "recall_accuracy", 0.99, higher_is_better=True)
    accuracy_name = "recall_accuracy"

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        return {"loss": self.loss(outputs, batch), self.accuracy_name: accuracy(outputs, batch)}

    def show(self, batch: Batch) -> str:
        # Category −1, after the end, selects the blank that is appended.
        shown = jnp.where(batch.inputs[:, 0].any(axis=-1), batch.inputs[:, 0].argmax(axis=-1), -1).tolist()
        due = jnp.where(batch.weights[:, 0] > 0, batch.targets[:, 0], -1).tolist()
        inputs = "".join((self.symbols + " ")[category] for category in shown)
        targets = "".join((self.answers + ".")[category] for category in due)
        return f"input  {inputs.rstrip()}\ntarget {targets[: len(inputs.rstrip())]}"


def one_hot(categories: jax.Array, size: int) -> jax.Array:
    """One-hot inputs (…, size) float32 of categories (…,) int32; a category out of range gives zeros."""
    return jax.nn.one_hot(categories, size, dtype=jnp.float32)


def last_step(lengths: jax.Array, steps: int) -> jax.Array:
    """Weights (steps, B) float32: 1 at the last step of each sequence, 0 elsewhere; `lengths` (B,) are in steps."""
    return (jnp.arange(steps, dtype=jnp.int32)[:, None] == lengths - 1).astype(jnp.float32)
