"""The cells that the GRU is compared with: against loops written from their papers, and one table of cells × options."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import initializers
from gru_jax.cells import LSTM, MGU, Elman, Leaky, LSTMState, MinGRU, RefineGRU
from tests import oracle
from tests.cases import BATCH, FEATURES, IN_FEATURES, OPTIONS, STEPS, flags, normal_init

TAU = (1.0, 3.0, 10.0, 50.0)


class Case(NamedTuple):
    """A cell, its step in the oracle, and the paper's letters for its gates; after a minus its gate has the other sign."""

    cell: gru_jax.cells.Cell
    step: Callable
    letters: str


CASES = {
    "lstm": Case(LSTM(), oracle.lstm, "i f g o"),
    "elman": Case(Elman(), oracle.leaky, "n"),
    "leaky_fixed": Case(Leaky(TAU), oracle.leaky, "n"),
    "leaky_learned": Case(Leaky(), oracle.leaky, "n"),
    "mgu": Case(MGU(), oracle.mgu, "-f n"),
    "mingru": Case(MinGRU(), oracle.mingru, "-z n"),
    "refine": Case(RefineGRU(), oracle.refine_gru, "r f s n"),
}
KEY = jax.random.key(0)

each_case = pytest.mark.parametrize("case", CASES)
each_run = pytest.mark.parametrize(
    ("case", "method"), [(name, method) for name, case in CASES.items() for method in case.cell.methods]
)


def weights(case, params):
    """The oracle's weights, in the paper's letters and signs."""
    w = {"tau": 1.0}
    letters = case.letters.split()
    for field, name in (("kernel", "W"), ("recurrent_kernel", "U"), ("bias", "b")):
        if (packed := getattr(params, field, None)) is not None:
            for letter, block in zip(letters, np.split(np.asarray(packed, np.float64), len(letters), -1), strict=True):
                w[f"{name}_{letter[-1]}"] = -block if letter[0] == "-" else block
    if getattr(params, "recurrent_bias", None) is not None:
        w["c_n"] = np.asarray(params.recurrent_bias, np.float64)
    if isinstance(case.cell, Leaky):
        w["tau"] = TAU if params.leak is None else 1 + np.exp(np.asarray(params.leak, np.float64))
    return w


def problem(case, *, dtype=jnp.float64, steps=STEPS):
    """Random parameters, inputs and initial state."""
    keys = jax.random.split(KEY, 3)
    # Not orthogonal: a QR decomposition takes longer to compile than all the rest.
    params = case.cell.init(
        keys[0],
        IN_FEATURES,
        FEATURES,
        bias_init=normal_init,
        recurrent_kernel_init=initializers.lecun_normal,
        dtype=jnp.float64,
    )
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    zero = case.cell.initial_state(params, (BATCH,))
    leaves, structure = jax.tree.flatten(zero)
    state_0 = jax.tree.unflatten(
        structure, jax.random.normal(keys[1], (len(leaves), *leaves[0].shape), leaves[0].dtype)
    )
    return params, jax.random.normal(keys[2], (steps, BATCH, IN_FEATURES), dtype), state_0


def chosen(options, steps=STEPS):
    """The arguments of `unroll` that a row of the table names."""
    keys = jax.random.split(KEY)
    every = {
        "mask": jax.random.bernoulli(keys[0], 0.7, (steps, BATCH)),
        "lengths": jnp.arange(steps, steps - 2 * BATCH, -2)[:BATCH],
        "resets": jax.random.bernoulli(keys[1], 0.3, (steps, BATCH)),
        "reverse": True,
    }
    return {name: every[name] for name in options if name in every}


def expected(case, params, xs, state_0, options):
    mask, resets = (None if flag is None else np.asarray(flag) for flag in flags(options))
    parts = tuple(np.asarray(part, np.float64) for part in jax.tree.leaves(state_0))
    everything = {"mask": mask, "resets": resets, "reverse": options.get("reverse", False)}
    return oracle.run(case.step, weights(case, params), np.asarray(xs, np.float64), parts, **everything)


def flat(result):
    """(state_T, hs) as the oracle has it, in float64."""
    state_T, hs = jax.tree.map(lambda part: np.asarray(part, np.float64), result)
    return tuple(jax.tree.leaves(state_T)), hs


# --- Values -----------------------------------------------------------------------------------------------------------


