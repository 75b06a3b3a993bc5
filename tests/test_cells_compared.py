"""The cells that the GRU is compared with: against loops written from their papers, and one table of cells × options."""

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


def problem(case, options=(), *, batch=(BATCH,), steps=STEPS, dtype=jnp.float64, seed=0):
    """Random parameters, inputs, initial state and options."""
    keys = jax.random.split(jax.random.key(seed), 6)
    params = case.cell.init(keys[0], IN_FEATURES, FEATURES, bias_init=normal_init, dtype=dtype)
    xs = jax.random.normal(keys[1], (steps, *batch, IN_FEATURES), dtype)
    zero = case.cell.initial_state(params, batch)
    state_0 = jax.tree.map(lambda part, key: jax.random.normal(key, part.shape, part.dtype), zero, split_like(zero))
    every = {
        "mask": jax.random.bernoulli(keys[3], 0.7, (steps, *batch)),
        "lengths": jnp.arange(steps, steps - 2 * BATCH, -2)[:BATCH],
        "resets": jax.random.bernoulli(keys[4], 0.3, (steps, *batch)),
        "reverse": True,
    }
    return params, xs, state_0, {name: every[name] for name in options if name in every}


def split_like(tree):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, list(jax.random.split(jax.random.key(7), len(leaves))))


def expected(case, params, xs, state_0, options):
    mask, resets = (None if flag is None else np.asarray(flag) for flag in flags(options))
    parts = tuple(np.asarray(part, np.float64) for part in jax.tree.leaves(state_0))
    reverse = options.get("reverse", False)
    return oracle.run(
        case.step,
        weights(case, params),
        np.asarray(xs, np.float64),
        parts,
        mask=mask,
        resets=resets,
        reverse=reverse,
    )


def as_oracle(result):
    return tuple(jax.tree.leaves(result[0])), result[1]


# --- Values -----------------------------------------------------------------------------------------------------------


@each_case
def test_options_agree_with_the_numpy_loop(case):
    """Every method under every combination of options, compiled in one program."""
    case = CASES[case]
    problems = {name: problem(case, options) for name, options in OPTIONS.items()}
    params, xs, state_0, _ = problems["plain"]
    reverse = {name: p[3].pop("reverse", False) for name, p in problems.items()}

    @jax.jit
    def run(params, xs, state_0, every):
        return {
            (name, method): gru_jax.unroll(
                case.cell, params, xs, state_0, **options, reverse=reverse[name], method=method
            )
            for name, options in every.items()
            for method in case.cell.methods
        }

    results = run(params, xs, state_0, {name: p[3] for name, p in problems.items()})
    for (name, _), result in results.items():
        desired = expected(case, params, xs, state_0, {**problems[name][3], "reverse": reverse[name]})
        chex.assert_trees_all_close(as_oracle(result), desired, atol=1e-12)


@each_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_state_is_kept_in_float32(case, dtype):
    case, tolerance = CASES[case], {"bfloat16": 4e-2, "float16": 5e-3, "float32": 2e-6}[dtype]
    params, xs, state_0, _ = problem(case, dtype=jnp.dtype(dtype))
    desired = expected(case, params, xs, state_0, {})
    for method in case.cell.methods:
        state_T, hs = gru_jax.unroll(case.cell, params, xs, state_0, method=method)
        assert {part.dtype.name for part in jax.tree.leaves((state_0, state_T))} == {"float32"}
        assert hs.dtype == dtype
        close = jax.tree.map(lambda part: np.asarray(part, np.float64), as_oracle((state_T, hs)))
        # A minGRU's candidate is not bounded by one, and neither is an LSTM's memory.
        chex.assert_trees_all_close(close, desired, atol=tolerance, rtol=tolerance)


@each_run
def test_any_number_of_batch_axes(case, method):
    cell = CASES[case].cell
    params, xs, state_0, options = problem(CASES[case], ("mask", "resets"), batch=(2, 3))

    @jax.jit
    def run(params, xs, state_0, options):
        return gru_jax.unroll(cell, params, xs, state_0, **options, method=method)

    whole = run(params, xs, state_0, options)
    assert whole[1].shape == (STEPS, 2, 3, FEATURES)
    flat_options = {name: flag.reshape(STEPS, 6) for name, flag in options.items()}
    flat_state = jax.tree.map(lambda part: part.reshape(6, FEATURES), state_0)
    flat = run(params, xs.reshape(STEPS, 6, -1), flat_state, flat_options)
    chex.assert_trees_all_close(whole[0], jax.tree.map(lambda part: part.reshape(2, 3, FEATURES), flat[0]), atol=1e-14)
    chex.assert_trees_all_close(whole[1], flat[1].reshape(whole[1].shape), atol=1e-14)
    one = run(
        params,
        xs[:, 1, 2],
        jax.tree.map(lambda part: part[1, 2], state_0),
        {name: flag[:, 1, 2] for name, flag in options.items()},
    )
    chex.assert_trees_all_close(one[1], whole[1][:, 1, 2], atol=1e-14)


