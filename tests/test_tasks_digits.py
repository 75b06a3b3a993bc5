"""Digits: what is trained on, what is evaluated, and the baseline."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from experiments.tasks import digits
from tests.drawn_tasks import KEY, drawn

DIGITS = ("digits", "digits-permuted")


def test_digits_split():
    sklearn = pytest.importorskip("sklearn.datasets")
    (train, train_classes), (test, test_classes) = digits.split()
    assert train.shape == (1437, 64)
    assert test.shape == (360, 64)
    assert train.dtype == test.dtype == np.float32
    pixels, classes = sklearn.load_digits(return_X_y=True)
    # Together they are the whole data set, each image once (it holds no two equal ones).
    images, labels = np.concatenate([train, test]) * 16, np.concatenate([train_classes, test_classes])
    both = {(*image, label) for image, label in zip(images, labels, strict=True)}
    assert both == {(*image, label) for image, label in zip(pixels, classes, strict=True)}
    assert len(both) == 1797
    share = np.bincount(test_classes) / np.bincount(classes)
    np.testing.assert_allclose(share, 0.2, atol=1 / 170)


@pytest.mark.parametrize("name", DIGITS)
def test_digits_evaluation_is_the_test_set_once(name):
    pytest.importorskip("sklearn")
    task = tasks.get(name)
    draw = jax.jit(task.test, static_argnums=(1, 2))
    batches = [draw(jax.random.fold_in(KEY, n), 60, 64, jnp.int32(60 * n)) for n in range(7)]
    images = np.concatenate([batch.inputs[..., 0].T for batch in batches[:6]])
    answers = np.concatenate([batch.targets[-1] for batch in batches[:6]])
    _, (test, classes) = digits.split()
    np.testing.assert_array_equal(images, test[:, task.pixels()])
    np.testing.assert_array_equal(answers, classes)
    np.testing.assert_array_equal(batches[6].inputs, batches[0].inputs)
    assert sorted(task.pixels()) == list(range(64))
    sampled = {image.tobytes() for image in np.asarray(drawn(name).inputs[..., 0].T)}
    assert not sampled & {image.tobytes() for image in images}


@pytest.mark.parametrize("name", DIGITS)
def test_digits_baseline(name):
    """The entropy of the class given the last pixel, by the frequencies of all images."""
    pytest.importorskip("sklearn")
    task = tasks.get(name)
    images, classes = (np.concatenate(each) for each in zip(*digits.split(), strict=True))
    count = np.zeros((17, 10))
    np.add.at(count, ((images[:, task.pixels()[-1]] * 16).astype(int), classes), 1)
    given = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    entropy = -(count * np.log(np.where(given > 0, given, 1))).sum() / len(classes)
    assert task.baseline(64) == pytest.approx(entropy, abs=5e-4)


def test_digits_have_one_length(monkeypatch):
    pytest.importorskip("sklearn")
    task = tasks.get("digits")
    with pytest.raises(ValueError, match="length must be 64, the pixels of an image; got 32"):
        task.sample(KEY, 2, 32)
    assert task.max_length == task.min_length == task.recipe.length == 64
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"need scikit-learn: pip install 'gru_jax\[experiments\]'"):
        digits.split.__wrapped__()
