"""Forecasting a chaotic series, fifteen steps ahead.

Mackey & Glass, Oscillation and chaos in physiological control systems, Science 197, 1977; as a benchmark with τ = 17 in
Jaeger & Haas, Science 304, 2004, and fifteen steps ahead in Voelker, Kajić & Eliasmith, Legendre memory units, NeurIPS
2019.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Batch, Metrics, Recipe, Task, squared_error

BETA, GAMMA, POWER, DELAY = 0.2, 0.1, 10, 17
AHEAD = 15
# Integration steps in a unit of time, which is a step of the task.
FINE = 10
# Delays that pass before a sequence begins, so that it is on the attractor; and by how many more that is drawn, two of
# the series' periods, so that sequences begin in any phase.
TRANSIENT, PHASE = 12, 6
# Of x on the attractor, from 10⁷ values; and the share of its variance that the value of 15 steps before leaves open.
MEAN, DEVIATION, MEMORYLESS = 0.930, 0.226, 0.823


@dataclasses.dataclass(frozen=True)
class MackeyGlass(Task):
    """Each step shows x(t) of the Mackey-Glass equation with τ = 17; x(t + 15) is due, at every step from the 18th on.

    One step is one unit of time. Values are standardised by the mean and deviation on the attractor, so that the mean
    squared error is the one over the variance of the series, and its root, "nrmse", the normalised root-mean-square
    error. The first 17 steps weigh nothing, as less than a whole delay of the series has been seen, which is the state
    that the future depends on. Every sequence has its own random past (18 values uniform in [0.4, 1.4), linear between
    them), integrated for 204 to 305 units before it begins: training and evaluation are different trajectories. The
    equation's largest Lyapunov exponent is small, about 0.006 per unit, so float32 rounding does not matter.

    Always answering the mean gives 1. That knows not even the present value; the best predictor without memory does,
    and has E[Var(x(t + 15) | x(t))] / Var(x) = 0.823, found by regression on 10⁷ values.

    >>> task = MackeyGlass()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=64)
    >>> print(task.show(batch))
    input  7778888887766554433222110000000122344556666666666667777777666555
    target .................22344556666666666667777777666555555444332222222
    """

    name = "mackey-glass"
    summary = "forecast a chaotic series, 15 steps ahead"
    paper = "Mackey & Glass 1977; Voelker et al. 2019, NeurIPS (Legendre memory units)"
    loss_name = "mean squared error / variance"
    criterion = "normalised root-mean-square error < 0.05"
    in_features = 1
    out_features = 1
    min_length = DELAY + 1
    recipe = Recipe(length=128, steps=10_000, hidden=64, batch=32, learning_rate=3e-3)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_past, key_begin = jax.random.split(key)
        knots = jax.random.uniform(key_past, (DELAY + 1, batch), jnp.float32, 0.4, 1.4)
        share = (jnp.arange(FINE, dtype=jnp.float32) / FINE)[:, None]
        between = knots[:-1, None] * (1 - share) + knots[1:, None] * share
        past = jnp.concatenate([between.reshape(DELAY * FINE, batch), knots[-1:]])
        xs = trajectories(past, TRANSIENT + PHASE - (-(length + AHEAD) // DELAY))
        begin = DELAY * TRANSIENT + jax.random.randint(key_begin, (batch,), 0, DELAY * PHASE, jnp.int32)
        t = jnp.arange(length + AHEAD, dtype=jnp.int32)[:, None]
        series = ((jnp.take_along_axis(xs, begin + t, axis=0) - MEAN) / DEVIATION)[..., None]
        weights = jnp.broadcast_to(t[:length] >= DELAY, (length, batch)).astype(jnp.float32)
        return Batch(series[:length], series[AHEAD:], weights)

    def baseline(self, length: int) -> float:
        return MEMORYLESS

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return squared_error(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        loss = self.loss(outputs, batch)
        return {"loss": loss, "nrmse": jnp.sqrt(loss)}

    def solved(self, metrics: Mapping[str, float]) -> bool:
        return metrics["nrmse"] < 0.05

    def show(self, batch: Batch) -> str:
        """A digit for each step: 0 to 9 from two deviations below the mean to two above."""

        def line(values: jax.Array) -> list[str]:
            return [str(level) for level in jnp.clip((values + 2) * 2.5, 0, 9).astype(int).tolist()]

        due = batch.weights[:, 0].tolist()
        targets = [digit if weight else "." for digit, weight in zip(line(batch.targets[:, 0, 0]), due, strict=True)]
        return f"input  {''.join(line(batch.inputs[:, 0, 0]))}\ntarget {''.join(targets)}"


def trajectories(past: jax.Array, delays: int) -> jax.Array:
    """Solutions of dx/dt = β x(t − τ) / (1 + x(t − τ)¹⁰) − γ x(t), with β = 0.2, γ = 0.1, τ = 17.

    Within one delay the production, the first term, is known from the delay before, so the equation is linear there and
    its solution a product with a constant matrix, exact for a production that is linear between points 0.1 apart. The
    error is of second order in that distance; a scan over single points would be 170 times as long.

    Args:
      past: x at the 171 points 0.1 apart from −τ to 0, (171, B) float32.
      delays: how many delays to solve for.

    Returns:
      x at t = 1, 2, … 17 · delays, (17 · delays, B) float32.
    """
    decay, kernel = (jnp.asarray(each) for each in _propagator())

    def one_delay(past: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        production = BETA * past / (1 + past**POWER)
        new = decay[:, None] * past[-1] + jnp.matmul(kernel, production, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([past[-1:], new]), new[FINE - 1 :: FINE]

    _, xs = jax.lax.scan(one_delay, past, length=delays)
    return xs.reshape(delays * DELAY, -1)


def _propagator() -> tuple[np.ndarray, np.ndarray]:
    """x at the N = 170 points of a delay is decay · x(0) + kernel @ production at N + 1 points; (N,), (N, N + 1)."""
    points = DELAY * FINE
    step = GAMMA / FINE
    keep = math.exp(-step)
    # ∫ e^(−γ(h − s)) (1 − s/h, s/h) ds over one step of h = 1/FINE: the weights of the production at its two ends.
    end = (step - 1 + keep) / (GAMMA * step)
    begin = (1 - keep) / GAMMA - end
    lag = np.arange(1, points + 1)[:, None] - np.arange(points + 1)
    begins = np.where(lag > 0, begin * np.exp(-step * (lag - 1)), 0)
    ends = np.where(lag >= 0, end * np.exp(-step * lag), 0)
    ends[:, 0] = 0  # no step ends where the first begins
    return np.exp(-step * np.arange(1, points + 1)).astype(np.float32), (begins + ends).astype(np.float32)