@each_run
def test_steps_one_by_one(case, method):
    """`step` by `step` from `initial_state` is `unroll` without h_0; no steps give h_0; a sequence may come in parts."""
    cell = CASES[case].cell
    params, xs, state_0, _ = problem(CASES[case])
    state, hs = cell.initial_state(params, (BATCH,)), []
    for x_t in xs:
        state = cell.step(params, state, x_t)
        hs.append(cell.output(state))
    result = gru_jax.unroll(cell, params, xs, method=method)
    chex.assert_trees_all_close((state, jnp.stack(hs)), result, atol=1e-12)

    none = gru_jax.unroll(cell, params, xs[:0], state_0, method=method)
    chex.assert_trees_all_equal(none[0], state_0)
    assert none[1].shape == (0, BATCH, FEATURES)

    middle, first = gru_jax.unroll(cell, params, xs[:2], method=method)
    last, second = gru_jax.unroll(cell, params, xs[2:], middle, method=method)
    chex.assert_trees_all_close((last, jnp.concatenate([first, second])), result, atol=1e-12)


@each_run
def test_gradients_of_many_seeds_at_once(case, method):
    """vmap over weights is one seed after another; what is masked, NaN too, has no part in a gradient."""
    cell = CASES[case].cell
    _, xs, state_0, _ = problem(CASES[case], dtype=jnp.float32)
    lengths = jnp.array([STEPS, 2, 0])
    xs = xs.at[2:, 1].set(jnp.nan).at[:, 2].set(jnp.nan)

    def loss(params, xs):
        state_T, hs = gru_jax.unroll(cell, params, xs, state_0, lengths=lengths, method=method)
        return (hs**2).sum() + sum((part**2).sum() for part in jax.tree.leaves(state_T))

    ensemble = jax.vmap(lambda key: cell.init(key, IN_FEATURES, FEATURES, bias_init=normal_init))(
        jax.random.split(KEY, 3)
    )
    grads = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None)))(ensemble, xs)
    chex.assert_tree_all_finite(grads)
    assert not grads[1][:, 2:, 1].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(grads[0]))
    last = jax.tree.map(lambda leaf: leaf[2], ensemble)
    chex.assert_trees_all_close(
        jax.tree.map(lambda leaf: leaf[2], grads),
        jax.jit(jax.grad(loss, argnums=(0, 1)))(last, xs),
        rtol=1e-4,
        atol=1e-5,
    )


# --- Special cases and other frameworks -------------------------------------------------------------------------------


def test_special_cases():
    params, xs, h_0, _ = problem(CASES["elman"])
    leaky = gru_jax.unroll(Leaky(1.0), gru_jax.cells.LeakyParams(*params[:3]), xs, h_0)
    chex.assert_trees_all_close(leaky, gru_jax.unroll(Elman(), params, xs, h_0), atol=1e-14)

    params, xs, h_0, _ = problem(CASES["refine"])
    half = [leaf.at[..., 2 * FEATURES : 3 * FEATURES].set(0) for leaf in params[:3]]
    without = [jnp.delete(leaf, slice(2 * FEATURES, 3 * FEATURES), axis=-1) for leaf in params[:3]]
    chex.assert_trees_all_close(
        gru_jax.unroll(RefineGRU(), gru_jax.Params(*half, params[3]), xs, h_0),
        gru_jax.unroll(gru_jax.CUDNN, gru_jax.Params(*without, params[3]), xs, h_0),
        atol=1e-14,
    )


def test_lstm_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    params, xs, state_0, _ = problem(CASES["lstm"])
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
    chex.assert_trees_all_close(as_oracle(ours), ((h_T[0].detach(), c_T[0].detach()), hs.detach()), atol=1e-12)
    (hs**2).sum().backward()
    grads = jax.grad(lambda params: (gru_jax.unroll(LSTM(), params, xs, state_0)[1] ** 2).sum())(params)
    gradients = theirs.weight_ih_l0.grad.T, theirs.weight_hh_l0.grad.T, theirs.bias_ih_l0.grad
    for actual, desired in zip(grads, gradients, strict=False):
        np.testing.assert_allclose(actual, desired, atol=1e-12)


def test_lstm_is_that_of_flax():
    from flax import linen as nn

    params, xs, state_0, _ = problem(CASES["lstm"])
    variables = {}
    for i, gate in enumerate("ifgo"):
        block = slice(i * FEATURES, (i + 1) * FEATURES)
        variables[f"i{gate}"] = {"kernel": params.kernel[:, block]}
        variables[f"h{gate}"] = {"kernel": params.recurrent_kernel[:, block], "bias": params.bias[block]}
    layer = nn.RNN(nn.OptimizedLSTMCell(FEATURES), time_major=True, return_carry=True)
    (c_T, h_T), hs = layer.apply({"params": {"cell": variables}}, xs, initial_carry=(state_0.c, state_0.h))
    chex.assert_trees_all_close(gru_jax.unroll(LSTM(), params, xs, state_0), (LSTMState(h_T, c_T), hs), atol=1e-12)


