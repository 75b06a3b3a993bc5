"""The recurrences of a GRU as programs of XLA: the portable ones, and with the loops that suit a CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import activations, policy, primitives, recurrence, shapes
from gru_jax.cells import GRU
from gru_jax.operands import Operands
from gru_jax.registry import Lowering, Question


def _states_on_cpu(
    o: Operands, *, cell: GRU, reverse: bool, method: str, saves_residuals: bool, differentiated: bool
) -> list[jax.Array]:
    cell = with_tanh_sigmoid(cell, o.h_0.dtype)
    hoist = differentiated or policy.hoists_projection(3 * o.state_count())
    return jax.tree.leaves(recurrence.states(o, cell, reverse, saves_residuals, hoist))


def with_tanh_sigmoid(cell: GRU, dtype: Any) -> GRU:
    """The cell with σ through tanh, for which XLA on a CPU takes less time than for an exponential and a division."""
    if dtype != jnp.float32 or cell.gate != activations.SIGMOID:
        return cell
    return dataclasses.replace(cell, gate=_tanh_sigmoid)


def _tanh_sigmoid(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


def saves_preactivations(question: Question, native: bool) -> bool:
    """Whether a gradient is faster on a CPU if preactivations are saved; `native`: whether a kernel computes them."""
    o: Operands = question.operands
    elements = shapes.residual_count(question.params["cell"]) * o.state_count()
    return policy.saves_preactivations(o.weight_count(), elements, native)


PORTABLE = Lowering(
    "xla",
    {
        "gru_states": primitives.define_states,
        "gru_states_jvp": primitives.define_states_jvp,
        "gru_states_vjp": primitives.define_states_vjp,
        "gru_linear_recurrence": primitives.define_linear_recurrence,
    },
)
CPU = Lowering(
    "xla-cpu",
    {
        "gru_states": _states_on_cpu,
        "gru_states_jvp": primitives.define_states_jvp_with_residuals,
        "gru_states_vjp": primitives.define_states_vjp_with_residuals,
        "gru_linear_recurrence": primitives.define_linear_recurrence,
    },
    platforms=("cpu",),
    saves=lambda question: saves_preactivations(question, native=False),
)
