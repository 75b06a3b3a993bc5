"""What a gradient keeps and how often the recurrences run, read off the residuals and the compiled program."""

import re

import jax
import jax.numpy as jnp
import pytest

import gru_jax
from gru_jax import policy
from tests.cases import CELLS, FEATURES, IN_FEATURES, native_is_installed

pytestmark = pytest.mark.optimized

# Not in any weight's shape, so that what has this many rows is kept for every step.
STEPS, BATCH = 37, 5


def loss_and_args(cell, method="fused"):
    params = cell.init(jax.random.key(0), IN_FEATURES, FEATURES)
    xs = jax.random.normal(jax.random.key(1), (STEPS, BATCH, IN_FEATURES))
    return lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1].sum(), (params, xs)


def kept_per_step(loss, args):
    """Widths of the arrays (T, B, width) or (T·B, width) that the backward pass holds on to."""
    _, vjp = jax.vjp(loss, *args)
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(vjp) if leaf.ndim and leaf.shape[0] in (STEPS, STEPS * BATCH)}
    return sorted(leaf.shape[-1] for leaf in kept.values())


def while_loops(loss, args):
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile().as_text().count(" while(")


def recurrences(loss, args):
    """How often the program of a gradient runs the states, and their transpose."""
    program = str(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*args))
    return program.count("gru_states["), program.count("gru_states_vjp[")


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_keeps_inputs_and_states_alone(cell):
    loss, args = loss_and_args(CELLS[cell])
    assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]
    assert kept_per_step(jax.checkpoint(loss, policy=gru_jax.save_states), args) == [IN_FEATURES, FEATURES]
    assert sum(kept_per_step(*loss_and_args(CELLS[cell], "scan"))) > 3 * (IN_FEATURES + FEATURES)


@pytest.mark.parametrize("cell", CELLS)
def test_gradient_keeps_the_preactivations_of_many_weights(cell, monkeypatch):
    loss, args = loss_and_args(CELLS[cell])
    monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MIN_WEIGHTS", 3 * FEATURES * (IN_FEATURES + FEATURES) - 1)
    kept = [IN_FEATURES, *[FEATURES] * (5 if CELLS[cell].reset_after else 4)]
    assert kept_per_step(loss, args) == kept
    assert kept_per_step(jax.checkpoint(loss, policy=gru_jax.save_states), args) == kept
    monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MIN_WEIGHTS", 3 * FEATURES * (IN_FEATURES + FEATURES))
    assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]
    monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MIN_WEIGHTS", 0)
    with monkeypatch.context() as context:
        context.setattr(gru_jax.config, "keep_residuals", False)
        assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]
    assert kept_per_step(loss, args) == kept
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]


@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014])
def test_preactivations_are_kept_on_a_cpu_alone(cell, keep):
    """In a program that a host with a CPU makes for another platform, no loop has them as results or operands."""
    loss, args = loss_and_args(cell, "auto")

    def loops(kept, platform):
        keep(kept)
        traced = jax.jit(lambda *args: jax.grad(loss, (0, 1))(*args)).trace(*args)
        return re.findall(r"stablehlo.while.* : (.*)", traced.lower(lowering_platforms=(platform,)).as_text())

    for platform in ("cuda", "tpu"):
        assert len(loops(True, platform)) == 2
        assert loops(True, platform) == loops(False, platform)
    assert loops(True, "cpu") != loops(False, "cpu")


@pytest.mark.skipif(not native_is_installed, reason="the native kernels are not installed")
@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014])
def test_a_kernel_keeps_few_preactivations_of_few_weights(cell, monkeypatch):
    many = 4 if cell.reset_after else 3
    loss, args = loss_and_args(cell, "auto")
    args = jax.tree.map(lambda x: x.astype(jnp.float32), args)
    kept = [IN_FEATURES, *[FEATURES] * (many + 1)]
    monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MAX_ELEMENTS", many * STEPS * BATCH * FEATURES)
    assert kept_per_step(loss, args) == kept
    assert kept_per_step(loss_and_args(cell, "fused")[0], args) == [IN_FEATURES, FEATURES]
    with monkeypatch.context() as context:
        context.setattr(gru_jax.config, "keep_residuals", False)
        assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]
    monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MAX_ELEMENTS", many * STEPS * BATCH * FEATURES - 1)
    assert kept_per_step(loss, args) == [IN_FEATURES, FEATURES]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_policy_does_not_run_the_states_twice(cell, kept, keep):
    keep(kept)
    loss, args = loss_and_args(CELLS[cell])
    assert recurrences(jax.checkpoint(loss), args) == (2, 1), "a plain checkpoint recomputes the states"
    kept = jax.checkpoint(loss, policy=gru_jax.save_states)
    assert recurrences(kept, args) == (1, 1)
    assert while_loops(kept, args) == 2