# --- minGRU in parallel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("mask", "resets", "reverse")], ids=["plain", "all"])
def test_parallel_derivatives_are_those_of_the_sequential_form(options):
    params, xs, h_0, options = problem(CASES["mingru"], options, steps=9)
    weight = jax.random.normal(KEY, (9, BATCH, FEATURES))

    def loss(args, method):
        params, xs, h_0 = args
        h_T, hs = gru_jax.unroll(MinGRU(), params, xs, h_0, **options, method=method)
        return (weight * hs).sum() + (h_T**2).sum()

    def derivatives(args, method):
        grads = jax.grad(loss)(args, method)
        along = jax.jvp(lambda args: jax.grad(loss)(args, method), (args,), (grads,))[1]
        return grads, along

    args = (params, xs, h_0)
    scan, parallel = (jax.jit(derivatives, static_argnums=1)(args, method) for method in ("scan", "parallel"))
    chex.assert_trees_all_close(parallel, scan, rtol=1e-9, atol=1e-11)


def test_parallel_is_exact_where_gates_saturate_and_candidates_vanish():
    """Gates shut for thousands of steps, states at zero and below, candidates near 0 and at the kink of g."""
    steps, features = 3000, 6
    bias = jnp.array([-60.0, -5.0, 0.0, 5.0, 12.0, 60.0, 0.0, -60.0, 3.0, 0.0, -20.0, 1.0])
    params = gru_jax.cells.MinGRUParams(jnp.zeros((1, 2 * features)), bias)
    xs = jnp.zeros((steps, 3, 1))
    h_0 = jnp.stack([jnp.zeros(features), -jnp.ones(features), jnp.full(features, 1e3)])

    def run(params, h_0, method, dtype):
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, xs, h_0))
        return gru_jax.unroll(MinGRU(), *cast, method=method)[1].sum(0)

    exact, exact_grads = jax.value_and_grad(lambda *args: run(*args, "scan", jnp.float64).sum(), (0, 1))(params, h_0)
    got, grads = jax.value_and_grad(lambda *args: run(*args, "parallel", jnp.float32).sum(), (0, 1))(params, h_0)
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    np.testing.assert_allclose(grads[1], exact_grads[1], rtol=1e-5)
    np.testing.assert_allclose(grads[0].bias, exact_grads[0].bias, rtol=1e-4, atol=1e-20)


def test_minimal_gru_without_method_runs_by_platform():
    assert set(MinGRU().methods) == {"scan", "parallel"}
    params, xs, h_0, _ = problem(CASES["mingru"])
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
    params = cell.init(KEY, D, H)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[case]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cell.init(KEY, D, H, dtype="bfloat16"))} == {"bfloat16"}
    without = cell.init(KEY, D, H, use_bias=False)
    assert without.bias is None
    xs = jnp.ones((2, D))
    zero_bias = gru_jax.unroll(cell, params, xs)
    chex.assert_trees_all_close(gru_jax.unroll(cell, without, xs), zero_bias, atol=1e-7)
    assert hash(cell) == hash(type(cell)(**cell.__dict__))
    assert cell == type(cell)(**cell.__dict__)
    if hasattr(params, "recurrent_kernel"):
        for block in jnp.split(params.recurrent_kernel, params.recurrent_kernel.shape[1] // H, axis=1):
            np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)


def gate_of(case, bias, letter):
    letters = [name[-1] for name in CASES[case].letters.split()]
    return np.split(np.asarray(bias), len(letters))[letters.index(letter)]


@pytest.mark.parametrize(("case", "gate"), [("lstm", "f"), ("mgu", "f"), ("mingru", "z"), ("refine", "f")])
def test_update_bias_init_is_for_the_gate_that_keeps(case, gate):
    params = CASES[case].cell.init(KEY, D, 5, update_bias_init=initializers.forget_bias)
    for name in CASES[case].letters.split():
        desired = {gate: 1, "s": -1}.get(name[-1], 0)
        np.testing.assert_array_equal(gate_of(case, params.bias, name[-1]), desired)


def test_initial_time_constants():
    b = LSTM().init(KEY, 1, 400, update_bias_init=initializers.chrono(50), opposed_input_gate=True).bias
    np.testing.assert_array_equal(gate_of("lstm", b, "i"), -gate_of("lstm", b, "f"))
    leak = Leaky().init(
        KEY, 1, 4000, recurrent_kernel_init=initializers.zeros, update_bias_init=initializers.chrono(50)
    )
    times = 1 / (1 - jax.nn.sigmoid(leak.leak.astype(float)))
    assert 2 <= times.min()
    assert times.max() <= 50 + 1e-3
    np.testing.assert_allclose(times.mean(), 26, rtol=0.05)
    assert not leak.bias.any()


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
