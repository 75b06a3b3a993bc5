"""The native kernels in float32 against autodiff of the plain scan in float64; threads, instruction sets."""

import concurrent.futures
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from tests.cases import OPTIONS, ORACLE, native_is_installed, problem, unroll
from tests.test_derivatives import AXES, OPERATORS, WRT, scalar, stacked, tangents

CELLS = {"after": gru_jax.CUDNN, "before": gru_jax.CHO2014}
EVERY_CELL = CELLS | {
    "goodfellow": gru_jax.GOODFELLOW,
    "after_sigmoid": gru_jax.GRU(reset_after=True, candidate=jax.nn.sigmoid),
}
ACCURACY = 2e-6  # of float32, relative to the largest entry
native = pytest.mark.skipif(not native_is_installed, reason="the native kernels are not installed")
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def rows(*short, long=()):
    """Rows of a table, as (name of the cell, ...) or numbers; those of `long` take the marker."""
    return [
        *short,
        *(pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.long) for row in long),
    ]


def check(got, want, accuracy=ACCURACY):
    """Every array within `accuracy` of its exact value, relative to its largest entry."""
    for x, exact in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        exact = np.asarray(exact, np.float64)
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(np.asarray(x, np.float64), exact, rtol=0, atol=accuracy * abs(exact).max(initial=0))


def single(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, tree)


def by_scan(function, *args):
    """`function("scan")(*args)` in float64, of the arguments rounded to float32."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, single(args))
    return jax.jit(function("scan"), compiler_options=ORACLE)(*rounded)


def native_and_exact(function, *args):
    """`function(method)(*args)` with the native kernels, and in float64 with the scan."""
    compiled = jax.jit(function("native")).lower(*single(args)).compile()
    assert "gru_jax_" in compiled.as_text()
    return compiled(*single(args)), by_scan(function, *args)


def run(method="auto", cell=gru_jax.CUDNN):
    return lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1].sum()


def random_problem(seed, most=(150, 70, 80, 80)):
    """Sizes, options and values at random: odd widths, one row, one step, many rows and steps; both candidates."""
    rng = np.random.default_rng(seed)
    steps, batch, in_features, features = (int(rng.integers(1, n)) for n in most)
    cell = gru_jax.GRU(reset_after=bool(rng.integers(2)), candidate=(jnp.tanh, jax.nn.sigmoid)[seed // 2 % 2])

    def normal(*shape, fan_in=1):
        return jnp.asarray(rng.standard_normal(shape) / fan_in**0.5, jnp.float32)

    use_bias = rng.random() < 0.8
    params = gru_jax.Params(
        normal(in_features, 3 * features, fan_in=in_features),
        normal(features, 3 * features, fan_in=features),
        normal(3 * features) if use_bias else None,
        normal(features) if use_bias and cell.reset_after else None,
    )
    options = {
        "mask": jnp.asarray(rng.random((steps, batch)) < 0.8),
        "lengths": jnp.asarray(rng.integers(0, steps + 1, batch)),
        "resets": jnp.asarray(rng.random((steps, batch)) < 0.1),
        "recurrent_dropout_mask": jnp.asarray((rng.random((batch, features)) < 0.7) / 0.7, jnp.float32),
    }
    given = {name: value for name, value in options.items() if rng.random() < 0.5}
    ct = normal(steps, batch, features), normal(batch, features)
    args = params, normal(steps, batch, in_features), normal(batch, features)
    args += (normal(batch, features) if rng.random() < 0.5 else None,)
    return cell, args, given, bool(rng.integers(2)), ct


def value_and_gradient(cell, reverse):
    """Of a random problem, by method."""

    def function(method):
        def both(args, options, ct):
            run = lambda *a: unroll(cell, *a, **options, reverse=reverse, method=method)  # noqa: E731
            outputs, pull = jax.vjp(run, *args)
            return outputs, pull(ct[::-1])

        return both

    return function


@native
@pytest.mark.parametrize("seed", rows(*range(8), long=range(8, 24)))
def test_random_sizes_and_options(seed, keep):
    """Preactivations are kept for the gradient by every other one."""
    keep(seed % 2)
    cell, args, options, reverse, ct = random_problem(seed)
    check(*native_and_exact(value_and_gradient(cell, reverse), args, options, ct))


@native
@pytest.mark.parametrize(
    ("cell", "sizes"),
    rows(
        ("after", (5, 3, 300, 200)),
        ("before", (3, 100, 4, 300)),
        ("after", (700, 1, 20, 100)),
        long=[("before", (5, 3, 300, 200)), ("after", (3, 100, 4, 300)), ("before", (700, 1, 20, 100))],
    ),
    ids=str,
)
def test_particular_sizes(cell, sizes):
    """Weights larger than a cache; a row of several tiles, and so many steps that a thread without rows helps."""
    steps, batch, in_features, features = sizes
    cell = CELLS[cell]
    params = cell.init(jax.random.key(0), in_features, features)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, in_features), jnp.float32)

    def function(method):
        return jax.value_and_grad(
            lambda params, xs: (gru_jax.unroll(cell, params, xs, method=method)[1] ** 2).mean(), 0
        )

    check(*native_and_exact(function, params, xs))


@native
@pytest.mark.parametrize("sizes", [(1, 16, 64, 64), (3, 5, 20, 128), (4, 4, 33, 70)], ids=str)
@each_cell
def test_few_uses_of_the_weights(cell, sizes):
    """The kernels read them where they lie then, for many sequences in a copy: the results are equal bit for bit."""
    steps, batch, in_features, features = sizes
    params = cell.init(jax.random.key(0), in_features, features, bias_init=jax.nn.initializers.normal(1.0))
    xs = jax.random.normal(jax.random.key(1), (steps, 3 * batch, in_features), jnp.float32)

    def outputs(method):
        return lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1]

    (few, exact), many = native_and_exact(outputs, params, xs[:, :batch]), jax.jit(outputs("native"))(params, xs)
    check(few, exact)
    chex.assert_trees_all_equal(few, many[:, :batch])


@native
@each_cell
def test_many_preactivations(cell, keep):
    """So many that they are written past the caches, except into fresh memory, which is the first run's at most."""
    keep(True)
    steps, batch, in_features, features = 70, 64, 5, 32
    params = cell.init(jax.random.key(0), in_features, features)
    xs = jax.random.normal(jax.random.key(1), (steps, batch, in_features), jnp.float32)

    def gradient(method):
        return jax.jit(jax.grad(lambda params, xs: (gru_jax.unroll(cell, params, xs, method=method)[1] ** 2).mean()))

    of_kernels = gradient("native")
    first, *others = (of_kernels(params, xs) for _ in range(4))
    check(first, by_scan(gradient, params, xs))
    chex.assert_trees_all_equal(first, *others)


