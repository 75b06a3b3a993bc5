"""Regular languages, learned on short strings and asked about long ones: parity and cycle navigation.

Delétang et al., Neural networks and the Chomsky hierarchy, ICLR 2023 (arXiv:2207.02098), section 4 and appendix A.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Batch, Recipe, Reference
from experiments.tasks.symbolic import Symbolic, last_step, one_hot


class Walk(Symbolic):
    """Every symbol is a move on a cycle; where does the walk end? The answer is due at a sequence's own last step.

    Training draws the number of moves uniformly from 1 to `length`, for each sequence; `test` has exactly `length`.
    Inputs are one-hot moves, drawn uniformly, and zeros behind the end; the classes are the places on the cycle, from
    where the walk begins.

    The last move alone leaves the walk before it open, so the best that remembers nothing has the entropy of the place
    after `length` − 1 moves; that is ln `size` unless the walk is too short to reach every place.

    Attributes:
      moves: what each symbol adds to the place.
      size: of the cycle.
    """

    moves: tuple[int, ...]
    size: int
    criterion = "accuracy > 0.99, at the lengths beyond the trained ones, too"
    accuracy_name = "accuracy"
    generalises = True
    min_length = 2

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_moves, key_lengths = jax.random.split(key)
        return self._walks(key_moves, jax.random.randint(key_lengths, (batch,), 1, length + 1, jnp.int32), length)

    def test(self, key: jax.Array, batch: int, length: int, first: jax.Array) -> Batch:
        return self._walks(key, jnp.full((batch,), length, jnp.int32), length)

    def _walks(self, key: jax.Array, lengths: jax.Array, steps: int) -> Batch:
        """Walks of `lengths` (B,) moves each; the targets are the places at every step."""
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
    """Is the number of b odd? A walk on two places: a stays, b moves on. Class 0 is even, 1 odd; baseline ln 2.

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
    """Where on a cycle of five places do steps back, stays and steps forward end? Baseline ln 5, but for short walks.

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
