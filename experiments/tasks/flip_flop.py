"""The three-bit flip-flop: remember the sign of the last pulse in each of three channels.

Sussillo & Barak, Opening the black box: low-dimensional dynamics in high-dimensional recurrent neural networks, Neural
Computation 25(3), 2013, section 4.
"""

import dataclasses

import jax
import jax.numpy as jnp

from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, Task, squared_error

BITS = 3
PULSE = 0.1


@dataclasses.dataclass(frozen=True)
class FlipFlop(Task):
    """Three channels carry pulses of +1 or −1, and 0 between them; the target is the last pulse of each channel.

    A pulse comes with probability p = 0.1 at every step, independently in every channel, and always at the first step,
    so that there is a last one; both signs are equally likely. Targets are ±1 at every step. The loss is the squared
    error, averaged over the three outputs, without a factor ½. A predictor without memory repeats a pulse that it sees
    and answers 0 otherwise, with error 1: (1 − p)(T − 1)/T.

    >>> task = FlipFlop()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=30)
    >>> print(task.show(batch))
    input 0  +..-........+.................
    target 0 +++---------++++++++++++++++++
    input 1  +..+.....+...........-........
    target 1 +++++++++++++++++++++---------
    input 2  -...........+...-.....--...+..
    target 2 ------------++++-----------+++
    """

    name = "flip-flop"
    summary = "hold the sign of the last pulse in each of three channels"
    paper = "Sussillo & Barak, Neural Computation 25(3), 2013"
    loss_name = "mean squared error"
    criterion = Criterion("evaluation mean squared error < 0.01", "loss", 0.01)
    scores = ("recall_accuracy",)
    in_features = BITS
    out_features = BITS
    min_length = 2
    recipe = Recipe(length=100, steps=5_000, hidden=64, batch=64, learning_rate=3e-3)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_pulse, key_sign = jax.random.split(key)
        shape = (length, batch, BITS)
        t = jnp.arange(length, dtype=jnp.int32)[:, None, None]
        pulse = (jax.random.uniform(key_pulse, shape, jnp.float32) < PULSE) | (t == 0)
        sign = 2 * jax.random.bernoulli(key_sign, jnp.float32(0.5), shape).astype(jnp.float32) - 1
        last = jax.lax.cummax(jnp.where(pulse, t, 0), axis=0)
        targets = jnp.take_along_axis(sign, last, axis=0)
        return Batch(jnp.where(pulse, sign, 0), targets, jnp.ones((length, batch), jnp.float32))

    def baseline(self, length: int) -> float:
        return (1 - PULSE) * (length - 1) / length

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return squared_error(outputs, batch) / BITS

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        between = batch.inputs == 0  # the steps that need memory
        right = (jnp.sign(outputs) == batch.targets) & between
        recall = right.sum().astype(jnp.float32) / jnp.maximum(between.sum(), 1).astype(jnp.float32)
        return {"loss": self.loss(outputs, batch), "recall_accuracy": recall}

    def show(self, batch: Batch) -> str:
        glyphs = {0: ".", 1: "+", -1: "-"}

        def line(name: str, values: jax.Array) -> str:
            return name + "".join(glyphs[value] for value in values.astype(int).tolist())

        lines = [
            (line(f"input {bit}  ", batch.inputs[:, 0, bit]), line(f"target {bit} ", batch.targets[:, 0, bit]))
            for bit in range(BITS)
        ]
        return "\n".join(text for pair in lines for text in pair)
