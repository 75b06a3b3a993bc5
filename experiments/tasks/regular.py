"""Regular languages, learned on short strings and tested on long ones: parity and cycle navigation.

Delétang et al., Neural networks and the Chomsky hierarchy, ICLR 2023 (arXiv:2207.02098), section 4 and appendix A.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Batch, Criterion, Recipe, Reference
from experiments.tasks.symbolic import Symbolic, last_step, one_hot


class Walk(Symbolic):
    """Every symbol is a move on a cycle: where does the walk end? The answer is the target of a sequence's last step.

    For training, the number of moves of each sequence is uniform from 1 to `length`; for `test` it is `length`. Inputs
    are one-hot moves, drawn uniformly, and zeros after the end. The classes are the positions on the cycle, counted
    from the start of the walk.

    A predictor without memory sees the last move alone, so its loss is the entropy of the position after `length` − 1
    moves. That is ln `size`, unless the walk is too short to reach every position.

    Attributes:
      moves: the change of position for each symbol.
      size: of the cycle.
    """

    moves: tuple[int, ...]
    size: int
    criterion = Criterion(
        "accuracy > 0.99, at the lengths beyond the trained ones, too", "accuracy", 0.99, higher_is_better=True
    )
    accuracy_name = "accuracy"
    generalises = True
    min_length = 2

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_moves, key_lengths = jax.random.split(key)
        return self._walks(key_moves, jax.random.randint(key_lengths, (batch,), 1, length + 1, jnp.int32), length)

    def test(self, key: jax.Array, batch: int, length: int, first: jax.Array) -> Batch:
        return self._walks(key, jnp.full((batch,), length, jnp.int32), length)

    def _walks(self, key: jax.Array, lengths: jax.Array, steps: int) -> Batch:
        """Walks of `lengths` (B,) moves; the targets are the positions at every step."""
        symbols = jax.random.randint(key, (steps, lengths.shape[0]), 0, len(self.moves), jnp.int32)
        places = jnp.cumsum(jnp.asarray(self.moves, jnp.int32)[symbols], axis=0, dtype=jnp.int32) % self.size
        inside = jnp.arange(steps, dtype=jnp.int32)[:, None] < lengths
        return Batch(one_hot(jnp.where(inside, symbols, -1), len(self.moves)), places, last_step(lengths, steps))

    def baseline(self, length: int) -> float:
        place = np.eye(self.size)[0]
        for _ in range(length - 1):
            place = np.mean([np.roll(place, move) for move in self.moves], axis=0)
        reached = place[place > 0]
        return float(-(reached * np.log(reached)).sum())


@dataclasses.dataclass(frozen=True)
class Parity(Walk):
    """Is the number of b odd? A walk on two positions: a stays, b moves. Class 0 is even, class 1 odd; baseline ln 2.

    >>> task = Parity()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=40)
    >>> print(task.show(batch))
    input  bbbbaabbbabbbbbbbaabaaa
    target ......................1
    """

    name = "parity"
    summary = "parity of a string, trained on short ones"
    paper = "Delétang et al. 2023, arXiv:2207.02098, appendix A (parity check)"
    in_features = 2
    out_features = 2
    recipe = Recipe(length=40, steps=5_000, hidden=32, batch=128, learning_rate=3e-3, beyond=(100, 200))
    references = (
        Reference(1.0, 500, "RNN and LSTM, mean of lengths 41–500, Delétang et al. 2023, arXiv:2207.02098", "accuracy"),
    )
    moves, size = (0, 1), 2
    symbols, answers = "ab", "01"


@dataclasses.dataclass(frozen=True)
class Cycle(Walk):
    """Where on a cycle of five does a walk of steps back, stays and steps forward end? Baseline ln 5, except for short
    walks.

    >>> task = Cycle()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=40)
    >>> print(task.show(batch))
    input  0+0000000-000-+-+0000+0
    target ......................1
    """

    name = "cycle"
    summary = "position on a cycle after a walk, trained on short ones"
    paper = "Delétang et al. 2023, arXiv:2207.02098, appendix A (cycle navigation)"
    in_features = 3
    out_features = 5
    recipe = Recipe(length=40, steps=5_000, hidden=64, batch=128, learning_rate=1e-2, init="default", beyond=(100, 200))
    references = (
        Reference(1.0, 500, "RNN, mean of lengths 41–500, Delétang et al. 2023, arXiv:2207.02098", "accuracy"),
    )
    moves, size = (-1, 0, 1), 5
    symbols, answers = "-0+", "01234"