@native
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("cell", EVERY_CELL.values(), ids=EVERY_CELL)
def test_saturated_gates(cell, kept, keep):
    """Their derivative is 0, of which no weight, however large, makes more: scan's is finite, so are the kernels'."""
    keep(kept)
    keys = jax.random.split(jax.random.key(0), 4)
    xs, d_xs = (jax.random.normal(key, (20, 4, 3), jnp.float32) for key in keys[:2])
    plain = cell.init(keys[2], 3, 8, bias_init=jax.nn.initializers.normal(1.0), dtype=jnp.float32)

    def results(method):
        run = lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1]  # noqa: E731
        gradient = jax.grad(lambda params, xs: (run(params, xs) ** 2).sum(), (0, 1))

        def both(scale, params, xs, d_xs):
            params = jax.tree.map(lambda leaf: leaf * scale, params)
            return gradient(params, xs), jax.jvp(run, (params, xs), (jax.tree.map(jnp.ones_like, params), d_xs))

        return jax.jit(both)

    of_kernels, of_scan = results("native"), results("scan")
    for scale in (1e10, 1e15, 1e20, 1e25, 1e30):
        got, expected = (run(jnp.float32(scale), plain, xs, d_xs) for run in (of_kernels, of_scan))
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
        check(got, expected)


HS, NONE, STATE = (5, 2, 3, 4), (0,), (2, 3, 4)
OPERANDS = {
    "xs": (5, 2, 3, 6), "h_0": STATE, "kernel": (2, 6, 12), "bias": (2, 12), "recurrent kernel": (2, 4, 12),
    "recurrent bias": (2, 4), "dropout_mask": STATE, "mask": (5, 2, 3), "resets": (5, 2, 3), "reset_state": STATE,
}  # fmt: skip
SAVED = {"saved r": HS, "saved z": HS, "saved n": HS, "saved q": HS}
CALLS = {
    "states": (OPERANDS, {"hs": HS, **SAVED}, {"candidate": "tanh"}),
    "states_vjp": (
        {**OPERANDS, "hs": HS, "ct": HS, **SAVED},
        {
            "d_xs": (5, 2, 3, 6), "d_h_0": STATE, "d_reset_state": STATE, "d_kernel": (2, 6, 12), "d_bias": (2, 12),
            "d_recurrent_kernel": (2, 4, 12), "d_recurrent_bias": (2, 4),
        },
        {"candidate": "sigmoid"},
    ),
    "linear_recurrence": (
        {
            **dict.fromkeys(["z", "r", "c_r", "c_z", "a_n"], HS), "recurrent kernel": (2, 4, 12), "dropout_mask": STATE,
            "source": HS, "mask": (5, 2, 3), "resets": (5, 2, 3),
        },
        {"ys": HS},
        {"transposed": False},
    ),
}  # fmt: skip


