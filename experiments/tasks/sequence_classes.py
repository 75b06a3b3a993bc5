"""Classify sequences by a few elements that came long before the end.

Hochreiter & Schmidhuber, Long short-term memory, Neural Computation 9(8), 1997: experiment 6 (section 5.6), the order
of two or three symbols; experiment 3a (section 5.3), the 2-sequence problem of Bengio, Simard & Frasconi, Learning
long-term dependencies with gradient descent is difficult, IEEE Transactions on Neural Networks 5(2), 1994.

Sequences have T to T + T // 10 steps; the class is the target of a sequence's last step.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from experiments.tasks.base import (
    Batch,
    Criterion,
    Metrics,
    Recipe,
    Reference,
    Task,
    answer_step,
    cross_entropy,
    shown_steps,
    weights_at,
)

CATEGORIES = "abcdXYEB"
CLASSES = "QRSUVABC"


@dataclasses.dataclass(frozen=True)
class SequenceClass(Task):
    """Classification of sequences into K equally likely classes.

    The loss is the cross-entropy at the last step, in nats; without memory ln K. Hochreiter & Schmidhuber train
    logistic outputs with the squared error, and call an answer correct if each output is off by less than a tolerance;
    here that is asked of the probabilities of the softmax. In experiment 6 they stop when the last 2,000 sequences are
    correct, and then find up to 3 of 2,560 wrong; 99.9 % stands for that here.
    """

    loss_name = "cross-entropy (nats)"
    tolerance = 0.3

    def steps(self, length: int) -> int:
        return length + length // 10

    def baseline(self, length: int) -> float:
        return math.log(self.out_features)

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        due = jax.nn.one_hot(batch.targets, self.out_features, dtype=jnp.float32)
        right = (jnp.abs(jax.nn.softmax(outputs) - due) < self.tolerance).all(axis=-1)
        correct = jnp.average(right.astype(jnp.float32), weights=batch.weights)
        return {"loss": self.loss(outputs, batch), "correct": correct}


@dataclasses.dataclass(frozen=True)
class TemporalOrder(SequenceClass):
    """Two of many steps show an X or a Y each: which came first, which second?

    Inputs are one-hot over a, b, c, d, X, Y, E, B. A sequence starts with E, ends with B, has an X or a Y at the steps
    t₁ and t₂, and letters drawn from a, b, c, d elsewhere. Steps are counted from 0; for T = 100, t₁ is uniform in
    10 … 20 and t₂ in 50 … 60, and the windows scale with T. The four classes are XX → Q, XY → R, YX → S, YY → U; the
    loss without memory is ln 4.

    >>> task = TemporalOrder()
    >>> print(task.show(task.sample(jax.random.key(0), batch=1, length=20)))
    input  EcYdddacdaXadbbbddcbB
    target                     S
    """

    name = "temporal-order"
    summary = "in which order did two symbols come?"
    paper = "Hochreiter & Schmidhuber 1997, section 5.6, experiment 6a"
    criterion = Criterion(
        "all probabilities off by < 0.3 on more than 99.9 % of the sequences", "correct", 0.999, higher_is_better=True
    )
    in_features = len(CATEGORIES)
    out_features = 4
    min_length = 10
    recipe = Recipe(length=100, steps=5_000, hidden=64, batch=64, learning_rate=3e-3)
    references = (Reference(1 - 1 / 2560, 100, "LSTM, Hochreiter & Schmidhuber 1997, table 9", "correct"),)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_last, key_filler, key_symbol, key_step = jax.random.split(key, 4)
        last, starts = answer_step(key_last, batch, length), self._windows(length)
        symbols = jax.random.randint(key_symbol, (len(starts), batch), 0, 2, jnp.int32)
        step = jax.random.randint(key_step, symbols.shape, 0, length // 10 + 1, jnp.int32)
        step += jnp.array(starts, jnp.int32)[:, None]

        steps = self.steps(length)
        t = jnp.arange(steps, dtype=jnp.int32)[:, None]
        shown = jax.random.randint(key_filler, (steps, batch), 0, CATEGORIES.index("X"), jnp.int32)
        shown = shown.at[step, jnp.arange(batch, dtype=jnp.int32)].set(CATEGORIES.index("X") + symbols)
        shown = jnp.where(t == 0, CATEGORIES.index("E"), jnp.where(t == last, CATEGORIES.index("B"), shown))
        inputs = jax.nn.one_hot(shown, self.in_features, dtype=jnp.float32) * (t <= last)[..., None]

        order = jnp.zeros((batch,), jnp.int32)
        for symbol in symbols:
            order = 2 * order + symbol
        return Batch(inputs, jnp.broadcast_to(order, shown.shape), weights_at(last, steps, batch))

    def show(self, batch: Batch) -> str:
        steps = shown_steps(batch)
        shown = batch.inputs[:steps, 0].argmax(axis=-1).tolist()
        return "\n".join(
            [
                "input  " + "".join(CATEGORIES[category] for category in shown),
                "target " + CLASSES[batch.targets[steps - 1, 0].item()].rjust(steps),
            ]
        )

    def _windows(self, length: int) -> tuple[int, ...]:
        """The first steps of the windows of the relevant symbols; each window has T // 10 + 1 steps."""
        return length // 10, length // 2


