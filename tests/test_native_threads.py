"""The native kernels on several threads, and in several calls at the same time."""

import concurrent.futures

import chex
import jax
import jax.numpy as jnp
import pytest

import gru_jax
from tests.cases import problem
from tests.kernels import check, each_cell, native, native_and_exact, random_problem, rows, single, value_and_gradient

pytestmark = [native, pytest.mark.optimized]


def gradient(args, options, cell=gru_jax.CUDNN):
    def loss(*args):
        return (gru_jax.unroll(cell, *args, **options, method="native")[1] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*args).compile()


@pytest.mark.parametrize(("batch", "steps"), [(300, 80), (2, 5000)])
@each_cell
def test_results_do_not_depend_on_the_number_of_threads(cell, batch, steps, monkeypatch):
    args = single(problem(cell, batch=(batch,), steps=steps)[:3])
    results = []
    for threads in (1, 2, 3, 0):
        monkeypatch.setattr(gru_jax.config, "native_threads", threads)
        results.append(gradient(args, {}, cell)(*args))
    for result in results[1:]:
        chex.assert_trees_all_equal(result, results[0])


@pytest.mark.parametrize("seed", rows(*range(4), long=range(4, 8)))
def test_few_rows_whose_steps_threads_share(seed, keep, monkeypatch):
    """What two threads that share the columns of each step compute is what one computes."""
    keep(seed % 2)
    cell, args, options, reverse, ct = random_problem(seed, most=(150, 26, 60, 150))
    function = value_and_gradient(cell, reverse)
    shared, exact = native_and_exact(function, args, options, ct)
    check(shared, exact)
    monkeypatch.setattr(gru_jax.config, "native_threads", 1)
    alone = jax.jit(function("native"))(args, options, ct)
    chex.assert_trees_all_equal(alone, shared)


@pytest.mark.parametrize("sizes", [(80, 300, 2, 4), (200, 3, 20, 60)], ids=str)
def test_calls_at_the_same_time(sizes):
    """Each call shares XLA's threads with the others; none may wait for one that has not begun."""
    steps, batch, in_features, features = sizes
    params = gru_jax.CUDNN.init(jax.random.key(0), in_features, features)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, in_features), jnp.float32)
    args = single((params, xs, jnp.zeros((batch, features))))
    compiled = gradient(args, {})
    expected = compiled(*args)

    def calls(_):
        return [jax.block_until_ready(compiled(*args)) for _ in range(10)]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for results in threads.map(calls, range(8), timeout=300):
            for result in results:
                chex.assert_trees_all_equal(result, expected)