@native
@pytest.mark.parametrize("handler", CALLS)
def test_shapes_are_checked_in_cpp(handler):
    """Operands and results are given another size, axis by axis, or left out, and the call is refused by name."""
    operands, results, attributes = CALLS[handler]
    attributes = {"reset_after": True, "reverse": False, "threads": np.int64(1), **attributes}

    def call(changed, **others):
        inputs = [
            np.zeros(changed.get(name, shape), bool if name in ("mask", "resets") else np.float32)
            for name, shape in operands.items()
        ]
        outputs = [jax.ShapeDtypeStruct(changed.get(name, shape), np.float32) for name, shape in results.items()]
        return jax.block_until_ready(jax.ffi.ffi_call(f"gru_jax_{handler}", outputs)(*inputs, **attributes | others))

    call({})
    if "candidate" in attributes:
        with pytest.raises(jax.errors.JaxRuntimeError, match="candidate must be tanh or sigmoid, got relu"):
            call({}, candidate="relu")
    optional = {"bias", "recurrent bias", "dropout_mask", "mask", "resets", "reset_state"}
    optional |= {"d_xs", "d_reset_state", "d_bias", "d_recurrent_bias"}
    needless = {"ys"}  # XLA leaves out a call whose only result is empty
    for name, shape in {**operands, **results}.items():
        wrong = [(*shape[:axis], shape[axis] + 1, *shape[axis + 1 :]) for axis in range(len(shape))]
        for changed in (*wrong, shape[1:], *(() if name in optional | needless else (NONE,))):
            with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT: gru_jax: .* must have"):
                call({name: changed})
    for name in optional & {*operands, *results}:
        call({name: NONE})


def in_another_process(isa, *command):
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {"GRU_JAX_NATIVE_ISA": isa}, capture_output=True, text=True
    )


@native
@pytest.mark.long
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa):
    """Some of the tests above once more, in a process that uses another one than this."""
    from gru_jax import _native

    if isa == _native.isa():
        pytest.skip("it is the one of this process")
    if "expected an instruction set of this processor" in in_another_process(isa, "-c", "import gru_jax").stderr:
        pytest.skip(f"this processor has no {isa}")
    tests = [f"{__file__}::{test_random_sizes_and_options.__name__}[{seed}]" for seed in range(4)]
    tests += [f"{__file__}::{test.__name__}" for test in (test_particular_sizes, test_few_uses_of_the_weights)]
    done = in_another_process(isa, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "13 passed" in done.stdout


@native
def test_an_unknown_instruction_set_is_refused():
    done = in_another_process("sse9", "-c", "import gru_jax")
    assert "GRU_JAX_NATIVE_ISA: expected an instruction set of this processor" in done.stderr
    assert "got 'sse9'" in done.stderr


# --- Derivatives and vmap ---------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize(
    ("cell", "operator", "options", "kept"),
    rows(
        ("after", "value_and_grad", "plain", False),
        *((cell, "value_and_grad", "all", kept) for cell in CELLS for kept in (False, True)),
        *((cell, "forward_over_reverse", "all", False) for cell in CELLS),
        ("goodfellow", "value_and_grad", "all", True),
        ("goodfellow", "reverse_over_forward", "all", False),
        ("after", "linearize", "all", False),
        ("before", "reverse_over_forward", "all", False),
        ("after", "reverse_over_reverse", "all", True),
        ("before", "third_order", "all", False),
        ("after", "checkpointed", "all", False),
        ("before", "checkpointed_states", "all", False),
        long=[
            ("before", "linearize", "all", False),
            ("after", "reverse_over_forward", "all", False),
            ("before", "reverse_over_reverse", "all", True),
            ("after", "third_order", "all", False),
        ],
    ),
)
def test_every_derivative(cell, operator, options, kept, keep):
    cell = EVERY_CELL[cell]
    keep(kept)
    p = problem(cell, OPTIONS[options])
    static = {name: value for name, value in p.options.items() if name == "reverse"}
    arrays = {name: value for name, value in p.options.items() if name not in static}

    def function(method):
        return lambda arrays, *args: OPERATORS[operator](scalar(cell, {**arrays, **static}, method))(*args)

    # Rounding grows with each order, in whatever float32 program.
    accuracy = ACCURACY if operator in ("value_and_grad", "checkpointed", "checkpointed_states") else 1e-5
    check(*native_and_exact(function, arrays, *p[:4]), accuracy)


