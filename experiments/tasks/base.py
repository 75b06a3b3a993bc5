"""What a task is: where its data comes from, what counts as trivial, what counts as solved.

Axis legend: S time steps of a sequence, B sequences in a batch, D input features, K output features. `length` is the
task's own measure of how long something has to be remembered; S = `task.steps(length)` may be larger.
"""

import abc
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

Metrics = dict[str, jax.Array]
"""Scalars of one evaluation, by name. Every task has "loss", in the unit of its baseline."""


class Batch(NamedTuple):
    """Sequences, time first, as `gru_jax.unroll` takes them.

    Attributes:
      inputs: (S, B, D) float32.
      targets: (S, B, K) float32 to regress, or (S, B) int32 classes.
      weights: (S, B) float32, how much a step counts in the loss. Sequences shorter than S end where their last weight
        is; what follows reaches no answer, since time runs forwards.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


class Recipe(NamedTuple):
    """Settings that a task is known to train with: its defaults on the command line; see `experiments.config.Config`.

    Attributes:
      length: the task's length, in steps.
      steps: the budget, in optimizer steps.
      hidden: units of the recurrent cell.
      batch: sequences in a step.
      learning_rate: Adam's step size, its peak where there is a schedule.
      schedule: of the learning rate, a name in `experiments.optimizers.SCHEDULES`.
      init: of the cell, a name in `experiments.models.INITS`.
      beyond: longer lengths at which it is evaluated too.
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
      length: the length that it was measured at.
      source: model and publication, with the table or figure.
      metric: which of the task's metrics it is.
    """

    value: float
    length: int
    source: str
    metric: str = "loss"


class Task(abc.ABC):
    """A memory task: a frozen dataclass, hashable, so that it can be a static argument of `jax.jit`.

    Attributes:
      name: what the command line calls it.
      summary: one line for the help text.
      paper: where it comes from.
      loss_name: what the loss is, with its unit.
      criterion: when it is solved, in words.
      in_features: D.
      out_features: K.
      min_length: the shortest length that makes sense.
      max_length: the longest, if there is one.
      recipe: defaults for training.
      references: published results; none where none is certain.
      generalises: whether it counts as solved only if it is at the lengths beyond the trained one, too.
    """

    name: str
    summary: str
    paper: str
    loss_name: str
    criterion: str
    in_features: int
    out_features: int
    min_length: int
    recipe: Recipe
    max_length: int | None = None
    references: tuple[Reference, ...] = ()
    generalises: bool = False

    def steps(self, length: int) -> int:
        """S, the time steps of a sequence."""
        return length

    @abc.abstractmethod
    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        """B = `batch` fresh sequences to train on, drawn from `key` alone; works inside `jax.jit` with static sizes."""

    def test(self, key: jax.Array, batch: int, length: int, first: jax.Array) -> Batch:
        """B = `batch` sequences to evaluate on; by default drawn as for training.

        Args:
          key: a PRNG key that no training data was drawn from.
          batch: B.
          length: the length; a task that trains on several up to it evaluates at exactly this one.
          first: () int32, the number of sequences before these in the same evaluation, for a fixed test set.
        """
        return self.sample(key, batch, length)

    @abc.abstractmethod
    def baseline(self, length: int) -> float:
        """The loss, on test data, of the best predictor that remembers nothing."""

    @abc.abstractmethod
    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """What training minimises, a scalar; outputs (S, B, K)."""

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """What an evaluation reports, scalars, "loss" among them; outputs (S, B, K)."""
        return {"loss": self.loss(outputs, batch)}

    @abc.abstractmethod
    def solved(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics, of fresh data, meet the criterion."""

    @abc.abstractmethod
    def show(self, batch: Batch) -> str:
        """The first sequence of a batch, as text."""


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ w v / Σ w over all axes; values and weights (S, B)."""
    return (values * weights).sum() / weights.sum()


def squared_error(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the weighted steps of the squared error, summed over the K features; no factor ½."""
    return weighted_mean(jnp.square(outputs - batch.targets).sum(axis=-1), batch.weights)


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The mean over the weighted steps of −ln softmax(outputs)[target], in nats."""
    log_p = jax.nn.log_softmax(outputs)
    return weighted_mean(-jnp.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0], batch.weights)


def accuracy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The share of the weighted steps whose largest output is the target."""
    right = (outputs.argmax(axis=-1) == batch.targets).astype(jnp.float32)
    return weighted_mean(right, batch.weights)


def exact_match(outputs: jax.Array, batch: Batch) -> jax.Array:
    """The share of the sequences that have the target as largest output at every step of positive weight."""
    right = (outputs.argmax(axis=-1) == batch.targets) | (batch.weights == 0)
    return right.all(axis=0).mean(dtype=jnp.float32)


def answer_step(key: jax.Array, batch: int, length: int) -> jax.Array:
    """(B,) int32, the last steps of sequences of T to T + T // 10 steps, as Hochreiter & Schmidhuber 1997 draw them."""
    return jax.random.randint(key, (batch,), length - 1, length + length // 10, jnp.int32)


def weights_at(step: jax.Array | int, steps: int, batch: int) -> jax.Array:
    """(S, B) float32, 1 at that step, () or (B,), of each sequence and 0 elsewhere."""
    t = jnp.arange(steps, dtype=jnp.int32)[:, None]
    return jnp.broadcast_to(t == step, (steps, batch)).astype(jnp.float32)


def shown_steps(batch: Batch) -> int:
    """The steps of a batch's first sequence: up to its last weight."""
    return int(batch.weights[:, 0].nonzero()[0][-1]) + 1
