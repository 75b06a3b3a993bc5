"""JAX's own switches: with each of them on, everything runs and gives what it gives without, or fails as Flax does.

A table of switches and of what may be run: outputs, gradient and jvp of each, and for `unroll` hessian and vmap. Meshes
as `jax.make_mesh` makes them by default are among the switches. In float32, as most users have it.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import PartitionSpec as P

import gru_jax
from gru_jax.cells import DREAMER, LSTM, Leaky, MinGRU, RefineGRU
from tests.cases import native_is_installed, normal_init
from tests.sequences import random_kernel

pytestmark = pytest.mark.float32

TIME, BATCH, WIDTH = 3, 8, 4
NATIVE = ("native",) if native_is_installed else ()


# --- What is run ------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """`run(weights, xs)`, differentiable in both; xs has `batch_axis` 0, or 1 where time is first."""

    run: Callable[[Any, jax.Array], Any]
    weights: Any
    batch_axis: int = 0

    def inputs(self, dtype=jnp.float32):
        shape = (TIME, BATCH, WIDTH) if self.batch_axis else (BATCH, TIME, WIDTH)
        return jax.random.normal(jax.random.key(3), shape, dtype)


def flags():
    """Lengths, mask and resets, as the keyword arguments of a layer."""
    keys = jax.random.split(jax.random.key(5))
    return {
        "seq_lengths": jnp.array([3, 2, 0, 1, 3, 3, 2, 3]),
        "mask": jax.random.bernoulli(keys[0], 0.8, (BATCH, TIME)),
        "resets": jax.random.bernoulli(keys[1], 0.3, (BATCH, TIME)),
    }


def unrolled(cell, method, dtype=jnp.float32, **options):
    given = flags()
    arrays = {"lengths": given["seq_lengths"], "mask": given["mask"].T, "resets": given["resets"].T}
    params = cell.init(
        jax.random.key(0), WIDTH, WIDTH, bias_init=normal_init, recurrent_kernel_init=random_kernel, dtype=dtype
    )
    return Subject(
        lambda params, xs: gru_jax.unroll(cell, params, xs, method=method, **arrays, **options), params, batch_axis=1
    )


def in_nnx(module, run=lambda module, xs: module(xs)):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return Subject(lambda params, xs: run(nnx.merge(graph, params, rest, copy=True), xs), params)


def in_linen(module, **options):
    variables = module.init(jax.random.key(0), jnp.ones((BATCH, TIME, WIDTH)))
    return Subject(lambda variables, xs: module.apply(variables, xs, **options), variables)


def nnx_layer(**options):
    return gru_jax.nnx.GRU(WIDTH, WIDTH, num_layers=2, recurrent_kernel_init=random_kernel, rngs=nnx.Rngs(0), **options)


def with_dropout(layer, xs, given):
    return layer(xs, rngs=jax.random.key(1), return_carry=True, **given)


def cell_step():
    cell = gru_jax.CUDNN
    params = cell.init(jax.random.key(0), WIDTH, WIDTH, recurrent_kernel_init=random_kernel)
    return Subject(lambda params, xs: cell.step(params, jnp.zeros_like(xs[:, 0]), xs[:, 1]), params)


UNROLLED = {
    **{method: (gru_jax.CUDNN, method) for method in ("scan", "fused", "auto", *NATIVE)},
    "fused, reset before, backward": functools.partial(unrolled, gru_jax.CHO2014, "fused", reverse=True),
    "minGRU, parallel": (MinGRU(), "parallel"),
}
CELLS = {type(cell).__name__: (cell, "fused") for cell in (LSTM(), Leaky(), RefineGRU(), DREAMER)}
SUBJECTS = {
    **{
        name: given if callable(given) else functools.partial(unrolled, *given)
        for name, given in (UNROLLED | CELLS).items()
    },
    "nnx cell in Flax's RNN": lambda: in_nnx(nnx.RNN(gru_jax.nnx.GRUCell(WIDTH, WIDTH, rngs=nnx.Rngs(0)))),
    "linen cell in Flax's RNN": lambda: in_linen(nn.RNN(gru_jax.linen.GRUCell(WIDTH))),
    "nnx layer": lambda: in_nnx(
        nnx_layer(dropout=0.5, recurrent_dropout=0.5), functools.partial(with_dropout, given=flags())
    ),
    "linen layer": lambda: in_linen(gru_jax.linen.GRU(WIDTH, bidirectional=True), return_carry=True, **flags()),
    "cell.step": cell_step,
    "layer.step": lambda: in_nnx(nnx_layer(), lambda layer, xs: layer.step((xs[:, 0], xs[:, 1]), xs[:, 2])),
}
FLAX = {
    "nnx cell in Flax's RNN": lambda: in_nnx(nnx.RNN(nnx.GRUCell(WIDTH, WIDTH, rngs=nnx.Rngs(0)))),
    "linen cell in Flax's RNN": lambda: in_linen(nn.RNN(nn.GRUCell(WIDTH))),
}


def each_derivative(run, weights, xs):
    """Outputs, gradient and jvp."""

    def outputs(*args):
        return jax.tree.leaves(run(*args))

    def loss(*args):
        return sum(jnp.sin(leaf).sum().astype(jnp.float32) for leaf in outputs(*args))

    tangents = jax.tree.map(jnp.cos, (weights, xs))
    return outputs(weights, xs), jax.grad(loss, (0, 1))(weights, xs), jax.jvp(outputs, (weights, xs), tangents)[1]


def hessian_and_vmap(run, weights, xs):
    """The second derivatives in the biases, and the gradient of an ensemble of two."""

    def loss(weights, xs):
        return jnp.sin(run(weights, xs)[1]).sum()

    ensemble = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), weights)
    of_bias = jax.hessian(lambda bias: loss(weights._replace(bias=bias), xs))(weights.bias)
    return of_bias, jax.vmap(jax.grad(loss, (0, 1)), (0, None))(ensemble, xs)


@functools.cache
def without(name, derivatives):
    """A subject and what is to come out."""
    subject = SUBJECTS[name]()
    return subject, jax.device_get(
        jax.jit(functools.partial(derivatives, subject.run))(*subject[1:2], subject.inputs())
    )


# --- The switches -----------------------------------------------------------------------------------------------------

MESHES = {"explicit (8,)": ("data",), "explicit (2, 4)": ("data", "model")}


@contextlib.contextmanager
def whole_tracebacks():
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


def on_mesh(*sizes):
    return jax.set_mesh(jax.make_mesh(sizes, ("data", "model")[: len(sizes)]))


# What may raise, or changes how a program is run, but not what it computes: none keeps another from raising.
TOGETHER = {
    "debug_nans": functools.partial(jax.debug_nans, True),
    "debug_infs": functools.partial(jax.debug_infs, True),
    "rank_promotion": functools.partial(jax.numpy_rank_promotion, "raise"),
    "dtype_promotion": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "enable_checks": functools.partial(jax.enable_checks, True),
    "debug_key_reuse": functools.partial(jax.debug_key_reuse, True),
    "transfer_guard": functools.partial(jax.transfer_guard, "disallow"),
    "matmul_precision": functools.partial(jax.default_matmul_precision, "highest"),
    "traceback_filtering": whole_tracebacks,
}


@contextlib.contextmanager
def together():
    with contextlib.ExitStack() as stack:
        for switch in TOGETHER.values():
            stack.enter_context(switch())
        yield


SWITCHES = {
    "together": together,
    "disable_jit": jax.disable_jit,
    "check_tracer_leaks": jax.checking_leaks,
    "enable_x64": functools.partial(jax.enable_x64, True),
    "explicit (8,)": functools.partial(on_mesh, 8),
    "explicit (2, 4)": functools.partial(on_mesh, 2, 4),
}

# Flax's RNN makes the carry it begins with from shapes alone, so that it is not sharded as the inputs are.
AS_FLAX = {(name, switch): "must have equal types" for name in FLAX for switch in MESHES}


def switched(subject, switch, derivatives):
    """What comes out with the switch on."""
    xs = subject.inputs()
    with SWITCHES[switch]():
        if switch in MESHES:
            spec = P(None, MESHES[switch]) if subject.batch_axis else P(MESHES[switch])
            xs = jax.device_put(xs, spec)
        return jax.device_get(jax.jit(functools.partial(derivatives, subject.run))(subject.weights, xs))


def check(name, switch, derivatives=each_derivative):
    subject, expected = without(name, derivatives)
    if (name, switch) in AS_FLAX:
        for one in (subject, FLAX[name]()):
            with pytest.raises(TypeError, match=AS_FLAX[name, switch]):
                switched(one, switch, derivatives)
        return
    got = switched(subject, switch, derivatives)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.long
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_switch_changes_nothing(name, switch):
    check(name, switch)


@pytest.mark.long
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", ["scan", "fused", *(NATIVE or ("auto",)), "minGRU, parallel"])
def test_a_switch_changes_no_hessian_and_no_ensemble(name, switch):
    check(name, switch, hessian_and_vmap)


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("auto", "together"),
        ("fused", "explicit (2, 4)"),
    ],
)
def test_the_most_telling_of_them(name, switch):
    check(name, switch)


@pytest.mark.parametrize("method", ["auto", "fused"])
def test_without_jit(method):
    params, xs = gru_jax.CUDNN.init(jax.random.key(0), WIDTH, WIDTH), jnp.ones((2, WIDTH))

    def loss(params):
        return gru_jax.unroll(gru_jax.CUDNN, params, xs, method=method)[1].sum()

    expected = jax.jit(jax.grad(loss))(params)
    with jax.disable_jit():
        got = jax.grad(loss)(params)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", FLAX)
@pytest.mark.parametrize("switch", MESHES)
def test_flax_runs_on_a_mesh_from_a_carry_that_is_sharded(name, switch):
    subject = SUBJECTS[name]()

    def run(weights, xs):
        return jax.tree.leaves(subject.run(weights, xs))

    # The width of the state is that of the inputs.
    given = {
        "nnx cell in Flax's RNN": lambda: in_nnx(
            nnx.RNN(gru_jax.nnx.GRUCell(WIDTH, WIDTH, rngs=nnx.Rngs(0))),
            lambda module, xs: module(xs, initial_carry=jnp.zeros_like(xs[:, 0])),
        ),
        "linen cell in Flax's RNN": lambda: subject._replace(
            run=lambda variables, xs: nn.RNN(gru_jax.linen.GRUCell(WIDTH)).apply(
                variables, xs, initial_carry=jnp.zeros_like(xs[:, 0])
            )
        ),
    }[name]()
    expected = jax.jit(functools.partial(each_derivative, run))(subject.weights, subject.inputs())
    got = switched(given, switch, each_derivative)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


# --- Dtypes that must not mix -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [pytest.param("scan", marks=pytest.mark.long), "fused"])
def test_strict_promotion_of_bfloat16(method):
    subject = unrolled(gru_jax.CUDNN, method, jnp.bfloat16)
    function = jax.jit(functools.partial(each_derivative, subject.run))
    expected = function(subject.weights, subject.inputs(jnp.bfloat16))
    with jax.numpy_dtype_promotion("strict"):
        got = function(subject.weights, subject.inputs(jnp.bfloat16))
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert jnp.array_equal(a, b)


@pytest.mark.long
@pytest.mark.parametrize("name", CELLS)
def test_strict_promotion_of_bfloat16_in_other_cells(name):
    subject = unrolled(*CELLS[name], jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        outputs, _, _ = jax.jit(functools.partial(each_derivative, subject.run))(
            subject.weights, subject.inputs(jnp.bfloat16)
        )
    assert outputs[-1].dtype == jnp.bfloat16


@pytest.mark.long
@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_strict_promotion_of_bfloat16_in_layers(api):
    dtypes = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    if api == "nnx":
        subject = in_nnx(nnx_layer(**dtypes), lambda layer, xs: layer(xs, **flags()))
    else:
        subject = in_linen(gru_jax.linen.GRU(WIDTH, bidirectional=True, **dtypes), **flags())
    with jax.numpy_dtype_promotion("strict"):
        outputs, _, _ = jax.jit(functools.partial(each_derivative, subject.run))(
            subject.weights, subject.inputs(jnp.bfloat16)
        )
    assert outputs[-1].dtype == jnp.bfloat16


def test_lengths_of_every_integer_type():
    """Under strict promotion; and more steps than an int8 can count, which a comparison in its own type would lose."""
    lengths, steps = [3, 120], 300
    expected = jnp.arange(steps)[:, None] < jnp.array(lengths)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = gru_jax.CUDNN.init(jax.random.key(0), 2, 2)
        for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32"):
            run = lambda n: gru_jax.unroll(gru_jax.CUDNN, params, jnp.ones((steps, 2, 2), jnp.float32), lengths=n)[1]  # noqa: E731
            assert jnp.array_equal((run(jnp.array(lengths, dtype)) != 0).all(-1), expected), dtype