@dataclasses.dataclass(frozen=True)
class TemporalOrder3(TemporalOrder):
    """Three of many steps show an X or a Y each: in which order?

    As `TemporalOrder`, with t₁ in 10 … 20, t₂ in 33 … 43, t₃ in 66 … 76 for T = 100, and eight classes: XXX → Q,
    XXY → R, XYX → S, XYY → U, YXX → V, YXY → A, YYX → B, YYY → C; the loss without memory is ln 8.

    >>> task = TemporalOrder3()
    >>> print(task.show(task.sample(jax.random.key(0), batch=1, length=20)))
    input  EcYdddXcdacadbYbddcbB
    target                     A
    """

    name = "temporal-order-3"
    summary = "in which order did three symbols come?"
    paper = "Hochreiter & Schmidhuber 1997, section 5.6, experiment 6b"
    out_features = 8
    recipe = Recipe(length=100, steps=10_000, hidden=64, batch=64, learning_rate=3e-3)
    references = (Reference(1 - 2 / 2560, 100, "LSTM, Hochreiter & Schmidhuber 1997, table 9", "correct"),)

    def _windows(self, length: int) -> tuple[int, ...]:
        return length // 10, length // 3, 2 * length // 3


@dataclasses.dataclass(frozen=True)
class Latch(SequenceClass):
    """The 2-sequence problem: was the first number 1 or −1? Noise follows on the same channel.

    The first step shows 1 for class 1 and −1 for class 0; every other step shows normal noise of mean 0 and variance
    0.2 (experiment 3a with N = 1 informative element). The loss without memory is ln 2.

    >>> task = Latch()
    >>> print(task.show(task.sample(jax.random.key(0), batch=1, length=10)))
    value  -1.00  0.61 -0.18 -0.35  0.17  0.01  0.26 -0.34  0.10 -0.67 -0.41
    target                                                                 0
    """

    name = "latch"
    summary = "hold the sign of the first number against noise"
    paper = "Bengio et al. 1994; Hochreiter & Schmidhuber 1997, section 5.3, experiment 3a"
    criterion = Criterion(
        "probabilities off by < 0.2 on more than 99.9 % of the sequences", "correct", 0.999, higher_is_better=True
    )
    tolerance = 0.2
    in_features = 1
    out_features = 2
    min_length = 2
    recipe = Recipe(length=100, steps=5_000, hidden=32, batch=64, learning_rate=3e-3)
    references = (Reference(1 - 0.000117, 100, "LSTM, Hochreiter & Schmidhuber 1997, table 4", "correct"),)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_last, key_class, key_noise = jax.random.split(key, 3)
        last, steps = answer_step(key_last, batch, length), self.steps(length)
        which = jax.random.randint(key_class, (batch,), 0, 2, jnp.int32)
        noise = math.sqrt(0.2) * jax.random.normal(key_noise, (steps, batch), jnp.float32)
        t = jnp.arange(steps, dtype=jnp.int32)[:, None]
        values = jnp.where(t == 0, 2 * which - 1, noise) * (t <= last)
        return Batch(values[..., None], jnp.broadcast_to(which, values.shape), weights_at(last, steps, batch))

    def show(self, batch: Batch) -> str:
        steps = shown_steps(batch)
        return "\n".join(
            [
                "value  " + " ".join(f"{value:5.2f}" for value in batch.inputs[:steps, 0, 0].tolist()),
                "target " + f"{batch.targets[steps - 1, 0].item():{6 * steps - 1}d}",
            ]
        )
