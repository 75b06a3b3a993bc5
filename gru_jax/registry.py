"""The lowerings that there are, and which of them a recurrence takes: by the platform that is lowered for.

A recurrence is one of the primitives of `gru_jax.primitives`, or "cell", the states of any cell. `gru_jax.lowerings`
has a file for each lowering, and the list of them in the order in which they are preferred.

What a derivative saves has one form on every platform, as JAX fixes it when it traces, before a platform is known. The
form is what the lowering wants that the default backend has. A lowering of another platform that does not want it gives
a constant, which its gradient does not read; XLA removes both where the two halves of a gradient are one program. Where
they are compiled apart, so that what is saved is an array, this is what the default backend wants.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.backend import get_backend
from jax.extend.core import Primitive
from jax.interpreters import mlir

from gru_jax import partitioning

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Question(NamedTuple):
    """What a lowering is asked to run.

    Attributes:
      recurrence: "gru_states", "gru_states_jvp", "gru_states_vjp", "gru_linear_recurrence" or "cell".
      operands: arrays, or their types.
      params: the parameters of the primitive, or what else there is to know.
      platform: that is lowered for; None for one that is not known, as in an export.
      devices: over how many devices the computation is yet to be partitioned; None if they are not known.
    """

    recurrence: str
    operands: Any
    params: dict[str, Any]
    platform: str | None
    devices: int | None = 1


def _nothing(question: Question) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Lowering:
    """One way to run recurrences.

    Attributes:
      name: what `gru_jax.lowerings` calls it.
      calls: by recurrence, a function that runs it. That of a primitive takes its operands and, as keywords, its
        parameters; that of "cell" takes (step, reverse, save, params, state_0, xs), see `run_cell`.
      platforms: those that it is for; all if empty.
      obstacle: why it cannot run what it has a call for, or is not to; None if it can.
      saves: whether a gradient is faster if it saves more than inputs and states. Of a GRU that is the preactivations,
        which this lowering's calls then return and read. All lowerings of a platform must read them, or none: one may
        run the states, another the gradient.
      detail: what else is to be said of it, as the instruction set.
      passed_over: called with the obstacle when a computation that it could not run is compiled.
      opaque: whether XLA cannot partition its calls. They are given arrays without shardings in their types, and each
        device its share of the batch.
    """

    name: str
    calls: Mapping[str, Callable[..., Any]]
    platforms: tuple[str, ...] = ()
    obstacle: Callable[[Question], str | None] = _nothing
    saves: Callable[[Question], bool] = lambda question: False
    detail: Callable[[], str] = lambda: ""
    passed_over: Callable[[str], None] = lambda why: None
    opaque: bool = False

    def why_not(self, question: Question) -> str | None:
        """Why it does not run this, or None if it does."""
        if question.recurrence not in self.calls:
            return f"{self.name} has no call for {question.recurrence}"
        if self.platforms and question.platform not in self.platforms:
            return f"{self.name} is for the platform {' or '.join(self.platforms)}, not {question.platform}"
        return self.obstacle(question)


_registered: list[Lowering] = []


def register(lowerings: Iterable[Lowering]) -> None:
    """Adds lowerings, in the order in which they are to be preferred."""
    _registered.extend(lowerings)


def named(name: str) -> Lowering:
    """The lowering of that name."""
    return next(lowering for lowering in _registered if lowering.name == name)


def choose(question: Question) -> tuple[Lowering, dict[str, str]]:
    """The first lowering that can run it; and by name, why those before it do not."""
    obstacles: dict[str, str] = {}
    for lowering in _registered:
        why = lowering.why_not(question)
        if why is None:
            return lowering, obstacles
        obstacles[lowering.name] = why
    raise NotImplementedError("; ".join(obstacles.values()))


def default_platform() -> str:
    """The platform of the default backend."""
    backend = jax.default_backend()
    if backend != "gpu":
        return backend
    return "rocm" if "rocm" in get_backend().platform_version else "cuda"


def saves_residuals(recurrence: str, operands: Any, params: dict[str, Any]) -> bool:
    """Whether derivatives save more than inputs and states; the default backend decides (see above)."""
    question = Question(recurrence, operands, params, default_platform())
    return choose(question)[0].saves(question)


def install(primitive: Primitive) -> None:
    """Lets the lowerings run a primitive."""
    for platform in (None, *PLATFORMS):
        mlir.register_lowering(primitive, functools.partial(_lower, primitive, platform), platform=platform)


def _lower(primitive: Primitive, platform: str | None, ctx: Any, *leaves: Any, structure: Any, **params: Any) -> Any:
    """The lowering rule of a primitive on a platform; in an export it is the portable one."""
    if ctx.module_context.lowering_parameters.for_export:
        platform = None
    devices = partitioning.devices(ctx.module_context.axis_context)
    operands = jax.tree.unflatten(structure, ctx.avals_in)
    question = Question(primitive.name, operands, params, platform, devices)
    chosen, obstacles = choose(question)
    for name, why in obstacles.items():
        named(name).passed_over(why)

    def call(*leaves: jax.Array) -> Any:
        outs = chosen.calls[primitive.name](jax.tree.unflatten(structure, leaves), **params)
        return outs if primitive.multiple_results else [outs]

    if not chosen.opaque:
        return mlir.lower_fun(call)(ctx, *leaves)
    if devices != 1:
        call = partitioning.partitioned(call, operands, params.get("wrt"), len(ctx.avals_out))
    with partitioning.no_mesh():
        avals = [jax.core.ShapedArray(x.shape, x.dtype) for x in ctx.avals_in]
        return mlir.lower_fun(call)(ctx.replace(avals_in=avals), *leaves)


CELL_PREFIX = "unroll."
"""With it begins the name of a compiled function that runs a cell: the name of the cell and of the lowering follow."""


def run_cell(step: Any, reverse: bool, method: str, params: Any, state_0: Any, xs: Any) -> Any:
    """Last state and outputs of any cell, by the lowering that the platform has for it.

    Where platforms differ, each has a branch of `jax.lax.platform_dependent`; a gradient saves what all branches need.
    So those of other lowerings than the default backend's save no more than inputs and states. Where the default
    backend is no CPU there are no branches, and it decides alone.

    Args:
      step: a `gru_jax.unroll.MaskedStep`.
      reverse: run against time.
      method: of `gru_jax.unroll`.
      params, state_0, xs: what the step takes; xs with a time axis in front.

    The call of a lowering takes these but `method`, and behind `reverse` whether a gradient is to save more than inputs
    and states.
    """
    default = default_platform()
    question = Question("cell", (params, state_0, xs), {"step": step, "method": method}, default)

    def chosen(platform: str | None) -> Lowering:
        return choose(question._replace(platform=platform))[0]

    own, other = chosen(default), chosen(None)

    def run(lowering: Lowering) -> Callable[..., Any]:
        name = f"{CELL_PREFIX}{type(step.cell).__name__}.{lowering.name}"
        save = lowering is own and lowering.saves(question)
        return functools.partial(_compiled(lowering.calls["cell"], name), step, reverse, save)

    branches = {platform: chosen(platform) for platform in PLATFORMS}
    if default != "cpu" or all(lowering is own for lowering in (other, *branches.values())):
        return run(own)(params, state_0, xs)

    per_platform = {platform: run(lowering) for platform, lowering in branches.items() if lowering is not other}
    return jax.lax.platform_dependent(params, state_0, xs, default=run(other), **per_platform)


@functools.cache
def _compiled(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`run`, compiled under a name by which `gru_jax.lowerings` finds it; eager calls compile it once."""

    def named_run(step: Any, reverse: bool, save: bool, params: Any, state_0: Any, xs: Any) -> Any:
        return run(step, reverse, save, params, state_0, xs)

    named_run.__name__ = name
    return jax.jit(named_run, static_argnums=(0, 1, 2))
