"""The tasks: data against slow NumPy versions and examples made by hand, baselines against the trivial predictor."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.tasks.copy import BLANK, DELIMITER

KEY = jax.random.key(7)
ADDING, COPY = tasks.get("adding"), tasks.get("copy")


def lengths(task):
    """The shortest length and a longer one, where the task has one."""
    return sorted({task.min_length, min(task.min_length + 5, task.max_length or task.min_length + 5)})


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("x64", [False, True])
def test_contract(name, x64):
    """What every task must be, under tracing, in float32 whatever the global precision."""
    task = tasks.get(name)

    def sample_and_measure(key, length):
        batch = task.sample(key, 3, length)
        outputs = jnp.zeros((task.steps(length), 3, task.out_features), jnp.float32)
        return batch, task.loss(outputs, batch), task.metrics(outputs, batch)

    with jax.enable_x64(x64):
        for length in {*lengths(task), task.recipe.length}:
            batch, loss, metrics = jax.eval_shape(functools.partial(sample_and_measure, length=length), KEY)
            steps = task.steps(length)
            assert batch.inputs.shape == (steps, 3, task.in_features)
            assert batch.targets.shape[:2] == batch.weights.shape == (steps, 3)
            assert batch.inputs.dtype == batch.weights.dtype == jnp.float32
            assert batch.targets.dtype in (jnp.float32, jnp.int32)
            assert {"loss", task.criterion.metric, *task.scores} <= metrics.keys()
            assert all(value.shape == () and value.dtype == jnp.float32 for value in (loss, *metrics.values()))
            assert 0 < task.baseline(length) < math.inf
        # Draws in another precision are other draws; bounds of draws may be float64, as scalars.
        program = str(jax.make_jaxpr(lambda key: task.sample(key, 3, task.recipe.length))(KEY))
        assert not re.search(r"f64\[\d", program)
    assert hash(task) == hash(type(task)())
    assert task == type(task)()
    assert task.min_length <= task.recipe.length <= (task.max_length or task.recipe.length)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_data_depend_on_the_key_alone(name):
    """The same from the same key, another from another, whether drawn one after the other or side by side."""
    task = tasks.get(name)
    length = lengths(task)[-1]

    def draw_and_measure(key):
        batch = task.sample(key, 4, length)
        outputs = jax.random.normal(KEY, (task.steps(length), 4, task.out_features), jnp.float32)
        return batch, task.loss(outputs, batch), task.metrics(outputs, batch)["loss"]

    keys = jnp.stack([KEY, KEY, jax.random.key(8)])
    both = jax.jit(
        lambda keys: (jax.lax.map(draw_and_measure, keys), jax.vmap(draw_and_measure)(keys)),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    one_by_one, at_once = both(keys)
    chex.assert_trees_all_close(one_by_one, at_once, rtol=1e-6)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf, i=i: leaf[i], one_by_one) for i in (0, 1)))
    batch, loss, reported = one_by_one
    assert not np.array_equal(batch.inputs[0], batch.inputs[2])
    np.testing.assert_array_equal(loss, reported)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_criterion(name):
    """A metric of each task, a threshold in its words, and a direction: a loss falls to it, an accuracy rises."""
    task = tasks.get(name)
    metric, threshold = task.criterion.metric, task.criterion.threshold
    assert any(f"{number:g}" in task.criterion.text for number in (threshold, 100 * threshold))
    assert task.higher_is_better(metric) == (metric not in ("loss", "nrmse"))
    better = 1.01 if task.higher_is_better(metric) else 0.99
    assert task.solved({metric: threshold * better})
    assert not task.solved({metric: threshold / better})
    assert not task.solved({metric: math.nan})
    assert not task.higher_is_better("loss")
    assert all(map(task.higher_is_better, task.scores))


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'copi'; did you mean 'copy'"):
        tasks.get("copi")
    with pytest.raises(ValueError, match=r"unknown task 'xyzzy'\. There are: adding, "):
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
