"""The adding problem: remember two marked numbers among many, and add them.

Hochreiter & Schmidhuber, Long short-term memory, Neural Computation 9(8), 1997, experiment 4; here in the form of
Arjovsky, Shah & Bengio, Unitary evolution recurrent neural networks, ICML 2016 (arXiv:1511.06464), section 5.1.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Recipe, Reference, Task, squared_error


@dataclasses.dataclass(frozen=True)
class Adding(Task):
    """Two of T numbers are marked; their sum is due at the last step.

    Every step shows a value, uniform in [0, 1), and a mark that is 1 twice, once in each half of the sequence, and 0
    elsewhere. The loss is the squared error at the last step (no factor ½). Always answering 1 gives the variance of
    the sum, 2 · 1/12 = 1/6.

    >>> task = Adding()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=8)
    >>> print(task.show(batch))
    value  0.84 0.18 0.23 0.12 0.19 0.72 0.77 0.15
    mark      .    .    1    .    .    .    .    1
    target                                    0.38
    """

    name = "adding"
    summary = "add the two marked numbers of a sequence"
    paper = "Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016, arXiv:1511.06464, section 5.1"
    loss_name = "mean squared error"
    criterion = "evaluation mean squared error < 0.001"
    in_features = 2
    out_features = 1
    min_length = 2
    recipe = Recipe(length=100, steps=5_000, hidden=64, batch=64, learning_rate=3e-3)
    references = (Reference(5.3e-5, 600, "GRU, Bai et al. 2018, arXiv:1803.01271, table 1"),)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_value, key_first, key_second = jax.random.split(key, 3)
        values = jax.random.uniform(key_value, (length, batch), jnp.float32)
        half = length // 2
        first = jax.random.randint(key_first, (batch,), 0, half, jnp.int32)
        second = jax.random.randint(key_second, (batch,), half, length, jnp.int32)
        t = jnp.arange(length, dtype=jnp.int32)[:, None]
        marks = ((t == first) | (t == second)).astype(jnp.float32)
        total = (values * marks).sum(axis=0)
        last = jnp.broadcast_to(t == length - 1, (length, batch)).astype(jnp.float32)
        return Batch(jnp.stack([values, marks], axis=-1), (last * total)[..., None], last)

    def baseline(self, length: int) -> float:
        return 1 / 6

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return squared_error(outputs, batch)

    def solved(self, metrics: Mapping[str, float]) -> bool:
        return metrics["loss"] < 1e-3

    def show(self, batch: Batch) -> str:
        values, marks = batch.inputs[:, 0, 0].tolist(), batch.inputs[:, 0, 1].tolist()
        width = 5 * len(values) - 1
        return "\n".join(
            [
                "value  " + " ".join(f"{value:.2f}" for value in values),
                "mark   " + " ".join("   1" if mark else "   ." for mark in marks),
                "target " + f"{batch.targets[-1, 0, 0].item():.2f}".rjust(width),
            ]
        )
