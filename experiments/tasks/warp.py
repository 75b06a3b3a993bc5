"""Time warping: name the previous character, however long each character lasts.

Tallec & Ollivier, Can recurrent neural networks warp time?, ICLR 2018 (arXiv:1804.11188), section 3 and figure 2.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Recipe
from experiments.tasks.symbolic import Symbolic, one_hot

LETTERS = "abcdefghi"
WARPINGS = 5


@dataclasses.dataclass(frozen=True)
class TimeWarp(Symbolic):
    """Each character of a text lasts for a random number of steps, 1 to w; the target is the previous character.

    The length is w, the maximum warping. Inputs are one-hot over nine letters; adjacent characters differ, and the
    number of steps of each is uniform. (The paper has a tenth, a dummy, as the target during the first character; here
    its steps have no weight.) Sequences are cut off at S = 5 w steps (in the paper at 500, for all w up to 100).

    A predictor without memory sees the present letter alone; the previous one is any of the other eight: ln 8.

    >>> task = TimeWarp()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=8)
    >>> print(task.show(batch))
    input  bbbbiiiiiiigggggggghhhhgggggbbbaabbbiiii
    target ....bbbbbbbiiiiiiiigggghhhhhgggbbaaabbbb
    """

    name = "time-warp"
    summary = "name the previous character of a randomly warped text"
    paper = "Tallec & Ollivier 2018, arXiv:1804.11188, section 3, variable warping"
    in_features = len(LETTERS)
    out_features = len(LETTERS)
    min_length = 1
    recipe = Recipe(length=20, steps=5_000, hidden=64, batch=32, learning_rate=3e-3, beyond=(50,))
    symbols = answers = LETTERS

    def steps(self, length: int) -> int:
        return WARPINGS * length

    def repeats(self, key: jax.Array, characters: int, batch: int, length: int) -> jax.Array:
        """The number of steps of each character, (characters, B) int32."""
        return jax.random.randint(key, (characters, batch), 1, length + 1, jnp.int32)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_first, key_others, key_repeats = jax.random.split(key, 3)
        steps = self.steps(length)
        first = jax.random.randint(key_first, (1, batch), 0, len(LETTERS), jnp.int32)
        others = jax.random.randint(key_others, (steps - 1, batch), 1, len(LETTERS), jnp.int32)
        text = jnp.cumsum(jnp.concatenate([first, others]), axis=0, dtype=jnp.int32) % len(LETTERS)
        repeats = self.repeats(key_repeats, steps, batch, length)
        begins = jnp.cumsum(repeats, axis=0, dtype=jnp.int32) - repeats
        column = jnp.arange(batch, dtype=jnp.int32)
        begun = jnp.zeros((steps, batch), jnp.int32).at[begins, column].add(1, mode="drop")
        nth = jnp.cumsum(begun, axis=0, dtype=jnp.int32) - 1
        shown = jnp.take_along_axis(text, nth, axis=0)
        targets = jnp.take_along_axis(text, jnp.maximum(nth - 1, 0), axis=0)
        return Batch(one_hot(shown, len(LETTERS)), targets, (nth > 0).astype(jnp.float32))

    def baseline(self, length: int) -> float:
        return math.log(len(LETTERS) - 1)


@dataclasses.dataclass(frozen=True)
class UniformTimeWarp(TimeWarp):
    """`TimeWarp` with w steps for every character, which a leaky RNN can learn, too.

    >>> task = UniformTimeWarp()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=8)
    >>> print(task.show(batch))
    input  bbbbbbbbiiiiiiiigggggggghhhhhhhhgggggggg
    target ........bbbbbbbbiiiiiiiigggggggghhhhhhhh
    """

    name = "time-warp-uniform"
    summary = "name the previous character of a uniformly warped text"
    paper = "Tallec & Ollivier 2018, arXiv:1804.11188, section 3, uniform warping"

    def repeats(self, key: jax.Array, characters: int, batch: int, length: int) -> jax.Array:
        return jnp.full((characters, batch), length, jnp.int32)
