"""The contract of a task: its data, its trivial baseline, its loss and metrics, and when it counts as solved.

Axis legend: S time steps of a sequence, B sequences in a batch, D input features, K output features. `length` is the
task's own measure of how long something has to be remembered; S = `task.steps(length)` may be larger.
"""

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Metrics = dict[str, jax.Array]
"""Scalars of one evaluation, by name. Every task has "loss", in the units of its baseline."""


class Batch(NamedTuple):
    """Sequences, time first, as `gru_jax.unroll` takes them.

    Attributes:
      inputs: (S, B, D) float32.
      targets: (S, B, K) float32 to regress, or (S, B) int32 classes.
      weights: (S, B) float32, the weight of a step in the loss. A sequence shorter than S ends at its last step of
        positive weight; later steps change nothing, since the model is causal.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


class Recipe(NamedTuple):
    """Settings that a task trains well with: its defaults on the command line; see `experiments.config.Config`.

    Attributes:
      length: the task's length, in steps.
      steps: the budget, in optimizer steps.
      hidden: units of the recurrent cell.
      batch: sequences in an optimizer step.
      learning_rate: Adam's learning rate; its peak, if there is a schedule.
      schedule: of the learning rate, a name in `experiments.optimizers.SCHEDULES`.
      init: of the cell, a name in `experiments.models.INITS`.
      beyond: longer lengths to evaluate at, too.
    """

    length: int
    steps: int
    hidden: int
    batch: int
    learning_rate: float
    schedule: str = "constant"
    init: str = "chrono"
    beyond: tuple[int, ...] = ()


class Reference(NamedTuple):
    """A published result.

    Attributes:
      value: of the metric.
      length: at which it was measured.
      source: model and publication, with the table or figure.
      metric: the name of the task's metric.
    """

    value: float
    length: int
    source: str
    metric: str = "loss"


class Criterion(NamedTuple):
    """When a task counts as solved: one of its metrics is better than a threshold.

    Attributes:
      text: the criterion in words.
      metric: the name of the task's metric.
      threshold: that the metric must exceed, or stay below if `higher_is_better` is False.
      higher_is_better: whether large values of the metric are good, as of an accuracy, or small ones, as of a loss.
      inclusive: whether a value equal to the threshold is enough.

    >>> loss, accuracy = Criterion("loss < 0.1", "loss", 0.1), Criterion("accuracy >= 0.9", "accuracy", 0.9, True, True)
    >>> [loss.met(value) for value in (0.09, 0.1)], [accuracy.met(value) for value in (0.9, 0.89)]
    ([True, False], [True, False])
    """

    text: str
    metric: str
    threshold: float
    higher_is_better: bool = False
    inclusive: bool = False

    def met(self, value: float) -> bool:
        """Whether a value of the metric meets the criterion; NaN does not."""
        if value == self.threshold:
            return self.inclusive
        return value > self.threshold if self.higher_is_better else value < self.threshold


class Task(abc.ABC):
    """A memory task: a frozen dataclass, hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      name: of the task on the command line.
      summary: one line for the help text.
      paper: that the task comes from.
      loss_name: the loss in words, with its unit.
      criterion: when the task counts as solved.
      in_features: D.
      out_features: K.
      min_length: the shortest length that makes sense.
      max_length: the longest, if there is one.
      recipe: defaults for training.
      references: published results, those that are certain.
      generalises: whether the criterion must also be met at the longer lengths of an evaluation.
      scores: names of metrics whose large values are good, beside that of the criterion.
    """

    name: str
    summary: str
    paper: str
    loss_name: str
    criterion: Criterion
    in_features: int
    out_features: int
    min_length: int
    recipe: Recipe
    max_length: int | None = None
    references: tuple[Reference, ...] = ()
    generalises: bool = False
    scores: tuple[str, ...] = ()

    def steps(self, length: int) -> int:
        """S, the number of time steps in a sequence."""
        return length

    @abc.abstractmethod
    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        """B = `batch` fresh sequences to train on, drawn from `key` alone; works inside `jax.jit` with static sizes."""

    def test(self, key: jax.Array, batch: int, length: int, first: jax.Array) -> Batch:
        """B = `batch` sequences to evaluate on; by default drawn like those for training.

        Args:
          key: a PRNG key that no training data was drawn from.
          batch: B.
          length: of the sequences; a task that trains on lengths up to it evaluates at exactly this one.
          first: () int32, the number of sequences before these in the same evaluation; of use with a fixed test set.
        """
        return self.sample(key, batch, length)

    @abc.abstractmethod
    def baseline(self, length: int) -> float:
        """The loss, on test data, of the best predictor without memory."""

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """The scalar that training minimises; outputs (S, B, K)."""

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """The scalars that an evaluation reports, "loss" among them; outputs (S, B, K)."""
        return {"loss": self.loss(outputs, batch)}

    @abc.abstractmethod
    def show(self, batch: Batch) -> str:
        """The first sequence of a batch, as text."""

    def solved(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics, of fresh data, meet the criterion."""
        return self.criterion.met(metrics[self.criterion.metric])

    def higher_is_better(self, metric: str) -> bool:
        """Whether large values of the metric of this name are good."""
        if metric == self.criterion.metric:
            return self.criterion.higher_is_better
        return metric in self.scores


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the weighted steps of the squared error, summed over the K features; no factor ½."""
    return jnp.average(optax.losses.squared_error(outputs, batch.targets).sum(axis=-1), weights=batch.weights)


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the weighted steps of −ln softmax(outputs)[target], in nats."""
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)
    return jnp.average(losses, weights=batch.weights)


def accuracy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The share of the weighted steps at which the largest output is that of the target."""
    right = (outputs.argmax(axis=-1) == batch.targets).astype(jnp.float32)
    return jnp.average(right, weights=batch.weights)


def exact_match(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The share of the sequences in which the largest output is that of the target at every step of positive weight."""
    right = (outputs.argmax(axis=-1) == batch.targets) | (batch.weights == 0)
    return right.all(axis=0).mean(dtype=jnp.float32)


def answer_step(key: jax.Array, batch: int, length: int) -> jax.Array:
    """(B,) int32, the last steps of sequences of T to T + T // 10 steps, drawn as in Hochreiter & Schmidhuber 1997."""
    return jax.random.randint(key, (batch,), length - 1, length + length // 10, jnp.int32)


def weights_at(step: jax.Array | int, steps: int, batch: int) -> jax.Array:
    """(S, B) float32, 1 at that step, () or (B,), of each sequence and 0 elsewhere."""
    t = jnp.arange(steps, dtype=jnp.int32)[:, None]
    return jnp.broadcast_to(t == step, (steps, batch)).astype(jnp.float32)


def shown_steps(batch: Batch) -> int:
    """The number of steps of a batch's first sequence, which ends at its last step of positive weight."""
    return int(batch.weights[:, 0].nonzero()[0][-1]) + 1