@native
@pytest.mark.parametrize(
    ("cell", "operator"),
    rows(("after", jax.jacrev), ("before", jax.jacfwd), ("before", jax.hessian), long=[("after", jax.hessian)]),
    ids=lambda x: getattr(x, "__name__", x),
)
def test_whole_matrices(cell, operator):
    cell = CELLS[cell]
    p = problem(cell, ("mask", "resets"), steps=3)

    def function(method):
        def run(*args):
            h_last, hs = unroll(cell, *args, method=method, **p.options)
            return (jnp.sin(hs).sum() + (h_last**3).sum()) if operator is jax.hessian else (h_last, hs)

        return operator(run, WRT)

    check(*native_and_exact(function, *p[:4]), 1e-5)


@native
@pytest.mark.parametrize(
    ("cell", "axes", "kept"),
    [*(("after", axes, False) for axes in AXES), ("before", "everything", True), ("before", "weights", False)],
)
def test_vmap(cell, axes, kept, keep):
    cell = CELLS[cell]
    keep(kept)
    p = problem(cell, ("mask", "resets"))
    args = *p[:4], p.options["mask"], p.options["resets"]
    args = [stacked(arg, axis) for arg, axis in zip(args, AXES[axes], strict=True)]

    def function(method):
        def value_and_grad(*args):
            *moving, mask, resets = args
            return jax.value_and_grad(scalar(cell, {"mask": mask, "resets": resets}, method), WRT)(*moving)

        return jax.vmap(value_and_grad, AXES[axes])

    check(*native_and_exact(function, *args))


@native
@pytest.mark.parametrize(
    ("cell", "order"),
    [("after", ("weights", "inputs")), ("before", ("inputs", "weights")), ("after", ("weights", "weights"))],
)
def test_vmap_in_vmap(cell, order):
    cell = CELLS[cell]
    p = problem(cell, ("mask", "resets"))
    args = *p[:4], p.options["mask"], p.options["resets"]
    outer, inner = (AXES[axes] for axes in order)
    args = [stacked(stacked(arg, i, 2), o, 3) for arg, i, o in zip(args, inner, outer, strict=True)]

    def function(method):
        def tangent_and_grad(*args):
            *moving, mask, resets = args
            f = scalar(cell, {"mask": mask, "resets": resets}, method)
            return jax.grad(f, WRT)(*moving), jax.jvp(f, moving, tangents(moving))[1]

        return jax.vmap(jax.vmap(tangent_and_grad, inner), outer)

    check(*native_and_exact(function, *args), 1e-5)


# --- Values at the edge ----------------------------------------------------------------------------------------------


@native
@each_cell
def test_nan_stays_in_its_row_and_reaches_its_gradients(cell):
    p = single(problem(cell, batch=(20,))[:3])
    xs = p[1].at[2, 7].set(jnp.nan)
    hs = gru_jax.unroll(cell, p[0], xs, p[2], method="native")[1]
    spoilt = jnp.zeros(hs.shape[:2], bool).at[2:, 7].set(True)
    assert jnp.array_equal(jnp.isnan(hs), jnp.broadcast_to(spoilt[..., None], hs.shape))
    d_params, d_xs = jax.grad(run("native", cell), (0, 1))(p[0], xs)
    assert jnp.isnan(d_params.kernel).all()
    assert jnp.array_equal(jnp.isnan(d_xs).all((0, 2)), jnp.arange(20) == 7)


@native
@each_cell
def test_gradients_that_vanish_are_as_those_of_the_scan(cell):
    """Over a long time they pass through numbers too small for full precision."""
    p = problem(cell, steps=2000)
    params = p.params._replace(recurrent_kernel=0.1 * p.params.recurrent_kernel)

    def function(method):
        return jax.grad(lambda h_0: gru_jax.unroll(cell, *single((params, p.xs)), h_0, method=method)[0].sum())

    compiled = jax.jit(function("native"))(single(p.h_0))
    assert jnp.abs(compiled).max() < 1e-37
    assert jnp.isfinite(compiled).all()


# --- Threads ----------------------------------------------------------------------------------------------------------


def gradient(args, options, cell=gru_jax.CUDNN):
    def loss(*args):
        return (gru_jax.unroll(cell, *args, **options, method="native")[1] ** 2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*args).compile()


@native
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


@native
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


@native
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