@each_run
def test_options_agree_with_the_numpy_loop(case, method):
    """Every combination of options, in one compiled program."""
    case = CASES[case]
    arguments = problem(case)

    @jax.jit
    def run(params, xs, state_0):
        return {
            name: gru_jax.unroll(case.cell, params, xs, state_0, **chosen(options), method=method)
            for name, options in OPTIONS.items()
            if name != "dropout"
        }

    for name, result in run(*arguments).items():
        desired = expected(case, *arguments, chosen(OPTIONS[name]))
        chex.assert_trees_all_close(flat(result), desired, atol=1e-12)


@each_run
def test_any_batch_and_any_number_of_steps(case, method):
    """No batch axis, two, an empty one; no h_0, one step, a sequence in two parts, no steps at all."""
    case = CASES[case]
    params, xs, state_0 = problem(case)
    cell, options = case.cell, chosen(("mask", "resets"))

    @jax.jit
    def run(params, xs, state_0):
        unroll = functools.partial(gru_jax.unroll, cell, params, method=method)
        one, two = (functools.partial(jax.tree.map, f) for f in (lambda x: x[..., 1, :], lambda x: x[..., None, :, :]))
        one_flags = {name: flag[:, 1] for name, flag in options.items()}
        two_flags = {name: flag[:, None] for name, flag in options.items()}
        middle, first = unroll(xs[:1])
        end, second = unroll(xs[1:], middle)
        return (
            (unroll(one(xs), one(state_0), **one_flags), unroll(two(xs), two(state_0), **two_flags)),
            unroll(xs[:, :0]),
            (end, jnp.concatenate([first, second])),
            (middle, cell.step(params, cell.initial_state(params, (BATCH,)), xs[0])),
            unroll(xs[:0], state_0),
        )

    (one, two), empty, parts, (unrolled, stepped), none = run(params, xs, state_0)
    desired = expected(case, params, xs, state_0, options)
    chex.assert_trees_all_close(flat(one), jax.tree.map(lambda x: x[..., 1, :], desired), atol=1e-12)
    chex.assert_trees_all_close(flat(two), jax.tree.map(lambda x: x[..., None, :, :], desired), atol=1e-12)
    assert empty[1].shape == (STEPS, 0, FEATURES)
    zero = cell.initial_state(params, (BATCH,))
    chex.assert_trees_all_close(flat(parts), expected(case, params, xs, zero, {}), atol=1e-12)
    chex.assert_trees_all_close(unrolled, stepped, atol=1e-14)
    chex.assert_trees_all_equal(none, (state_0, jnp.zeros((0, BATCH, FEATURES))))


@each_run
def test_the_state_is_kept_in_float32(case, method):
    case = CASES[case]
    arguments = problem(case, dtype=jnp.bfloat16)
    state_T, hs = jax.jit(functools.partial(gru_jax.unroll, case.cell, method=method))(*arguments)
    assert {part.dtype.name for part in jax.tree.leaves((arguments[2], state_T))} == {"float32"}
    assert hs.dtype == jnp.bfloat16
    # A minGRU's candidate is not bounded by one, and neither is an LSTM's memory.
    chex.assert_trees_all_close(flat((state_T, hs)), expected(case, *arguments, {}), atol=4e-2, rtol=4e-2)


@each_run
def test_gradients_of_many_seeds_at_once(case, method):
    """vmap over weights is one seed after another; what is masked, NaN too, has no part in a gradient."""
    cell = CASES[case].cell
    params, xs, state_0 = problem(CASES[case], steps=3)
    xs = xs.at[2:, 1].set(jnp.nan).at[:, 2].set(jnp.nan)

    def loss(params, xs):
        state_T, hs = gru_jax.unroll(cell, params, xs, state_0, lengths=jnp.array([3, 2, 0]), method=method)
        return (hs**2).sum() + sum((part**2).sum() for part in jax.tree.leaves(state_T))

    @jax.jit
    def run(params, xs):
        ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), params)
        gradient = jax.grad(loss, argnums=(0, 1))
        return jax.vmap(gradient, in_axes=(0, None))(ensemble, xs), gradient(params, xs)

    both, one = run(params, xs)
    chex.assert_tree_all_finite(both)
    assert not both[1][:, 2:, 1].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(both[0]))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], both), one, atol=1e-12)


# --- Special cases and other frameworks -------------------------------------------------------------------------------


