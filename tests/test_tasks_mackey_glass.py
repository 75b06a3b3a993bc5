"""Mackey-Glass: its equation against another integration, its statistics, its metrics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.tasks import mackey_glass
from experiments.tasks.mackey_glass import advance, trajectories
from tests.drawn_tasks import BATCH, KEY, LENGTH, drawn


def runge_kutta(past, steps):
    """The Mackey-Glass equation in float64, 50 steps to a unit; past at 851 points, (851, B); returns as many more."""

    def production(x):
        return 0.2 * x / (1 + x**10)

    x = list(past)
    for _ in range(steps):
        early, late, now = production(x[-851]), production(x[-850]), x[-1]
        k1 = early - 0.1 * now
        k2 = (early + late) / 2 - 0.1 * (now + 0.01 * k1)
        k3 = (early + late) / 2 - 0.1 * (now + 0.01 * k2)
        k4 = late - 0.1 * (now + 0.02 * k3)
        x.append(now + 0.02 / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return np.array(x[851:])


def test_mackey_glass_against_runge_kutta():
    """An integration by another method, from a smooth past; and x(t + 15) is due at t, 17 steps in."""
    past = np.linspace(0.5, 1.3, 3) + 0.2 * np.sin(np.linspace(0, 3, 851))[:, None]
    xs = np.asarray(jax.jit(trajectories, static_argnums=1)(jnp.asarray(past[::50], jnp.float32), 6))
    np.testing.assert_allclose(xs, runge_kutta(past, 6 * 850)[49::50], atol=3e-3)
    inputs, targets, weights = jax.tree.map(np.asarray, drawn("mackey-glass"))
    np.testing.assert_array_equal(inputs[15:], targets[:-15])
    np.testing.assert_array_equal(weights, np.arange(60)[:, None] >= np.full((1, BATCH), 17))


@pytest.mark.parametrize(("relative", "least", "most"), [(1e-7, 0, 1e-5), (1e-5, 0, 1e-3), (1e-4, 1e-2, np.inf)])
def test_mackey_glass_forgets_disturbances(monkeypatch, relative, least, most):
    """Rounding as of another processor, put into each step, is not amplified; what moves x on its grid is."""
    task, begun = tasks.get("mackey-glass"), iter(range(100))

    def disturbed(past):
        new = advance(past)
        sign = jax.random.rademacher(jax.random.key(next(begun)), new.shape, jnp.float32)
        return new * (1 + relative * sign)

    monkeypatch.setattr(mackey_glass, "advance", disturbed)
    batch = jax.jit(task.sample, static_argnums=(1, 2))(KEY, BATCH, LENGTH["mackey-glass"])
    change = max(np.abs(a - b).max() for a, b in zip(batch, drawn("mackey-glass"), strict=True))
    assert least <= change <= most


def test_mackey_glass_fits_into_integers():
    """Whatever the past in [0.4, 1.5), no sum leaves an int32, and no x the table of the production."""
    decay, kernel, production = (table.astype(np.int64) for table in mackey_glass._tables())
    grid = mackey_glass.GRID
    highest = decay * round(1.5 * grid) + np.where(kernel > 0, kernel, 0).sum(axis=1) * production.max()
    lowest = np.where(kernel < 0, kernel, 0).sum(axis=1) * production.max() + decay * round(0.4 * grid)
    assert 0 < lowest.min()
    assert highest.max() < grid * len(production) == 2**31


def test_mackey_glass_has_the_statistics_of_the_equation():
    """Quantiles and autocovariances of sequences beside those of an integration in float64."""
    rng = np.random.default_rng(0)
    knots, fine = rng.uniform(0.4, 1.4, (18, 500)), np.linspace(0, 17, 851)
    past = np.stack([np.interp(fine, np.arange(18), each) for each in knots.T], axis=1)
    slow = runge_kutta(past, 360 * 50)[204 * 50 :: 50]
    batch = drawn("mackey-glass")
    fast = np.concatenate([batch.inputs[..., 0], batch.targets[-15:, :, 0]]) * 0.226 + 0.930
    shares = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(fast, shares), np.quantile(slow, shares), atol=0.015)
    for lag in (1, 15, 50):
        a, b = (np.corrcoef(x[lag:].ravel(), x[:-lag].ravel())[0, 1] for x in (fast, slow))
        assert a == pytest.approx(b, abs=0.02)


def test_mackey_glass_is_standardised():
    """On the attractor at every step, and its memoryless baseline found by a regression on bins."""
    task = tasks.get("mackey-glass")
    inputs, targets, _ = jax.tree.map(np.asarray, drawn("mackey-glass"))
    # Sequences are independent, so a mean over them has standard error 1/√B.
    np.testing.assert_allclose(inputs[::20].mean(axis=1), 0, atol=5 / math.sqrt(BATCH))
    np.testing.assert_allclose(inputs[::20].std(axis=1), 1, atol=0.05)
    x, y = inputs[17:].ravel(), targets[17:].ravel()
    bins = np.searchsorted(np.quantile(x, np.linspace(0, 1, 101)[1:-1]), x)
    mean = np.bincount(bins, y) / np.bincount(bins)
    outputs = np.zeros_like(targets)
    outputs[17:] = mean[bins].reshape(43, BATCH, 1)
    batch = drawn("mackey-glass")
    metrics = task.metrics(jnp.asarray(outputs), batch)
    assert metrics["loss"] == pytest.approx(task.baseline(60), abs=0.02)
    assert metrics["nrmse"] == pytest.approx(math.sqrt(metrics["loss"]))
    assert task.loss(jnp.zeros_like(batch.targets), batch) == pytest.approx(1, abs=0.05)
    assert task.loss(batch.targets.at[:17].add(9), batch) == 0
    assert task.solved({"loss": 0.0024, "nrmse": 0.049})
    assert not task.solved({"loss": 0.0025, "nrmse": 0.05})
