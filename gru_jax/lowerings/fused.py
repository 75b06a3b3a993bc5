"""Any cell by the two recurrences of `gru_jax.engine`, compiled by XLA."""

from typing import Any

import jax

from gru_jax import engine, policy
from gru_jax.registry import Lowering, Question


def _run(step: Any, reverse: bool, save: bool, params: Any, state_0: Any, xs: Any) -> tuple[Any, jax.Array]:
    states = engine.states(step, reverse, save, params, state_0, xs)
    return jax.tree.map(lambda leaf: leaf[0 if reverse else -1], states), jax.vmap(step.cell.output)(states)


def _obstacle(question: Question) -> str | None:
    method = question.params["method"]
    return None if method in ("auto", "fused") else f"method={method!r} was asked for"


def _saves_products(question: Question) -> bool:
    params, _, xs = question.operands
    return question.platform == "cpu" and policy.saves_products(params[0], xs[0].shape[1:-1])


LOWERING = Lowering("fused", {"cell": _run}, obstacle=_obstacle, saves=_saves_products)
