"""Forecast a chaotic series, fifteen steps ahead.

Mackey & Glass, Oscillation and chaos in physiological control systems, Science 197, 1977; as a benchmark with τ = 17 in
Jaeger & Haas, Science 304, 2004, and fifteen steps ahead in Voelker, Kajić & Eliasmith, Legendre memory units, NeurIPS
2019.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, Task, squared_error

BETA, GAMMA, POWER, DELAY = 0.2, 0.1, 10, 17
AHEAD = 15
# A sequence begins after so many delays, when it is on the attractor, and a random part of PHASE more, which are about
# two periods of the series, so that sequences begin in any phase.
TRANSIENT, PHASE = 12, 6
# Mean and deviation of x on the attractor, and the share of its variance that is left given x 15 steps before: from 10⁷
# values.
MEAN, DEVIATION, MEMORYLESS = 0.930, 0.226, 0.823
# x is a multiple of 1/GRID. The tables that it is computed from have 15 fractional bits, too, so that sums of products,
# which stay below 1.5, fit into an int32.
GRID = 2**15


@dataclasses.dataclass(frozen=True)
class MackeyGlass(Task):
    """Each step shows x(t) of the Mackey-Glass equation with τ = 17; the target is x(t + 15), from the 18th step on.

    One step is one unit of time. Values are standardised by the mean and deviation on the attractor, so that the mean
    squared error is relative to the variance of the series, and its root, "nrmse", is the normalised root-mean-square
    error. The first 17 steps have no weight: the future depends on a whole delay of the series, which has not been seen
    then. Every sequence has its own random past, 18 values uniform in [0.4, 1.4), integrated for 204 to 305 units
    before it begins, so that training and evaluation are different trajectories. The data is the same, bit for bit, on
    every machine and for every batch size; see `advance`.

    The constant answer, the mean, has loss 1. The best predictor without memory sees x(t), and has the loss
    E[Var(x(t + 15) | x(t))] / Var(x) = 0.823, found by regression on 10⁷ values.

    >>> task = MackeyGlass()
    >>> batch = task.sample(jax.random.key(0), batch=1, length=64)
    >>> print(task.show(batch))
    input  6777777777888888876655443322111000000012234455566666666666777777
    target .................00000012234455566666666666777777766665555554433
    """

    name = "mackey-glass"
    summary = "forecast a chaotic series, 15 steps ahead"
    paper = "Mackey & Glass 1977; Voelker et al. 2019, NeurIPS (Legendre memory units)"
    loss_name = "mean squared error / variance"
    criterion = Criterion("normalised root-mean-square error < 0.05", "nrmse", 0.05)
    in_features = 1
    out_features = 1
    min_length = DELAY + 1
    recipe = Recipe(length=128, steps=10_000, hidden=64, batch=32, learning_rate=3e-3)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        key_past, key_begin = jax.random.split(key)
        least, most = (round(bound * GRID) for bound in (0.4, 1.4))
        past = jax.random.randint(key_past, (DELAY + 1, batch), least, most, jnp.int32).astype(jnp.float32) / GRID
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

    def show(self, batch: Batch) -> str:
        """A digit for each step: 0 to 9 from two deviations below the mean to two above."""

        def line(values: jax.Array) -> list[str]:
            return [str(level) for level in jnp.clip((values + 2) * 2.5, 0, 9).astype(int).tolist()]

        due = batch.weights[:, 0].tolist()
        targets = [digit if weight else "." for digit, weight in zip(line(batch.targets[:, 0, 0]), due, strict=True)]
        return f"input  {''.join(line(batch.inputs[:, 0, 0]))}\ntarget {''.join(targets)}"


def trajectories(past: jax.Array, delays: int) -> jax.Array:
    """Solutions of dx/dt = β x(t − τ) / (1 + x(t − τ)¹⁰) − γ x(t), with β = 0.2, γ = 0.1, τ = 17.

    Args:
      past: x at t = −17, −16, … 0, (18, B) float32.
      delays: the duration, in delays.

    Returns:
      x at t = 1, 2, … 17 · delays, (17 · delays, B) float32.
    """

    def one_delay(past: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        new = advance(past)
        return jnp.concatenate([past[-1:], new]), new

    _, xs = jax.lax.scan(one_delay, past, length=delays)
    return xs.reshape(delays * DELAY, -1)


def advance(past: jax.Array) -> jax.Array:
    """x at the next 17 points, one unit apart, from the last 18: (18, B) float32 to (17, B) float32.

    Within one delay the first term, the production, is known from the delay before. So the equation is linear there,
    and its solution is a product with a constant matrix, exact if the production is cubic between its points. The error
    is up to 1.3e-4 per delay, that of the grid included.

    The series is chaotic: over the 450 units of a sequence a relative error of 1e-7 in each delay grows to 6e-4
    deviations, and over some thousands of units to the size of the series. Floating-point sums of 18 terms differ by
    that much between processors and batch sizes. So the arithmetic is done in integers, whose sums are exact, and x
    lies on a grid: deviations of less than half of 1/GRID vanish at the end of each delay.
    """
    decay, kernel, production = (jnp.asarray(table) for table in _tables())
    x = jnp.round(past * GRID).astype(jnp.int32)
    total = decay[:, None] * x[-1] + kernel @ production[x]  # in units of 1/GRID²
    return ((total + GRID // 2) // GRID).astype(jnp.float32) / GRID


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tables of x = decay · x(0) + kernel @ production, for x at 17 points and the production at 18.

    Returns:
      decay (17,), kernel (17, 18), and the production as a function of x, (2 · GRID,); int32, in units of 1/GRID.
    """
    x = np.arange(2 * GRID) / GRID
    lag = np.subtract.outer(np.arange(1, DELAY + 1), np.arange(1, DELAY + 1))
    decay = np.where(lag >= 0, np.exp(-GAMMA * lag), 0)
    tables = np.exp(-GAMMA * np.arange(1, DELAY + 1)), decay @ _one_unit(), BETA * x / (1 + x**POWER)
    decay, kernel, production = (np.rint(table * GRID).astype(np.int32) for table in tables)
    return decay, kernel, production


def _one_unit() -> np.ndarray:
    """The contribution of the production at 18 points to x over each of the 17 units between them, (17, 18).

    It is ∫ e^(−γ(1 − s)) p(s) ds over a unit, where p is the cubic through the four nearest points.
    """
    weights = np.zeros((DELAY, DELAY + 1))
    nodes, shares = np.polynomial.legendre.leggauss(8)
    s, shares = (nodes + 1) / 2, shares / 2
    for unit in range(DELAY):
        points = min(max(unit - 1, 0), DELAY - 3) + np.arange(4)
        for point in points:
            others = points[points != point]
            basis = np.prod([(unit + s - other) / (point - other) for other in others], axis=0)
            weights[unit, point] = np.sum(shares * np.exp(-GAMMA * (1 - s)) * basis)
    return weights
