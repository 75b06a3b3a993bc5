"""A cell whose gates do not see the state, as a minGRU, by a scan over all steps at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from gru_jax.registry import Lowering, Question


def _run(step: Any, reverse: bool, save: bool, params: Any, state_0: Any, xs: Any) -> tuple[Any, jax.Array]:
    weights, reset_state, _ = params
    inputs, mask, resets, _ = xs
    run: Callable[..., jax.Array] = functools.partial(step.cell.parallel, reverse=reverse)
    if not save:  # within one program XLA finds in the first half what the second forms again
        run = jax.checkpoint(run, prevent_cse=False)
    hs = run(weights, inputs, state_0, mask, resets, reset_state)
    return hs[0 if reverse else -1], hs


def _obstacle(question: Question) -> str | None:
    method, step, xs = question.params["method"], question.params["step"], question.operands[2]
    if method not in ("auto", "parallel"):
        return f"method={method!r} was asked for"
    if not hasattr(step.cell, "parallel"):
        return f"{type(step.cell).__name__} has gates that see the state"
    if step.rates is not None or xs[3] is not None:
        return "it has no zoneout: it does not run the cell's step"
    if method == "auto" and question.platform == "cpu":
        return "a CPU has few cores to share the more work"
    return None


LOWERING = Lowering("parallel", {"cell": _run}, obstacle=_obstacle, saves=lambda question: True)
