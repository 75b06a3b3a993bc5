"""Tasks of recall and automata: data against loops in NumPy, baselines against trivial guesses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tasks
from tests.drawn_tasks import BATCH, KEY, LENGTH, drawn

RECALL = ("selective-copy", "mqar", "induction", "repeat-previous", "time-warp", "time-warp-uniform")
SYMBOLIC = (*RECALL, "parity", "cycle")
# Of which loops in Python look at the first.
SOME = range(200)


def arrays(name):
    """The batch as NumPy arrays, with inputs as categories, −1 for none."""
    inputs, targets, weights = jax.tree.map(np.asarray, drawn(name))
    assert set(np.unique(inputs)) <= {0, 1}
    shown = inputs.sum(axis=-1)
    assert ((shown == 1) | (shown == 0)).all()
    assert set(np.unique(weights)) == {0, 1}
    return np.where(shown > 0, inputs.argmax(axis=-1), -1), targets, weights


def due(weights, b):
    """The steps at which sequence b has an answer."""
    return list(np.flatnonzero(weights[:, b]))


def test_selective_copy_against_numpy():
    length = LENGTH["selective-copy"]
    shown, targets, weights = arrays("selective-copy")
    times = set()
    for b in SOME:
        at = [t for t in range(length) if shown[t, b] != 0]
        assert len(at) == 4
        assert all(1 <= shown[t, b] <= 6 for t in at)
        assert list(shown[length:, b]) == [7] * 4
        assert due(weights, b) == list(range(length, length + 4))
        assert [targets[t, b] for t in due(weights, b)] == [shown[t, b] for t in at]
        times.update(at)
    assert times == set(range(length))
    assert set(targets[length:].ravel()) == set(range(1, 7))


def test_selective_copy_counts_whole_sequences():
    task = tasks.get("selective-copy")
    targets = np.array([[0, 0], [3, 1], [1, 2], [5, 1], [6, 2]])
    batch = tasks.Batch(jnp.zeros((5, 2, 8)), jnp.asarray(targets), jnp.ones((5, 2)).at[0].set(0))
    answers = np.array([[7, 7], [3, 1], [1, 2], [5, 1], [6, 3]])
    metrics = task.metrics(jnp.asarray(np.eye(8)[answers]), batch)
    assert metrics["recall_accuracy"] == pytest.approx(7 / 8)
    assert metrics["exact_match"] == pytest.approx(1 / 2)
    assert task.solved({"exact_match": 0.991})
    assert not task.solved({"exact_match": 0.99, "recall_accuracy": 1})


def test_mqar_against_numpy():
    length = LENGTH["mqar"]
    shown, targets, weights = arrays("mqar")
    gaps = []
    for b in SOME:
        keys, values = list(shown[0:8:2, b]), list(shown[1:8:2, b])
        assert len(set(keys)) == len(set(values)) == 4
        assert all(1 <= key <= 16 for key in keys)
        assert all(17 <= value <= 32 for value in values)
        queries = [t for t in range(8, length) if shown[t, b] != 0]
        assert due(weights, b) == queries
        assert sorted(shown[t, b] for t in queries) == sorted(keys)
        assert all((t - 8) % 2 == 0 for t in queries)
        for t in queries:
            assert targets[t, b] == values[keys.index(shown[t, b])] - 17
        gaps += [(t - 8) // 2 for t in queries]
    assert set(gaps) == set(range((length - 8) // 2))


def test_mqar_gaps_follow_the_power_law():
    """As four draws one after the other without replacement, each with P(g) ∝ (g + 1)^−0.99, have them."""
    _, _, weights = arrays("mqar")
    slots = (LENGTH["mqar"] - 8) // 2
    p = np.arange(1.0, slots + 1) ** -0.99
    random = np.random.default_rng(0)
    draws = [random.choice(slots, 4, replace=False, p=p / p.sum()) for _ in range(BATCH)]
    expected = np.bincount(np.concatenate(draws), minlength=slots)
    share = weights[8 : 8 + 2 * slots : 2].sum(axis=1) / BATCH
    np.testing.assert_allclose(share, expected / BATCH, atol=5 * math.sqrt(2 * 0.25 / BATCH))


def test_induction_against_numpy():
    length = LENGTH["induction"]
    shown, targets, weights = arrays("induction")
    firsts = set()
    for b in SOME:
        special = [t for t in range(length) if shown[t, b] == 15]
        assert len(special) == 2
        assert special[1] == length - 1
        assert due(weights, b) == [length - 1]
        assert targets[-1, b] == shown[special[0] + 1, b] < 15
        firsts.add(special[0])
    assert firsts == set(range(length - 2))


@pytest.mark.parametrize(("name", "moves", "size"), [("parity", (0, 1), 2), ("cycle", (-1, 0, 1), 5)])
def test_walks_against_numpy(name, moves, size):
    task = tasks.get(name)
    shown, targets, weights = arrays(name)
    lengths = set()
    for b in SOME:
        (last,) = due(weights, b)
        assert (shown[: last + 1, b] >= 0).all()
        assert (shown[last + 1 :, b] == -1).all()
        assert targets[last, b] == sum(moves[symbol] for symbol in shown[: last + 1, b]) % size
        lengths.add(last + 1)
    assert lengths == set(range(1, 10))
    test = jax.jit(task.test, static_argnums=(1, 2))(KEY, 50, 9, 0)
    assert (test.inputs.sum(axis=-1) == 1).all()
    np.testing.assert_array_equal(test.weights, np.arange(9)[:, None] == np.full((1, 50), 8))
    assert task.generalises
    assert min(task.recipe.beyond) >= 2.5 * task.recipe.length


def test_repeat_previous_against_numpy():
    length = LENGTH["repeat-previous"]
    shown, targets, weights = arrays("repeat-previous")
    for b in SOME:
        assert due(weights, b) == list(range(length, length + 48))
        assert all(targets[t, b] == shown[t - length, b] for t in due(weights, b))
    assert set(shown.ravel()) == set(range(4))


@pytest.mark.parametrize("name", ["time-warp", "time-warp-uniform"])
def test_time_warp_against_numpy(name):
    length = LENGTH[name]
    shown, targets, weights = arrays(name)
    lasting = []
    for b in SOME:
        changes = [t for t in range(1, 5 * length) if shown[t, b] != shown[t - 1, b]]
        assert due(weights, b) == list(range(changes[0], 5 * length))
        for t in due(weights, b):
            change = max(change for change in changes if change <= t)
            assert targets[t, b] == shown[change - 1, b]
        lasting += list(np.diff([0, *changes]))
    assert set(lasting) == ({length} if name.endswith("uniform") else set(range(1, length + 1)))
    assert set(shown.ravel()) == set(range(9))


def test_flip_flop_against_numpy():
    inputs, targets, weights = jax.tree.map(np.asarray, drawn("flip-flop"))
    for b in range(20):
        for bit in range(3):
            state = 0
            for t in range(40):
                state = inputs[t, b, bit] or state
                assert targets[t, b, bit] == state
    assert set(np.unique(inputs)) == {-1, 0, 1}
    assert (inputs[0] != 0).all()
    later = inputs[1:]
    assert (later != 0).mean() == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / later.size))
    assert later.sum() == pytest.approx(0, abs=5 * math.sqrt(0.1 * later.size))
    np.testing.assert_array_equal(weights, 1)


def test_flip_flop_by_hand():
    """The mean over outputs of the squared error, without a factor ½; recall counts no step that shows the answer."""
    task = tasks.get("flip-flop")
    inputs = jnp.array([[1.0, -1, 1], [0, -1, 0]])[:, None]
    batch = tasks.Batch(inputs, jnp.array([[1.0, -1, 1], [1, -1, 1]])[:, None], jnp.ones((2, 1)))
    outputs = jnp.array([[1.0, 1, 1], [0.5, -1, -1]])[:, None]
    metrics = task.metrics(outputs, batch)
    assert metrics["loss"] == pytest.approx((4 + 0.25 + 4) / 6)
    assert metrics["recall_accuracy"] == pytest.approx(1 / 2)
    assert task.solved({"loss": 0.0099})
    assert not task.solved({"loss": 0.01})


@pytest.mark.parametrize("name", SYMBOLIC)
def test_guessing_has_the_baseline(name):
    """The frequencies of the answers, given what the step shows, are the best that remembers nothing."""
    task = tasks.get(name)
    batch = drawn(name)
    if name in ("parity", "cycle"):
        batch = jax.jit(task.test, static_argnums=(1, 2))(KEY, BATCH, 4, 0)
    shown, answers = np.asarray(batch.inputs.argmax(axis=-1)), np.asarray(batch.targets)
    at = np.asarray(batch.weights) > 0
    count = np.zeros((task.in_features, task.out_features))
    np.add.at(count, (shown[at], answers[at]), 1)
    p = count / np.maximum(count.sum(axis=1, keepdims=True), 1)
    loss = jax.jit(task.loss)(np.log(np.maximum(p, 1e-9)).astype(np.float32)[shown], batch)
    # Frequencies of N answers fit them better than the truth does, by about a parameter's worth, 1/2N, for each.
    bias = (count > 0).sum() / (2 * at.sum())
    assert loss + bias == pytest.approx(task.baseline(4), abs=0.01)


def test_short_walks_leave_less_open():
    cycle = tasks.get("cycle")
    assert cycle.baseline(2) == pytest.approx(math.log(3))
    assert cycle.baseline(3) == pytest.approx(-sum(n / 9 * math.log(n / 9) for n in (1, 2, 3, 2, 1)))
    assert cycle.baseline(40) == pytest.approx(math.log(5), rel=1e-6)
    assert tasks.get("parity").baseline(2) == pytest.approx(math.log(2))


def test_flip_flop_baseline():
    task = tasks.get("flip-flop")
    batch = drawn("flip-flop")
    assert task.loss(batch.inputs, batch) == pytest.approx(task.baseline(40), abs=5 * math.sqrt(0.09 / 480_000))


@pytest.mark.parametrize("name", [*SYMBOLIC, "digits"])
def test_only_answers_count(name):
    """Right where an answer is due and wrong elsewhere is solved; the other way round nothing is right."""
    task = tasks.get(name)
    batch = drawn(name)
    right = np.float32(50) * np.eye(task.out_features, dtype=np.float32)[np.asarray(batch.targets)]
    wrong = np.roll(right, 1, axis=-1)
    due = np.asarray(batch.weights > 0)[..., None]
    outputs = np.where(due, right, wrong), np.where(due, wrong, right)
    metrics = jax.jit(task.metrics)
    solved, failed = (metrics(each, batch) for each in outputs)
    assert task.solved(solved)
    assert solved["loss"] < 1e-6
    assert not task.solved(failed)
    assert failed["loss"] == pytest.approx(50)
    name = "recall_accuracy" if name in RECALL else "accuracy"
    assert (solved[name], failed[name]) == (1, 0)
