"""Which lowering the recurrences of a computation take, and what is saved for the gradient, without running it."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from gru_jax import modules
from gru_jax.cells.gru import Preactivations
from gru_jax.jaxprs import variables
from gru_jax.primitives import PRIMITIVES
from gru_jax.recurrence import RESIDUALS, STATES
from gru_jax.registry import CELL_PREFIX, Question, choose, default_platform


class Chosen(NamedTuple):
    """How one recurrence of a computation is run.

    Attributes:
      recurrence: of a GRU "gru_states", "gru_states_vjp" (its gradient), "gru_states_jvp" (its tangent) or
        "gru_linear_recurrence"; of a cell that is run by its step, its name and "states", or "states_vjp".
      lowering: "native", "xla-cpu" (loops of XLA that suit a CPU), "xla"; "scan", "fused", "parallel".
      why: the kernels' instruction set, or why it is not the kernels; empty for other cells.
      saved: the bytes of the arrays that leave the recurrence, by name. Without a derivative these are its results.
        Within one, "states" (of all steps) and "residuals" are what the gradient reads; of "scan" and "parallel", where
        autodiff says what it reads, "outputs and residuals" is all.
    """

    recurrence: str
    lowering: str
    why: str
    saved: dict[str, int]


def lowerings(function: Callable[..., Any]) -> Callable[..., list[Chosen]]:
    """Tells which lowering the recurrences of a computation will use, without running it.

    Args:
      function: any function of arrays, such as the loss of a model with GRU layers in it, or such a layer. Modules of
        Flax's nnx that it holds are copied first, so that no random stream moves on, nor anything else in them.

    Returns:
      A function of the same arguments that returns a `Chosen` for every recurrence in the computation. It answers for
      one device of the default platform, for `jax.jit` and not for `jax.export`, which always writes the portable form.

    >>> import jax.numpy as jnp
    >>> import gru_jax
    >>> params = gru_jax.CUDNN.init(jax.random.key(0), 2, 3)
    >>> loss = lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs, method="fused")[1].sum()
    >>> for chosen in gru_jax.lowerings(jax.grad(loss))(params, jnp.ones((5, 2))):
    ...     print(chosen.recurrence, chosen.lowering, chosen.saved)
    gru_states xla-cpu {'states': 60}
    gru_states_vjp xla-cpu {}
    """

    def report(*args: Any, **kwargs: Any) -> list[Chosen]:
        def traced(*args: Any) -> Any:
            return modules.with_copies(functools.partial(function, **kwargs))(*args)

        return list(_chosen(jax.make_jaxpr(traced)(*args).jaxpr, False))

    return report


def _chosen(jaxpr: Any, transposed: bool) -> Iterator[Chosen]:
    """Those of a jaxpr. `transposed`: whether it lies within a gradient's second half."""
    for equation in jaxpr.eqns:
        of_gradient = transposed or "transpose" in str(equation.source_info.name_stack)
        name = str(equation.params.get("name", ""))
        if equation.primitive in PRIMITIVES:
            yield _of_primitive(equation)
        elif name.startswith(CELL_PREFIX) and equation.primitive.name in ("jit", "pjit"):
            cell, lowering = name.removeprefix(CELL_PREFIX).split(".")
            recurrence = f"{cell} states" + "_vjp" * of_gradient
            yield Chosen(recurrence, lowering, "", {} if of_gradient else _leaving(equation))
        else:
            for inner in _within(equation):
                yield from _chosen(inner, of_gradient)


def _of_primitive(equation: Any) -> Chosen:
    params = dict(equation.params)
    recurrence, platform = equation.primitive.name, default_platform()
    operands = jax.tree.unflatten(params.pop("structure"), [v.aval for v in equation.invars])
    lowering, obstacles = choose(Question(recurrence, operands, params, platform))
    saved = {}
    if recurrence == "gru_states":
        names = ("states", *Preactivations._fields)
        saved = {name: _bytes(v.aval) for name, v in zip(names, equation.outvars, strict=False)}
    return Chosen(recurrence, lowering.name, lowering.detail() or obstacles.get("native", ""), saved)


def _leaving(equation: Any) -> dict[str, int]:
    """The bytes of what a compiled function saves under a name, else of what it returns that it was not given."""
    jaxpr, saved = equation.params["jaxpr"].jaxpr, dict.fromkeys((STATES, RESIDUALS), 0)
    for inner in jaxpr.eqns:
        if inner.primitive.name == "name" and inner.params["name"] in saved:
            saved[inner.params["name"]] += _bytes(inner.outvars[0].aval)
    if any(saved.values()):
        return {"states": saved[STATES], "residuals": saved[RESIDUALS]}
    returned = set(variables(jaxpr.outvars)).difference(jaxpr.invars)
    return {"outputs and residuals": sum(_bytes(v.aval) for v in returned)}


def _bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _within(equation: Any) -> Iterator[Any]:
    """The jaxprs in the parameters of an equation; of branches by platform, that of the default one."""
    params = dict(equation.params)
    if (platforms := params.pop("branches_platforms", None)) is not None:
        mine = next(i for i, names in enumerate(platforms) if names is None or default_platform() in names)
        params["branches"] = params["branches"][mine]
    for inner in jax.tree.leaves(tuple(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
        if hasattr(inner, "eqns"):
            yield getattr(inner, "jaxpr", inner)
