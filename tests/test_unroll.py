"""Forward values: the gate equations, one step, and every method of `unroll` against the NumPy loop."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

import gru_jax
from gru_jax import gates, policy
from tests import oracle
from tests.cases import BATCH, CELLS, FEATURES, IN_FEATURES, OPTIONS, STEPS, flags, native_is_installed, problem, unroll

pytestmark = pytest.mark.optimized

# Rounding of one dtype over six steps of sums of a few terms, relative to values around one.
TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 4e-2, "float16": 5e-3}


def methods(dtype):
    """Those that there are for a dtype on a CPU."""
    native = native_is_installed and dtype == jnp.float32
    return ("scan", "fused", "native") if native else ("scan", "fused")


def expected(cell, p, options):
    drop = options.get("recurrent_dropout_mask")
    mask, resets = flags(options)
    return oracle.gru(
        oracle.weights(p.params),
        np.asarray(p.xs, np.float64),
        np.asarray(p.h_0, np.float64),
        reset_after=cell.reset_after,
        candidate=oracle.sigmoid if cell == gru_jax.GOODFELLOW else np.tanh,
        mask=None if mask is None else np.asarray(mask),
        resets=None if resets is None else np.asarray(resets),
        reset_state=np.asarray(p.reset_state, np.float64),
        reverse=options.get("reverse", False),
        drop=None if drop is None else np.asarray(drop, np.float64),
    )


def each_method_compiled(cell, p):
    """(h_T, hs) of every method on one problem, in one compiled program."""
    every = methods(p.xs.dtype)
    static = {"reverse": True} if "reverse" in p.options else {}
    arrays = {name: value for name, value in p.options.items() if name not in static}
    return jax.jit(lambda args, arrays: [unroll(cell, *args, method=method, **arrays, **static) for method in every])(
        p[:4], arrays
    )


@pytest.mark.parametrize(
    ("cell", "options", "dtype"),
    [(cell, options, "float64") for cell in ("cudnn", "cho2014") for options in OPTIONS]
    + [(cell, "all", dtype) for cell in ("cudnn", "cho2014") for dtype in ("float32", "bfloat16", "float16")]
    + [("cudnn", "plain", "float32"), ("goodfellow", "all", "float64"), ("goodfellow", "plain", "float32")],
)
def test_methods_agree_with_the_numpy_loop(cell, options, dtype):
    cell = CELLS[cell]
    p = problem(cell, OPTIONS[options], dtype=jnp.dtype(dtype))
    h_last, hs = expected(cell, p, p.options)
    for got in each_method_compiled(cell, p):
        assert got[0].dtype == p.h_0.dtype
        assert got[1].dtype == dtype
        for actual, desired in zip(got, (h_last, hs), strict=True):
            np.testing.assert_allclose(np.asarray(actual, np.float64), desired, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize(
    ("cell", "options", "few", "products"),
    [("cudnn", "plain", STEPS * BATCH, 1), ("cho2014", "all", STEPS * BATCH - 1, 3), ("goodfellow", "all", 0, 3)],
)
def test_inputs_are_projected_within_the_loop_if_they_are_many(cell, options, few, products, monkeypatch):
    """On a CPU, where no gradient is taken; and of an ensemble of weights, too. Few rows are projected at once."""
    monkeypatch.setattr(policy, "HOISTED_PROJECTION_MAX_ELEMENTS", 0)
    monkeypatch.setattr(policy, "ONE_PROJECTION_MAX_ROWS", few)
    cell = CELLS[cell]
    p = problem(cell, OPTIONS[options])

    def fused(*args):
        return unroll(cell, *args, method="fused", **p.options)[1]

    def products_before_the_loop(function):
        before, _ = jax.jit(function).lower(*p[:4]).as_text().split("stablehlo.while", 1)
        return before.count("dot_general")

    assert products_before_the_loop(fused) == 0
    assert products_before_the_loop(jax.value_and_grad(lambda *args: fused(*args).sum())) == products
    desired = expected(cell, p, p.options)[1]
    np.testing.assert_allclose(jax.jit(fused)(*p[:4]), desired, atol=1e-12, rtol=0)
    weights = jax.tree.map(lambda x: jnp.stack([2 * x, x]), p.params)
    ensemble = jax.jit(jax.vmap(fused, (0, None, None, None)))(weights, *p[1:4])
    np.testing.assert_allclose(ensemble[1], desired, atol=1e-12, rtol=0)


class CompiledOrNot(chex.TestCase, parameterized.TestCase):
    """Eager and compiled calls give the same."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.product(method=("scan", "fused"), cell=("cudnn", "goodfellow"))
    def test_unroll(self, method, cell):
        cell = CELLS[cell]
        p = problem(cell)
        run = self.variant(lambda *args: gru_jax.unroll(cell, *args, method=method))
        chex.assert_trees_all_close(run(*p[:3]), expected(cell, p, {}), atol=1e-12)

    @chex.variants(with_jit=True, without_jit=True)
    def test_step(self):
        p = problem(gru_jax.CUDNN, steps=1)
        h_1 = self.variant(lambda *args: gru_jax.CUDNN.step(*args))(p.params, p.h_0, p.xs[0])
        chex.assert_trees_all_close(h_1, expected(gru_jax.CUDNN, p, {})[0], atol=1e-12)


