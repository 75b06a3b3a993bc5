"""Real data: scikit-learn's handwritten digits, one pixel at a time.

Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI Machine Learning Repository, 1998, as in
`sklearn.datasets.load_digits`; as sequences like the pixels of MNIST in Le, Jaitly & Hinton, A simple way to initialize
recurrent networks of rectified linear units, 2015 (arXiv:1504.00941), section 4.2, in order and permuted.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tasks.base import Batch, Criterion, Metrics, Recipe, Task, accuracy, cross_entropy
from experiments.tasks.symbolic import last_step

SIDE = 8
PIXELS = SIDE * SIDE
CLASSES = 10
# One image in five belongs to the test set.
FOLDS = 5


@functools.cache
def split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The training set, N = 1437, and the test set, N = 360: images (N, 64) float32 in [0, 1], classes (N,) int32.

    Classes are equally frequent in both, to one image. The split and the order of the test set are fixed.

    Raises:
      ModuleNotFoundError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = "the digits tasks need scikit-learn: pip install 'gru_jax[experiments]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    pixels, classes = load_digits(return_X_y=True)
    # RandomState, not default_rng: NumPy guarantees that its streams never change.
    random = np.random.RandomState(0)
    order = random.permutation(len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    test = random.permutation(by_class[::FOLDS])
    train = np.setdiff1d(by_class, test)
    # Pixels are counts from 0 to 16.
    images, classes = (pixels / 16).astype(np.float32), classes.astype(np.int32)
    return (images[train], classes[train]), (images[test], classes[test])


@dataclasses.dataclass(frozen=True)
class Digits(Task):
    """The 64 pixels of an 8 × 8 image, row by row, a gray value in [0, 1] at each step; the digit is the last target.

    Training draws from 1437 images with replacement. `test` goes through the other 360 in a fixed order, whatever the
    key, so that an evaluation of 360 sequences sees the whole test set once. The loss is the cross-entropy at the last
    step. Without any input it is ln 10 = 2.303. A predictor without memory sees the last pixel alone; the entropy of
    the digit given that pixel is 2.208, by the frequencies in all 1797 images.

    >>> task = Digits()
    >>> batch = task.test(jax.random.key(0), batch=1, length=64, first=0)
    >>> print(task.show(batch))
    ..+@%=..
    .=@-*@..
    .:%=*@:.
    ..-+#@-.
    .....@=.
    .....@+.
    ..:.+@..
    ..*@#-..
    target 9
    """

    name = "digits"
    summary = "classify a handwritten digit, pixel by pixel"
    paper = "UCI Optical recognition of handwritten digits, 1998; pixel by pixel as in Le et al. 2015, arXiv:1504.00941"
    loss_name = "cross-entropy per image (nats)"
    criterion = Criterion("test accuracy >= 0.95", "accuracy", 0.95, higher_is_better=True, inclusive=True)
    in_features = 1
    out_features = CLASSES
    min_length = PIXELS
    max_length = PIXELS
    recipe = Recipe(length=PIXELS, steps=3_000, hidden=128, batch=120, learning_rate=2e-3, init="default")

    def pixels(self) -> np.ndarray:
        """The index of the pixel at each step, (64,) int."""
        return np.arange(PIXELS)

    def sample(self, key: jax.Array, batch: int, length: int) -> Batch:
        train, _ = split()
        chosen = jax.random.randint(key, (batch,), 0, len(train[1]), jnp.int32)
        return self._batch(train, chosen, length)

    def test(self, key: jax.Array, batch: int, length: int, first: jax.Array) -> Batch:
        _, test = split()
        return self._batch(test, (first + jnp.arange(batch, dtype=jnp.int32)) % len(test[1]), length)

    def _batch(self, data: tuple[np.ndarray, np.ndarray], chosen: jax.Array, length: int) -> Batch:
        if length != PIXELS:
            raise ValueError(f"length must be {PIXELS}, the pixels of an image; got {length}")
        images, classes = data
        inputs = jnp.asarray(images[:, self.pixels()])[chosen].T[..., None]
        targets = jnp.broadcast_to(jnp.asarray(classes)[chosen], (PIXELS, chosen.shape[0]))
        return Batch(inputs, targets, last_step(jnp.full(chosen.shape, PIXELS, jnp.int32), PIXELS))

    def baseline(self, length: int) -> float:
        return 2.208

    def loss(self, outputs: jax.Array, batch: Batch) -> jax.Array:
        return cross_entropy(outputs, batch)

    def metrics(self, outputs: jax.Array, batch: Batch) -> Metrics:
        return {"loss": self.loss(outputs, batch), "accuracy": accuracy(outputs, batch)}

    def show(self, batch: Batch) -> str:
        rows = batch.inputs[:, 0, 0].reshape(SIDE, SIDE)
        glyphs = ".:-=+*#%@"
        lines = ["".join(glyphs[int(value * (len(glyphs) - 1))] for value in row) for row in rows.tolist()]
        return "\n".join([*lines, f"target {batch.targets[-1, 0].item()}"])


@dataclasses.dataclass(frozen=True)
class PermutedDigits(Digits):
    """`Digits` with the pixels in a fixed random order, so that neighbours in the image are far apart in time.

    The last pixel is a different one, and tells more about the digit: the entropy of the digit given it is 1.960.
    """

    name = "digits-permuted"
    summary = "classify a handwritten digit, its pixels in a fixed random order"

    def pixels(self) -> np.ndarray:
        return np.random.RandomState(0).permutation(PIXELS)

    def baseline(self, length: int) -> float:
        return 1.960
