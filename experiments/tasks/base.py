"""What a task is: where its data comes from, what counts as trivial, what counts as solved.

Axis legend: S time steps of a sequence, B sequences in a batch, D input features, K output features. `length` is the
task's own measure of how long something has to be remembered; S = `task.steps(length)` may be larger.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax

Metrics = dict[str, jax.Array]
"""Scalars of one evaluation, by name. Every task has "loss", in the unit of its baseline."""


class Batch(NamedTuple):
    """Sequences, time first, as `gru_jax.unroll` takes them.

    Attributes:
      inputs: (S, B, D) float32.
      targets: (S, B, K) float32 to regress, or (S, B) int32 classes.
      weights: (S, B) float32, how much a step counts in the loss.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


class Recipe(NamedTuple):
    """Settings that a task is known to train with: its defaults on the command line.

    Attributes:
      length: the task's length, in steps.
      steps: the budget, in optimizer steps.
      hidden: units of the GRU.
      batch: sequences in a step.
      learning_rate: Adam's step size.
    """

    length: int
    steps: int
    hidden: int
    batch: int
    learning_rate: float


class Reference(NamedTuple):
    """A published result.

    Attributes:
      loss: in the unit of the task's loss.
      length: the length that it was measured at.
      source: model and publication.
    """

    loss: float
    length: int
    source: str


class Task(Protocol):
    """A synthetic task: a frozen, hashable value, so that it can be a static argument of `jax.jit`.

    Attributes:
      name: what the command line calls it.
      summary: one line for the help text.
      loss_name: what the loss is, with its unit.
      criterion: when it is solved, in words.
      in_features: D.
      out_features: K.
      min_length: the shortest length that makes sense.
      recipe: defaults for training.
      reference: a published result, or None where none is certain.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def loss_name(self) -> str: ...
    @property
    def criterion(self) -> str: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def min_length(self) -> int: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def reference(self) -> Reference | None: ...

    def steps(self, length: int) -> int:
        """S, the time steps of a sequence."""
        ...

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        """B = `batch` fresh sequences, drawn from `key` alone; works inside `jax.jit` with static sizes."""
        ...

    def baseline(self, length: int) -> float:
        """The loss of the best predictor that remembers nothing."""
        ...

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        """What training minimises, a scalar; outputs (S, B, K)."""
        ...

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        """What an evaluation reports, scalars, "loss" among them; outputs (S, B, K)."""
        ...

    def solved(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics, of fresh data, meet the criterion."""
        ...


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ w v / Σ w over all axes; values and weights (S, B)."""
    return (values * weights).sum() / weights.sum()