def test_gates_follow_their_equations():
    a, b, r = (np.linspace(start, 2, 5) for start in (-2, -1, 0))
    np.testing.assert_allclose(gates.update_gate(a, b), oracle.sigmoid(a + b))
    np.testing.assert_allclose(gates.reset_gate(a, b), oracle.sigmoid(a + b))
    np.testing.assert_allclose(gates.candidate_reset_after(a, b, r), np.tanh(a + r * b))
    np.testing.assert_allclose(gates.candidate_reset_before(a, b), np.tanh(a + b))
    np.testing.assert_allclose(gates.interpolate(r, a, b), r * a + (1 - r) * b)


def test_auto_is_one_of_them():
    p = problem(gru_jax.CUDNN, OPTIONS["all"])
    chex.assert_trees_all_close(
        unroll(gru_jax.CUDNN, *p[:4], **p.options), expected(gru_jax.CUDNN, p, p.options), atol=1e-12
    )


def test_other_activations():
    cell = gru_jax.GRU(gate=jax.nn.hard_sigmoid, candidate=jnp.sin)
    p = problem(cell)
    chex.assert_trees_all_close(
        gru_jax.unroll(cell, *p[:3], method="fused"), gru_jax.unroll(cell, *p[:3], method="scan"), atol=1e-12
    )


@pytest.mark.parametrize("cell", CELLS)
def test_without_bias(cell):
    cell = CELLS[cell]
    p = problem(cell, use_bias=False)
    assert p.params.bias is None
    assert p.params.recurrent_bias is None
    for got in each_method_compiled(cell, p):
        chex.assert_trees_all_close(got, expected(cell, p, {}), atol=1e-12)


# --- Invariants -------------------------------------------------------------------------------------------------------

