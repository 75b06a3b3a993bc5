"""The tasks: data against slow NumPy versions and examples made by hand, baselines against the trivial predictor."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.tasks.copy import BLANK, DELIMITER

KEY = jax.random.key(7)
ADDING, COPY = tasks.get("adding"), tasks.get("copy")


def longest(task, more):
    """A length of `more` above the shortest, if there is one."""
    return min(task.min_length + more, task.max_length or math.inf)


@functools.cache
def sampler(name):
    """A task's `sample`, compiled once for all tests."""
    return jax.jit(tasks.get(name).sample, static_argnums=(1, 2))


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize(("x64", "more"), [(False, 5), (True, 0)])
def test_contract(name, x64, more):
    """What every task keeps to, in float32 whatever the global precision."""
    task = tasks.get(name)
    length = longest(task, more)
    with jax.enable_x64(x64):
        batch = sampler(name)(KEY, 3, length)
        steps = task.steps(length)
        assert batch.inputs.shape == (steps, 3, task.in_features)
        assert batch.targets.shape[:2] == batch.weights.shape == (steps, 3)
        assert batch.inputs.dtype == batch.weights.dtype == jnp.float32
        assert batch.targets.dtype in (jnp.float32, jnp.int32)
        outputs = jnp.zeros((steps, 3, task.out_features), jnp.float32)
        metrics, loss = jax.jit(lambda outputs, batch: (task.metrics(outputs, batch), task.loss(outputs, batch)))(
            outputs, batch
        )
        assert metrics["loss"] == loss
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
        assert 0 < task.baseline(length) < math.inf
    assert hash(task) == hash(type(task)())
    assert task == type(task)()
    assert task.min_length <= task.recipe.length <= (task.max_length or task.recipe.length)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_data_depend_on_the_key_alone(name):
    task = tasks.get(name)
    first, again, other = (sampler(name)(key, 3, longest(task, 5)) for key in (KEY, KEY, jax.random.key(8)))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first.inputs, other.inputs)


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'copi'; did you mean 'copy'"):
        tasks.get("copi")
    with pytest.raises(ValueError, match=r"unknown task 'xyzzy'\. Tasks: adding, copy"):
        tasks.get("xyzzy")


@pytest.mark.parametrize("length", [2, 7, 10])
def test_adding_against_numpy(length):
    batch = jax.tree.map(np.asarray, ADDING.sample(KEY, 500, length))
    half = length // 2
    seen = set()
    for b in range(500):
        values, marks = batch.inputs[:, b, 0], batch.inputs[:, b, 1]
        marked = [t for t in range(length) if marks[t] == 1]
        assert sum(marks) == len(marked) == 2
        assert marked[0] < half <= marked[1]
        assert batch.targets[-1, b, 0] == pytest.approx(values[marked[0]] + values[marked[1]], rel=1e-6)
        seen.update(marked)
    assert seen == set(range(length))
    values = batch.inputs[..., 0]
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=5 / math.sqrt(12 * values.size))
    np.testing.assert_array_equal(batch.weights, np.arange(length)[:, None] == np.full((1, 500), length - 1))


def test_adding_loss_by_hand():
    """Squared error, without a factor ½, at the last step alone."""
    batch = tasks.Batch(jnp.zeros((3, 2, 2)), jnp.ones((3, 2, 1)), jnp.array([[0.0, 0], [0, 0], [1, 1]]))
    outputs = jnp.array([[9.0, 9], [9, 9], [1.5, 0]])[..., None]
    assert ADDING.loss(outputs, batch) == pytest.approx((0.25 + 1) / 2)


def test_adding_baseline():
    batch = ADDING.sample(KEY, 40_000, 20)
    loss = ADDING.loss(jnp.ones((20, 40_000, 1)), batch)
    # The square of a triangular variable on [-1, 1] has variance 1/15 − 1/36, so this is five standard errors.
    assert loss == pytest.approx(ADDING.baseline(20), abs=5 * math.sqrt((1 / 15 - 1 / 36) / 40_000))


def test_adding_solved():
    assert ADDING.solved({"loss": 9.9e-4})
    assert not ADDING.solved({"loss": 1e-3})
    assert not ADDING.solved({"loss": math.nan})


@pytest.mark.parametrize("length", [1, 6])
def test_copy_against_numpy(length):
    batch = jax.tree.map(np.asarray, COPY.sample(KEY, 50, length))
    np.testing.assert_array_equal(batch.inputs.sum(axis=-1), 1)
    shown = batch.inputs.argmax(axis=-1)
    for b in range(50):
        symbols = list(shown[:10, b])
        assert all(0 <= symbol < 8 for symbol in symbols)
        assert list(shown[10:, b]) == [BLANK] * (length - 1) + [DELIMITER] + [BLANK] * 10
        assert list(batch.targets[:, b]) == [BLANK] * (length + 10) + symbols
    assert set(shown[:10].ravel()) == set(range(8))
    np.testing.assert_array_equal(batch.weights, 1)


def test_copy_baseline():
    """Blanks while they are due, then any of eight symbols: certain and right, then 1/8 each."""
    batch = COPY.sample(KEY, 100, 30)
    blank = jnp.where(jnp.arange(10) == BLANK, 0.0, -1e9)
    symbol = jnp.where(jnp.arange(10) < 8, 0.0, -1e9)
    recalling = (jnp.arange(50) >= 40)[:, None, None]
    outputs = jnp.broadcast_to(jnp.where(recalling, symbol, blank), (50, 100, 10))
    assert COPY.loss(outputs, batch) == pytest.approx(COPY.baseline(30), rel=1e-5)
    assert COPY.baseline(30) == pytest.approx(10 * math.log(8) / 50)


def test_copy_recall_is_not_helped_by_blanks():
    """Right at every blank and wrong at every symbol is nothing recalled."""
    batch = COPY.sample(KEY, 5, 100)
    right = 50 * jax.nn.one_hot(batch.targets, 10)
    wrong = right.at[-10:].set(50 * jax.nn.one_hot((batch.targets[-10:] + 1) % 8, 10))
    half = right.at[-5:].set(wrong[-5:])
    accuracy = [float(COPY.metrics(outputs, batch)["recall_accuracy"]) for outputs in (right, half, wrong)]
    assert accuracy == [1, 0.5, 0]
    assert COPY.solved({"recall_accuracy": 0.991})
    assert not COPY.solved({"recall_accuracy": 0.99})