def test_special_cases():
    params, xs, h_0 = problem(CASES["elman"])
    leaky = gru_jax.unroll(Leaky(1.0), gru_jax.cells.LeakyParams(*params[:3]), xs, h_0)
    chex.assert_trees_all_close(leaky, gru_jax.unroll(Elman(), params, xs, h_0), atol=1e-14)

    params, xs, h_0 = problem(CASES["refine"])
    half = [leaf.at[..., 2 * FEATURES : 3 * FEATURES].set(0) for leaf in params[:3]]
    without = [jnp.delete(leaf, slice(2 * FEATURES, 3 * FEATURES), axis=-1) for leaf in params[:3]]
    chex.assert_trees_all_close(
        gru_jax.unroll(RefineGRU(), gru_jax.Params(*half, params[3]), xs, h_0),
        gru_jax.unroll(gru_jax.CUDNN, gru_jax.Params(*without, params[3]), xs, h_0),
        atol=1e-14,
    )


def test_lstm_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    params, xs, state_0 = problem(CASES["lstm"])
    theirs = torch.nn.LSTM(IN_FEATURES, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        for name, value in zip(
            ("weight_ih", "weight_hh", "bias_ih"), (params[0].T, params[1].T, params[2]), strict=False
        ):
            getattr(theirs, f"{name}_l0").copy_(torch.tensor(np.asarray(value)))
        theirs.bias_hh_l0.zero_()
    hs, (h_T, c_T) = theirs(
        torch.tensor(np.asarray(xs)), tuple(torch.tensor(np.asarray(part))[None] for part in state_0)
    )
    ours = gru_jax.unroll(LSTM(), params, xs, state_0)
    chex.assert_trees_all_close(flat(ours), ((h_T[0].detach(), c_T[0].detach()), hs.detach()), atol=1e-12)
    (hs**2).sum().backward()
    grads = jax.grad(lambda params: (gru_jax.unroll(LSTM(), params, xs, state_0)[1] ** 2).sum())(params)
    gradients = theirs.weight_ih_l0.grad.T, theirs.weight_hh_l0.grad.T, theirs.bias_ih_l0.grad
    for actual, desired in zip(grads, gradients, strict=False):
        np.testing.assert_allclose(actual, desired, atol=1e-12)


def test_lstm_is_that_of_flax():
    from flax import linen as nn

    params, xs, state_0 = problem(CASES["lstm"])
    variables = {}
    for i, gate in enumerate("ifgo"):
        block = slice(i * FEATURES, (i + 1) * FEATURES)
        variables[f"i{gate}"] = {"kernel": params.kernel[:, block]}
        variables[f"h{gate}"] = {"kernel": params.recurrent_kernel[:, block], "bias": params.bias[block]}
    layer = nn.RNN(nn.OptimizedLSTMCell(FEATURES), time_major=True, return_carry=True)
    (c_T, h_T), hs = layer.apply({"params": {"cell": variables}}, xs, initial_carry=(state_0.c, state_0.h))
    chex.assert_trees_all_close(gru_jax.unroll(LSTM(), params, xs, state_0), (LSTMState(h_T, c_T), hs), atol=1e-12)


# --- minGRU in parallel -----------------------------------------------------------------------------------------------


def test_parallel_gradients_are_those_of_the_sequential_form():
    options = chosen(("mask", "resets", "reverse"))
    weight = jax.random.normal(KEY, (STEPS, BATCH, FEATURES))

    def loss(args, method):
        h_T, hs = gru_jax.unroll(MinGRU(), *args, **options, method=method)
        return (weight * hs).sum() + (h_T**2).sum()

    @jax.jit
    def run(args):
        return [jax.grad(loss)(args, method) for method in ("scan", "parallel")]

    scan, parallel = run(problem(CASES["mingru"]))
    chex.assert_trees_all_close(parallel, scan, rtol=1e-9, atol=1e-12)


def test_parallel_is_exact_where_gates_saturate_and_candidates_vanish():
    """Gates shut for many steps, states at zero and below, candidates near zero and at the kink of g."""
    steps, features = 40, 6
    bias = jnp.array([-60.0, -5.0, 0.0, 5.0, 12.0, 20.0, 0.0, -60.0, 3.0, 0.0, -20.0, 1.0])
    params = gru_jax.cells.MinGRUParams(jnp.zeros((1, 2 * features)), bias)
    h_0 = jnp.stack([jnp.zeros(features), -jnp.ones(features), jnp.full(features, 1e3)])

    @functools.partial(jax.jit, static_argnums=(2, 3))
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(params, h_0, method, dtype):
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, jnp.zeros((steps, 3, 1)), h_0))
        return gru_jax.unroll(MinGRU(), *cast, method=method)[1].sum()

    exact, exact_grads = run(params, h_0, "scan", jnp.float64)
    got, grads = run(params, h_0, "parallel", jnp.float32)
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    np.testing.assert_allclose(grads[1], exact_grads[1], rtol=1e-5)
    np.testing.assert_allclose(grads[0].bias, exact_grads[0].bias, rtol=1e-4, atol=1e-20)


