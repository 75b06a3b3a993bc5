"""Step by step is the same as the whole sequence, for functions, nnx and linen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gru_jax
from gru_jax.layers import Stack
from tests.cases import CELLS
from tests.models import inputs, model
from tests.sequences import random_bias, random_kernel

BATCH, TIME, IN_FEATURES, FEATURES = 3, 6, 2, 4
OPTIONS = {"bias_init": random_bias, "recurrent_kernel_init": random_kernel, "param_dtype": jnp.float64}


def streamed(step, carry, xs):
    """(carry, outputs) of a step over xs (batch, time, in_features), compiled once."""
    step = jax.jit(step)
    outputs = []
    for t in range(xs.shape[1]):
        carry, output = step(carry, xs[:, t])
        outputs.append(output)
    return carry, jnp.stack(outputs, axis=1)


def assert_same(ours, theirs, atol):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=atol, rtol=0), ours, theirs)
    assert [one.dtype for one in jax.tree.leaves(ours)] == [other.dtype for other in jax.tree.leaves(theirs)]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(
    ("param_dtype", "dtype", "atol"),
    [("float64", None, 1e-14), ("float32", None, 1e-6), ("float32", "bfloat16", 2e-2), ("bfloat16", None, 2e-2)],
)
def test_step_by_step_is_the_sequence(cell, num_layers, param_dtype, dtype, atol):
    one = model(CELLS[cell], IN_FEATURES, FEATURES, num_layers=num_layers, dtype=param_dtype)
    stack = Stack(one.stack.cell, FEATURES, num_layers=num_layers, dtype=dtype and jnp.dtype(dtype))
    xs = inputs(IN_FEATURES, batch=BATCH, time=TIME, dtype=param_dtype)
    zero = stack.zero_carry(one.params, (BATCH,))
    whole = stack.run(one.params, xs)
    stepwise = streamed(lambda carry, x_t: stack.step(one.params, carry, x_t), zero, xs)
    assert_same(stepwise, whole, atol)


def test_it_goes_on_from_where_a_sequence_ended():
    one = model(num_layers=2)
    xs = inputs()
    carry, _ = one(xs[:, :3])
    stepwise = streamed(lambda carry, x_t: one.stack.step(one.params, carry, x_t), carry, xs[:, 3:])
    carry, outputs = one(xs)
    assert_same(stepwise, (carry, outputs[:, 3:]), 1e-6)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_nnx(num_layers):
    layer = gru_jax.nnx.GRU(
        IN_FEATURES,
        FEATURES,
        num_layers=num_layers,
        dropout=0.5 * (num_layers > 1),
        recurrent_dropout=0.5,
        rngs=nnx.Rngs(0),
        **OPTIONS,
    )
    xs = inputs(IN_FEATURES, batch=BATCH, time=TIME, dtype="float64")
    graph, state = nnx.split(layer)
    stepwise = streamed(
        lambda carry, x_t: nnx.merge(graph, state).step(carry, x_t), layer.initialize_carry(xs[:, 0].shape), xs
    )
    assert_same(stepwise, layer(xs, return_carry=True, deterministic=True), 1e-14)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_linen(num_layers):
    layer = gru_jax.linen.GRU(FEATURES, num_layers=num_layers, recurrent_dropout=0.5, deterministic=True, **OPTIONS)
    xs = inputs(IN_FEATURES, batch=BATCH, time=TIME, dtype="float64")
    variables = layer.init(jax.random.key(0), xs)
    zero = layer.initialize_carry(None, xs[:, 0].shape)
    from_step = layer.init(jax.random.key(0), zero, xs[:, 0], method="step")
    assert jax.tree.all(jax.tree.map(lambda one, other: (one == other).all(), variables, from_step))
    stepwise = streamed(lambda carry, x_t: layer.apply(variables, carry, x_t, method="step"), zero, xs)
    assert_same(stepwise, layer.apply(variables, xs, return_carry=True), 1e-14)


def test_no_batch_axis_and_several():
    one = model(in_features=3)
    xs = inputs(3, batch=6)
    _, expected = one.stack.step(one.params, jnp.zeros((6, 4)), xs[:, 0])
    _, alone = one.stack.step(one.params, jnp.zeros(4), xs[0, 0])
    _, several = one.stack.step(one.params, jnp.zeros((2, 3, 4)), xs[:, 0].reshape(2, 3, 3))
    np.testing.assert_allclose(alone, expected[0], atol=1e-6)
    np.testing.assert_allclose(several.reshape(6, 4), expected, atol=1e-6)


def test_reverse_is_the_reversed_sequence():
    backward, forward = model(num_layers=2, reverse=True), model(num_layers=2)
    xs, resets = inputs(), np.random.default_rng(0).random((4, 5)) < 0.3
    carry, outputs = backward(xs)
    expected_carry, expected = forward(xs[:, ::-1])
    np.testing.assert_allclose(outputs, expected[:, ::-1], atol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), carry, expected_carry)
    # An episode that begins at t ends, backwards, at t: step t − 1 sees nothing of it.
    _, outputs = backward(xs, resets=resets)
    for row, starts in enumerate(resets):
        edges = [0, *(np.flatnonzero(starts[1:]) + 1), 5]
        for start, end in itertools.pairwise(edges):
            np.testing.assert_allclose(outputs[row, start:end], backward(xs[row, start:end])[1], atol=1e-6)


def test_layers_run_backwards_only():
    one = model(reverse=True, num_layers=2)
    layer = gru_jax.nnx.GRU.from_model(one)
    assert layer.stack.reverse
    np.testing.assert_allclose(layer(inputs()), one(inputs())[1], atol=1e-6)
    linen, variables = gru_jax.linen.GRU.from_model(one)
    flipped = gru_jax.linen.GRU(4, num_layers=2).apply(variables, inputs()[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(linen.apply(variables, inputs()), flipped, atol=1e-6)


BAD = {
    "bidirectional": (dict(bidirectional=True), ((4, 4),) * 2, (4, 3), "forward only, got bidirectional=True"),
    "reverse": (dict(reverse=True), (4, 4), (4, 3), "forward only, got reverse=True"),
    "width": ({}, (4, 4), (4, 2), r"x_t must have shape \(\*batch, in_features\) = \(4, 3\), got \(4, 2\)"),
    "scalar": ({}, (4,), (), r"x_t must have shape \(\*batch, in_features\), got \(\)"),
    "carry": ({}, (3, 4), (4, 3), r"carry must broadcast to \(\*batch, features\) = \(4, 4\), got shape \(3, 4\)"),
    "one": (dict(num_layers=2), ((4, 4),), (4, 3), "carry must have 2 states, one for each layer and direction, got 1"),
    "second": (dict(num_layers=2), ((4, 4), (4, 5)), (4, 3), r"carry\[1\] must broadcast to"),
    "single": (dict(num_layers=2), (4, 4), (4, 3), r"must be a tuple of 2 states.* = \(2, 4, 4\), got \(4, 4\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_steps_are_refused(case):
    options, shapes, shape, message = BAD[case]
    one = model(**options)
    carry = tuple(map(jnp.zeros, shapes)) if isinstance(shapes[0], tuple) else jnp.zeros(shapes)
    with pytest.raises(ValueError, match=message):
        one.stack.step(one.params, carry, jnp.zeros(shape))


def test_bad_types_are_refused():
    one = model(num_layers=2)
    with pytest.raises(TypeError, match="carry must be the state of every layer"):
        one.stack.step(one.params, None, jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="reverse must be False with bidirectional=True"):
        model(bidirectional=True, reverse=True)
    with pytest.raises(TypeError, match="reverse must be a bool, got 1"):
        model(reverse=1)
