"""The native kernels against autodiff of the plain scan: sizes, values at the edge, shapes, instruction sets."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from tests.cases import ORACLE, problem
from tests.kernels import (
    CELLS,
    EVERY_CELL,
    by_scan,
    check,
    each_cell,
    native,
    native_and_exact,
    random_problem,
    rows,
    run,
    single,
    value_and_gradient,
)

pytestmark = [native, pytest.mark.optimized]


@pytest.mark.parametrize("seed", rows(*range(8), long=range(8, 24)))
def test_random_sizes_and_options(seed, keep):
    """Preactivations are kept for the gradient by every other one."""
    keep(seed % 2)
    cell, args, options, reverse, ct = random_problem(seed)
    check(*native_and_exact(value_and_gradient(cell, reverse), args, options, ct))


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

        return jax.jit(both, compiler_options=ORACLE if method == "scan" else None)

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
    """What this process has compiled for the oracle it loads."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = os.environ | cache | {"GRU_JAX_NATIVE_ISA": isa}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


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


def test_an_unknown_instruction_set_is_refused():
    done = in_another_process("sse9", "-c", "import gru_jax")
    assert "GRU_JAX_NATIVE_ISA: expected an instruction set of this processor" in done.stderr
    assert "got 'sse9'" in done.stderr


# --- Values at the edge ----------------------------------------------------------------------------------------------


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