each_method = pytest.mark.parametrize(
    ("method", "dtype"),
    [("scan", jnp.float64), ("fused", jnp.float64), *[("native", jnp.float32)] * native_is_installed],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
CLOSE = {jnp.float64: 1e-14, jnp.float32: 1e-6}


@each_method
def test_any_number_of_batch_axes(method, dtype):
    batches = (), (2, 3), (0,)

    @jax.jit
    def run(problems):
        unroll = functools.partial(gru_jax.unroll, gru_jax.CUDNN, method=method)
        return [
            (unroll(*p), unroll(p[0], p[1].reshape(STEPS, -1, IN_FEATURES), p[2].reshape(-1, FEATURES)))
            for p in problems
        ]

    results = run([problem(gru_jax.CUDNN, batch=batch, dtype=dtype)[:3] for batch in batches])
    for batch, ((h_last, hs), (flat_last, flat_hs)) in zip(batches, results, strict=True):
        chex.assert_trees_all_close((h_last.reshape(flat_last.shape), hs.reshape(flat_hs.shape)), (flat_last, flat_hs))
        assert hs.shape == (STEPS, *batch, FEATURES)


@each_method
def test_no_steps_give_the_initial_state(method, dtype):
    p = problem(gru_jax.CUDNN, ("mask", "resets"), steps=0, dtype=dtype)
    h_last, hs = gru_jax.unroll(gru_jax.CUDNN, *p[:3], method=method, **p.options)
    assert jnp.array_equal(h_last, p.h_0)
    assert hs.shape == (0, BATCH, FEATURES)
    grads = jax.grad(lambda h_0: gru_jax.unroll(gru_jax.CUDNN, p.params, p.xs, h_0, method=method)[0].sum())(p.h_0)
    assert jnp.array_equal(grads, jnp.ones_like(p.h_0))


@each_method
def test_one_step_is_step(method, dtype):
    p = problem(gru_jax.CHO2014, steps=1, dtype=dtype)

    @jax.jit
    def run(params, xs, h_0):
        return gru_jax.unroll(gru_jax.CHO2014, params, xs, h_0, method=method), gru_jax.CHO2014.step(params, h_0, xs[0])

    unrolled, h_1 = run(*p[:3])
    chex.assert_trees_all_close(unrolled, (h_1, h_1[None]), atol=CLOSE[dtype])


@each_method
def test_a_sequence_in_two_parts_with_the_state_carried_over(method, dtype):
    @jax.jit
    def run(params, xs, h_0):
        unroll = functools.partial(gru_jax.unroll, gru_jax.CUDNN, params, method=method)
        middle, first = unroll(xs[:2], h_0)
        last, second = unroll(xs[2:], middle)
        return unroll(xs, h_0), (last, jnp.concatenate([first, second]))

    whole, parts = run(*problem(gru_jax.CUDNN, dtype=dtype)[:3])
    chex.assert_trees_all_close(whole, parts, atol=CLOSE[dtype])


@each_method
def test_reverse_is_flip(method, dtype):
    p = problem(gru_jax.CUDNN, ("mask", "resets"), dtype=dtype)

    @jax.jit
    def run(params, xs, h_0, options):
        flipped = {name: value[::-1] for name, value in options.items()}
        h_last, hs = gru_jax.unroll(gru_jax.CUDNN, params, xs[::-1], h_0, method=method, **flipped)
        return gru_jax.unroll(gru_jax.CUDNN, params, xs, h_0, reverse=True, method=method, **options), (
            h_last,
            hs[::-1],
        )

    backwards, flipped = run(*p[:3], p.options)
    chex.assert_trees_all_close(backwards, flipped, atol=CLOSE[dtype])


@each_method
def test_a_closed_update_gate_copies_and_an_open_one_replaces(method, dtype):
    p = problem(gru_jax.CUDNN, dtype=dtype)
    update = jnp.arange(3 * FEATURES) // FEATURES == 1
    run = jax.jit(functools.partial(gru_jax.unroll, gru_jax.CUDNN, method=method))
    kept = p.params._replace(bias=jnp.where(update, 1e3, p.params.bias))
    _, hs = run(kept, p.xs, p.h_0)
    assert jnp.array_equal(hs, jnp.broadcast_to(p.h_0, hs.shape))
    replaced = p.params._replace(bias=jnp.where(update, -1e3, p.params.bias))
    _, hs = run(replaced, p.xs, p.h_0)
    assert jnp.abs(hs).max() < 1
    assert jnp.abs(p.h_0).max() > 1


@each_method
@pytest.mark.parametrize(("cell", "low"), [("cudnn", -1), ("cho2014", -1), ("goodfellow", 0)])
def test_the_state_stays_within_the_range_of_the_candidate(method, dtype, cell, low):
    p = problem(CELLS[cell], steps=200, dtype=dtype)
    hs = jax.jit(lambda params, xs: gru_jax.unroll(CELLS[cell], params, 10 * xs, method=method)[1])(p.params, p.xs)
    assert low <= hs.min()
    assert hs.max() <= 1


@each_method
def test_lengths_are_the_prefix_mask(method, dtype):
    p, lengths = problem(gru_jax.CUDNN, dtype=dtype), jnp.array([0, 3, STEPS])

    @jax.jit
    def run(lengths, *args):
        unroll = functools.partial(gru_jax.unroll, gru_jax.CUDNN, *args, method=method)
        return unroll(lengths=lengths), unroll(mask=jnp.arange(STEPS)[:, None] < lengths)

    got, masked = run(lengths, *p[:3])
    chex.assert_trees_all_equal(got, masked)
    assert jnp.array_equal(got[0][0], p.h_0[0])
    assert not got[1][:, 0].any()
    assert jnp.array_equal(got[0][1], got[1][2, 1])


@each_method
def test_a_reset_starts_an_episode_of_its_own(method, dtype):
    resets = jnp.zeros((STEPS, BATCH), bool).at[4, 1].set(True)

    @jax.jit
    def run(params, xs, h_0, reset_state, resets):
        states = lambda *args, **given: gru_jax.unroll(gru_jax.CUDNN, params, *args, method=method, **given)[1]  # noqa: E731
        return (
            states(xs, h_0, resets=resets, reset_state=reset_state),
            states(xs[4:], reset_state),
            states(xs, h_0),
        )

    hs, episode, unreset = run(*problem(gru_jax.CUDNN, dtype=dtype)[:4], resets)
    chex.assert_trees_all_close(hs[4:, 1], episode[:, 1], atol=CLOSE[dtype])
    chex.assert_trees_all_close(hs[:, [0, 2]], unreset[:, [0, 2]], atol=CLOSE[dtype])


@each_method
def test_an_episode_that_begins_in_a_later_rollout_is_one_of_its_own(method, dtype):
    """From a start of the features alone, which may be learnt: its gradient is a sum over all that it starts."""
    p = problem(gru_jax.CUDNN, dtype=dtype)
    resets, start = jnp.zeros((STEPS, BATCH), bool).at[0, 0].set(True).at[4, :2].set(True), p.reset_state[0]

    @jax.jit
    def everything(params, xs, h_0, resets, start):
        def run(xs, h_0, resets, start):
            return unroll(gru_jax.CUDNN, params, xs, h_0, start, resets=resets, method=method)

        middle, first = run(xs[:3], h_0, resets[:3], start)
        h_last, second = run(xs[3:], middle, resets[3:], start)
        gradient = jax.grad(lambda start: run(xs, h_0, resets, start)[1].sum())
        return (
            (run(xs, h_0, resets, start), (h_last, jnp.concatenate([first, second]))),
            (gradient(start), gradient(jnp.stack([start] * BATCH))),
            (run(xs, h_0, None, start), run(xs, h_0, None, None)),
            run(xs[:0], h_0, resets[:0], start)[0],
        )

    (whole, rollouts), (of_start, of_each), without, none = everything(p.params, p.xs, p.h_0, resets, start)
    chex.assert_trees_all_close(whole, rollouts, atol=CLOSE[dtype])
    np.testing.assert_allclose(of_start, of_each.sum(0), atol=10 * CLOSE[dtype])
    assert not of_each[2].any()
    chex.assert_trees_all_equal(*without)
    assert jnp.array_equal(none, p.h_0)


@each_method
def test_a_reset_in_the_padding_does_not_reach_the_final_state(method, dtype):
    lengths, resets = jnp.full(BATCH, 3), jnp.zeros((STEPS, BATCH), bool).at[4].set(True)

    @jax.jit
    def run(lengths, resets, *args):
        unroll = functools.partial(gru_jax.unroll, gru_jax.CUDNN, *args, lengths=lengths, method=method)
        return unroll(resets=resets), unroll()

    chex.assert_trees_all_equal(*run(lengths, resets, *problem(gru_jax.CUDNN, dtype=dtype)[:3]))


def test_the_state_of_half_precision_is_single():
    cell, dtype = gru_jax.CUDNN, jnp.bfloat16
    p = problem(cell, dtype=dtype, steps=1)
    # A unit that keeps all but 2⁻¹⁰ of itself: in bfloat16, with 8 bits, such a state would never move.
    leak = jnp.log(2.0**10 - 1)
    bias = jnp.concatenate([jnp.zeros(FEATURES), jnp.full(FEATURES, leak), jnp.full(FEATURES, 10.0)]).astype(dtype)
    params = gru_jax.Params(jnp.zeros_like(p.params.kernel), jnp.zeros_like(p.params.recurrent_kernel), bias)
    for method in ("scan", "fused"):
        h_last, _ = gru_jax.unroll(cell, params, jnp.zeros((1000, IN_FEATURES), dtype), method=method)
        assert h_last.dtype == jnp.float32
        np.testing.assert_allclose(h_last, 1 - (1 - jax.nn.sigmoid(-float(bias[FEATURES]))) ** 1000, rtol=1e-2)