def test_minimal_gru_without_method_runs_by_platform():
    assert set(MinGRU().methods) == {"scan", "parallel"}
    params, xs, h_0 = problem(CASES["mingru"])
    loops = {
        method: "scan" in str(jax.make_jaxpr(lambda m=method: gru_jax.unroll(MinGRU(), params, xs, h_0, method=m))())
        for method in ("auto", "scan", "parallel")
    }
    assert loops == {"auto": jax.default_backend() == "cpu", "scan": True, "parallel": False}


# --- Parameters -------------------------------------------------------------------------------------------------------

D, H = IN_FEATURES, FEATURES
COUNTS = {
    "lstm": 4 * (D * H + H**2 + H),
    "elman": D * H + H**2 + H,
    "leaky_fixed": D * H + H**2 + H,
    "leaky_learned": D * H + H**2 + 2 * H,
    "mgu": 2 * (D * H + H**2 + H),
    "mingru": 2 * (D * H + H),
    "refine": 4 * (D * H + H**2 + H) + H,
}


@each_case
def test_parameters(case):
    cell = CASES[case].cell
    shapes = jax.eval_shape(lambda: cell.init(KEY, D, H))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[case]
    half = jax.eval_shape(lambda: cell.init(KEY, D, H, use_bias=False, dtype="bfloat16"))
    assert half.bias is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    params, xs, state_0 = problem(CASES[case])
    biases = {name: getattr(params, name) for name in ("bias", "recurrent_bias") if hasattr(params, name)}
    without = params._replace(**dict.fromkeys(biases))
    zero = params._replace(**{name: None if b is None else 0 * b for name, b in biases.items()})
    chex.assert_trees_all_equal(*(cell.step(p, state_0, xs[0]) for p in (without, zero)))


def test_each_gate_is_drawn_on_its_own():
    kernel, recurrent_kernel, bias, _ = LSTM().init(KEY, 200, H, kernel_init=initializers.glorot_uniform)
    blocks = np.split(kernel, 4, axis=1)
    assert len({float(block[0, 0]) for block in blocks}) == 4
    for block in blocks:
        np.testing.assert_allclose(np.abs(block).max(), (6 / (200 + H)) ** 0.5, rtol=0.02)
    for block in np.split(recurrent_kernel, 4, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)
    assert not bias.any()


def test_cells_are_values():
    cells = [case.cell for case in CASES.values()]
    assert len(set(cells)) == len(cells)
    assert (LSTM(), Leaky(3.0)) == (LSTM(), Leaky(3.0))
    assert hash(Leaky((1.0, 2.0))) == hash(Leaky((1.0, 2.0)))
    assert all(isinstance(cell, gru_jax.cells.Cell) for cell in (*cells, gru_jax.CUDNN))


def gate_of(case, bias, letter):
    letters = [name[-1] for name in CASES[case].letters.split()]
    return np.split(np.asarray(bias), len(letters))[letters.index(letter)]


@pytest.mark.parametrize(("case", "gate"), [("lstm", "f"), ("mgu", "f"), ("mingru", "z"), ("refine", "f")])
def test_update_bias_init_is_for_the_gate_that_keeps(case, gate):
    options = {"recurrent_kernel_init": initializers.zeros, "update_bias_init": initializers.forget_bias}
    params = CASES[case].cell.init(KEY, D, 5, **options)
    for name in CASES[case].letters.split():
        desired = {gate: 1, "s": -1}.get(name[-1], 0)
        np.testing.assert_array_equal(gate_of(case, params.bias, name[-1]), desired)


