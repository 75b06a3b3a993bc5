"""Any cell by nothing but its step within `jax.lax.scan`, under autodiff: slow, obvious, the oracle of the tests.

A gradient saves what autodiff wants of every step, several arrays like the states.
"""

from typing import Any

import jax

from gru_jax import policy
from gru_jax.registry import Lowering, Question


def _run(step: Any, reverse: bool, save: bool, params: Any, state_0: Any, xs: Any) -> tuple[Any, jax.Array]:
    def body(state_tm1: Any, now: Any) -> tuple[Any, jax.Array]:
        state_t = step(params, state_tm1, now)
        return state_t, step.cell.output(state_t)

    return jax.lax.scan(body, state_0, xs, reverse=reverse)


def _obstacle(question: Question) -> str | None:
    method, step, (params, _, xs) = question.params["method"], question.params["step"], question.operands
    if method == "scan":
        return None
    if method != "auto":
        return f"method={method!r} was asked for"
    if question.platform != "cpu":
        return "the two recurrences need fewer kernels a step"
    if hasattr(step.cell, "parallel") or policy.scan_pays(params[0], xs[0].shape[1:-1]):
        return None
    return "the two recurrences are faster for so few weights, or sequences"


LOWERING = Lowering("scan", {"cell": _run}, obstacle=_obstacle)
