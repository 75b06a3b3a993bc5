"""JAX's own switches: with each of them on, everything runs and gives what it gives without, or fails as Flax's own does.

A table of switches and of what may be run, forward, gradient and jvp each, and for `unroll` alone hessian and vmap. In
float32, as most users have it; in bfloat16 where types must not mix.
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
from gru_jax.cells import Leaky, MinGRU, RefineGRU
from tests.cases import native_is_installed

TIME, BATCH, IN_FEATURES, FEATURES = 3, 8, 4, 4


@pytest.fixture(autouse=True, scope="module")
def float32(float64):
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


# --- What is run ------------------------------------------------------------------------------------------------------


class Subject(NamedTuple):
    """What is run: `run(weights, xs)`, differentiable in both, and its weights; `axis` is the batch axis of xs."""

    run: Callable[[Any, jax.Array], Any]
    weights: Any
    axis: int = 0


def inputs(subject):
    shape = {0: (BATCH, TIME, IN_FEATURES), 1: (TIME, BATCH, IN_FEATURES)}[subject.axis]
    return jax.random.normal(jax.random.key(3), shape)


def flags():
    """Keyword arguments of a layer: lengths of a narrow type, a mask, and resets."""
    keys = jax.random.split(jax.random.key(5))
    return {
        "seq_lengths": jnp.array([3, 2, 0, 1, 3, 3, 2, 3], jnp.uint8),
        "mask": jax.random.bernoulli(keys[0], 0.8, (BATCH, TIME)),
        "resets": jax.random.bernoulli(keys[1], 0.3, (BATCH, TIME)),
    }


def unrolled(cell, method, **options):
    given = flags()
    arrays = {"lengths": given["seq_lengths"], "mask": given["mask"].T, "resets": given["resets"].T}
    if method == "native":
        del arrays["resets"]

    def run(params, xs):
        return gru_jax.unroll(cell, params, xs, method=method, **arrays, **options)

    return Subject(run, cell.init(jax.random.key(0), IN_FEATURES, FEATURES, bias_init=jax.nn.initializers.normal(1)), 1)


def in_nnx(module, **options):
    graph, state = nnx.split(module)
    return Subject(lambda state, xs: nnx.merge(graph, state)(xs, **options), state)


def in_linen(module, **options):
    variables = module.init(jax.random.key(0), jnp.ones((BATCH, TIME, IN_FEATURES)))
    return Subject(lambda variables, xs: module.apply(variables, xs, **options), variables)


def stepped(cell):
    params = cell.init(jax.random.key(0), IN_FEATURES, FEATURES)

    def run(params, xs):
        return cell.step(params, cell.initial_state(params, xs.shape[:1], xs.dtype), xs[:, 0])

    return Subject(run, params)


def stepped_layer():
    graph, state = nnx.split(gru_jax.nnx.GRU(IN_FEATURES, FEATURES, num_layers=2, rngs=nnx.Rngs(0)))

    def run(state, xs):
        layer = nnx.merge(graph, state)
        return layer.step(layer.initialize_carry((BATCH, IN_FEATURES)), xs[:, 0])

    return Subject(run, state)


UNROLLED = {
    "scan": (gru_jax.CUDNN, "scan"),
    "fused": (gru_jax.CUDNN, "fused"),
    "auto": (gru_jax.CUDNN, "auto"),
    "before, auto": (gru_jax.CHO2014, "auto"),
    "minGRU, parallel": (MinGRU(), "parallel"),
    "refine": (RefineGRU(), "scan"),
    "leaky": (Leaky(), "scan"),
} | ({"native": (gru_jax.CUDNN, "native")} if native_is_installed else {})

SUBJECTS = {
    **{name: functools.partial(unrolled, *given) for name, given in UNROLLED.items()},
    "nnx cell in Flax's RNN": lambda: in_nnx(nnx.RNN(gru_jax.nnx.GRUCell(IN_FEATURES, FEATURES, rngs=nnx.Rngs(0)))),
    "linen cell in Flax's RNN": lambda: in_linen(nn.RNN(gru_jax.linen.GRUCell(FEATURES))),
    "nnx layer": lambda: in_nnx(
        gru_jax.nnx.GRU(
            IN_FEATURES, FEATURES, num_layers=2, bidirectional=True, recurrent_dropout=0.5, dropout=0.5, rngs=nnx.Rngs(0)
        ),
        rngs=jax.random.key(1),
        return_carry=True,
        **flags(),
    ),
    "linen layer": lambda: in_linen(
        gru_jax.linen.GRU(FEATURES, num_layers=2, bidirectional=True), return_carry=True, **flags()
    ),
    "cell.step": lambda: stepped(gru_jax.CUDNN),
    "layer.step": stepped_layer,
}
FLAX = {
    "nnx": lambda: in_nnx(nnx.RNN(nnx.GRUCell(IN_FEATURES, FEATURES, rngs=nnx.Rngs(0)))),
    "linen": lambda: in_linen(nn.RNN(nn.GRUCell(FEATURES))),
}


def everything(run, weights, xs):
    """Outputs, gradient and jvp."""

    def outputs(weights, xs):
        return [leaf for leaf in jax.tree.leaves(run(weights, xs)) if leaf.size]

    def loss(weights, xs):
        return sum(jnp.sin(leaf.astype(jnp.float32)).sum() for leaf in outputs(weights, xs))

    tangents = jax.tree.map(jnp.cos, (weights, xs))
    return outputs(weights, xs), jax.grad(loss, (0, 1))(weights, xs), jax.jvp(outputs, (weights, xs), tangents)[1]


# --- The switches -----------------------------------------------------------------------------------------------------


def mesh(*sizes):
    """As `jax.make_mesh` makes one by default."""
    return lambda: jax.set_mesh(jax.make_mesh(sizes, ("data", "model")[: len(sizes)]))


def traceback_filtering_off():
    return jax._src.config.traceback_filtering("off")


SWITCHES = {
    "disable_jit": jax.disable_jit,
    "debug_nans": functools.partial(jax.debug_nans, True),
    "debug_infs": functools.partial(jax.debug_infs, True),
    "rank_promotion=raise": functools.partial(jax.numpy_rank_promotion, "raise"),
    "dtype_promotion=strict": functools.partial(jax.numpy_dtype_promotion, "strict"),
    "enable_checks": functools.partial(jax.enable_checks, True),
    "check_tracer_leaks": jax.checking_leaks,
    "debug_key_reuse": functools.partial(jax.debug_key_reuse, True),
    "transfer_guard=disallow": functools.partial(jax.transfer_guard, "disallow"),
    "enable_x64": functools.partial(jax.enable_x64, True),
    "matmul_precision=highest": functools.partial(jax.default_matmul_precision, "highest"),
    "explicit (8,)": mesh(8),
    "explicit (2, 4)": mesh(2, 4),
}


@pytest.mark.long
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("subject", [*SUBJECTS, *FLAX])
def test_x(subject, switch):
    one = (SUBJECTS | FLAX)[subject]()
    xs = inputs(one)
    f = jax.jit(functools.partial(everything, one.run))
    expected = f(one.weights, xs)
    with SWITCHES[switch]():
        if switch.startswith("explicit"):
            spec = [None] * 3
            spec[one.axis] = "data" if "8" in switch else ("data", "model")
            xs = jax.device_put(xs, P(*spec))
        got = jax.jit(functools.partial(everything, one.run))(one.weights, xs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