def test_initial_time_constants():
    options = {"recurrent_kernel_init": initializers.zeros, "update_bias_init": initializers.chrono(50)}
    b = LSTM().init(KEY, 1, 1000, **options, opposed_input_gate=True).bias
    np.testing.assert_array_equal(gate_of("lstm", b, "i"), -gate_of("lstm", b, "f"))
    params = Leaky().init(KEY, 1, 1000, **options)
    assert not params.bias.any()
    for keep in (gate_of("lstm", b, "f"), params.leak):
        times = 1 + np.exp(keep.astype(float))
        assert 2 <= times.min()
        assert times.max() <= 50 + 1e-3
        np.testing.assert_allclose(times.mean(), 26, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uniform_gate(dtype):
    features = 4000
    b = initializers.uniform_gate(KEY, (features,), dtype)
    assert b.dtype == dtype
    u = np.sort(jax.nn.sigmoid(b.astype(jnp.float64)))
    rounding = float(jnp.finfo(dtype).eps)
    assert 1 / features * (1 - 20 * rounding) <= u[0]
    assert u[-1] <= 1 - 1 / features * (1 - 20 * rounding)
    # Kolmogorov and Smirnov: a uniform sample of this size stays within 1.95/√n with probability 0.999.
    assert np.abs(u - (np.arange(features) + 0.5) / features).max() < 1.95 / features**0.5
    assert bool((initializers.uniform_gate(KEY, (1,)) == 0).all())


# --- Bad input --------------------------------------------------------------------------------------------------------

P = {name: problem(case) for name, case in CASES.items()}
BAD = {
    "a method without": (lambda: gru_jax.unroll(LSTM(), *P["lstm"][:3], method="fused"), ValueError, r"method must be one of 'auto', 'scan', got 'fused'"),
    "a method of another": (lambda: gru_jax.unroll(gru_jax.CUDNN, *P["lstm"][:2], method="parallel"), ValueError, r"method must be .*got 'parallel'"),
    "a class": (lambda: gru_jax.unroll(LSTM, *P["lstm"][:2]), TypeError, r"cell must be a gru_jax.GRU or another of gru_jax.cells, got type"),
    "dropout": (
        lambda: gru_jax.unroll(LSTM(), *P["lstm"][:3], recurrent_dropout_mask=jnp.ones((BATCH, FEATURES))),
        ValueError,
        r"recurrent_dropout_mask must be None: it is for a gru_jax.GRU, got LSTM",
    ),
    "a state of another": (lambda: gru_jax.unroll(LSTM(), *P["lstm"][:2], P["mgu"][2]), TypeError, r"h_0 must be a LSTMState\('h', 'c'\), got ArrayImpl"),
    "a part of a state": (
        lambda: gru_jax.unroll(LSTM(), *P["lstm"][:2], LSTMState(jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, 9)))),
        ValueError,
        r"h_0.c must have shape \(\*batch, features\) = \(3, 4\), got \(3, 9\)",
    ),
    "a state in step": (lambda: MGU().step(P["mgu"][0], jnp.zeros(9), P["mgu"][1][0]), ValueError, r"state_tm1 must have shape .* = \(3, 4\), got \(9,\)"),
    "parameters of another": (lambda: gru_jax.unroll(MinGRU(), *P["mgu"][:2]), TypeError, r"params must be gru_jax.cells.MinGRUParams.*got Params"),
    "gates of another": (lambda: gru_jax.unroll(LSTM(), *P["mgu"][:2]), ValueError, r"params.recurrent_kernel must have shape \(features, 4·features\) = \(4, 16\), got \(4, 8\)"),
    "a bias too many": (lambda: gru_jax.unroll(LSTM(), *P["refine"][:2]), ValueError, r"params.recurrent_bias must be None: this LSTM has none"),
    "no leak": (lambda: gru_jax.unroll(Leaky(), *P["leaky_fixed"][:2]), ValueError, r"params.leak must have shape \(features,\).*got None"),
    "a leak too many": (lambda: gru_jax.unroll(Leaky(3.0), *P["leaky_learned"][:2]), ValueError, r"params.leak must be None: this Leaky has none"),
    "units": (lambda: gru_jax.unroll(Leaky((1.0, 2.0)), *P["leaky_fixed"][:2]), ValueError, r"time_constant must have features = 4 numbers, got 2"),
    "units of init": (lambda: Leaky((1.0, 2.0)).init(KEY, 2, 3), ValueError, r"time_constant must have features = 3 numbers, got 2"),
    "time constant": (lambda: Leaky(0.5), ValueError, r"time_constant must be at least 1 and finite, got 0.5"),
    "time constants": (lambda: Leaky([1.0]), TypeError, r"time_constant must be a number, a tuple of numbers or None, got \[1.0\]"),
    "candidate": (lambda: Elman("tanh"), TypeError, r"candidate must be callable, got 'tanh'"),
    "no gate that keeps": (lambda: Elman().init(KEY, 2, 3, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init must be None: Elman has no gate that keeps"),
    "fixed": (lambda: Leaky(3.0).init(KEY, 2, 3, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init must be None with time_constant=3.0"),
    "no bias": (lambda: MGU().init(KEY, 2, 3, use_bias=False, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init needs use_bias=True"),
    "no bias to oppose": (lambda: LSTM().init(KEY, 2, 3, use_bias=False, opposed_input_gate=True), ValueError, r"opposed_input_gate=True needs use_bias=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
