"""What the primitives become on a CPU: calls of the native kernels where they apply, otherwise loops of XLA.

The kernels (C++, in `native/`) compute the states, their gradient and the linear recurrence in float32, for gates σ and
a candidate that is tanh or σ. The rest, every other platform, and what `jax.export` writes, takes the definitions of
`gru_jax.recurrence`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import mlir

from gru_jax import activations, modules, partitioning, unbuilt
from gru_jax.cells import GRU
from gru_jax.linearisation import Linearisation, Preactivations, preactivation_count
from gru_jax.recurrence import KEPT, WEIGHTS, Operands
from gru_jax.settings import config
from gru_jax.shapes import named_operands

try:
    from gru_jax import _native

    for _target, _handler in _native.handlers().items():
        jax.ffi.register_ffi_target(_target, _handler, platform="cpu")
    missing = None
except ImportError as error:
    missing = unbuilt.why(error)

CANDIDATES = activations.TANH, activations.SIGMOID
"""The activations of a candidate that the kernels have; the gates' is sigmoid."""

SMALL, PER_USE = 1 << 18, {"gru_states": 50_000, "gru_pull": 30_000}
"""A recurrence is left to XLA if W and U hold more numbers than the first, and more than the second for each step and
sequence that uses them: the kernels begin with a copy of the weights in an order of their own, and their gradient ends
with a sum of the parts' (measured: README)."""
SMALL_OF_SEVERAL = 3 << 17
"""The first for the states of several sequences: of four sequences within a `lax.scan` of 128 calls of one step, D = H
= 256, the kernel is 1.24 times as fast as Flax' cell, XLA 0.99 (`python -m experiments bench --rollout --rounds 3
--sample-ms 10`, first table, medians of three processes, 2 cores, AVX2)."""
PER_USE_OF_ONE = 20_000
"""The second for the states of one sequence, whose steps are too short for the kernels' two threads to share well:
D = H = 256, T = 16 and 32: 0.8, 1.2 times as fast as XLA; 512, T = 32 and 64: 0.4, 1.2. Of two sequences 1.3 and more
from 50,000 on (one run, 2 cores, AVX2)."""
FEW_USES = 4
"""So are the states of fewer steps and sequences than this: a call of a kernel then takes longer than all else. One
step of one sequence within a `lax.scan` of 128 calls, D = H = 32, 128, 256: 0.66, 0.84, 0.45 times as fast as Flax'
cell by the kernel, 1.21, 0.95, 1.02 by XLA; of four sequences 1.33, 1.23, 1.24 and 1.10, 1.04, 0.99 (as above). A call
alone of one step is 1.8 to 3 times as fast by the kernel, but a lowering does not see which it is."""
ONE_STEP = 1 << 20
"""So is a single step with more weights than this, for however many sequences: they leave the caches. Within a scan of
128 calls, D = H = 512 and 4, 16, 64, 256 sequences: 0.71, 0.76, 0.97, 0.97 times as fast as Flax' cell by the kernel,
1.16, 1.05, 1.00, 0.95 by XLA (as above)."""
KEPT_FROM = 1 << 16
"""Preactivations are kept for the gradient if W and U hold more numbers than this (measured: README)."""
KEPT_UP_TO = 1 << 21
"""With fewer weights they are kept if a kernel computes them, and they are no more numbers than this, 8 MB; gradients
are 1.02 to 1.19 times as fast then. Loops of XLA would be slower. So is all that leaves the caches, or makes a program
so large that its memory is fresh, and filled with zeros first, at every call: 0.7 to 0.9 from 24 MB on."""
HOISTED = 1 << 23
"""XLA projects inputs within its loop if the projected ones would be more numbers than this, 32 MB: such an array has
left the caches when the loop reads it, and has fresh pages at every call. A gradient would gain nothing."""


def obstacle(primitive: str, named: dict[str, Any], params: dict[str, Any]) -> str | None:
    """Why a primitive cannot run on the native kernels, or None if it can.

    Args:
      primitive: its name.
      named: its operands, or their types, by name.
      params: its parameters.
    """
    if primitive == "gru_push":
        return "a tangent is made of XLA's operations and gru_linear"
    if params["method"] == "fused":
        return 'method="fused" asks for XLA'
    if not config.native:
        return "gru_jax.config.native is False"
    cell = params.get("cell")
    if cell is not None and (cell.gate != activations.SIGMOID or cell.candidate not in CANDIDATES):
        return "the cell has other activations than a sigmoid gate and a tanh or sigmoid candidate"
    dtypes = {str(x.dtype) for name, x in named.items() if name not in ("mask", "resets")}
    if dtypes != {"float32"}:
        return f"the kernels are for float32, got {', '.join(sorted(dtypes))}"
    sizes = [size for x in named.values() for size in x.shape]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return "an axis is empty, or its size is not known"
    if primitive == "gru_pull" and named["hs"].shape != named["ct"].shape:
        return "many cotangents share one linearisation"
    if params["method"] == "auto" and primitive in PER_USE and _is_short(primitive, named):
        return "XLA is faster for so few steps of so wide a state"
    return missing


def _is_short(primitive: str, named: dict[str, Any]) -> bool:
    """Whether the weights are so many, for what they are used, that the kernels are slower than XLA."""
    o = Operands(**{name: x for name, x in named.items() if name in Operands._fields})
    lead, weights = o.lead(), o.weight_count()
    if math.prod(lead[: o.groups]) > 1:
        return False  # XLA has no fast product of several matrices
    steps, sequences = o.xs.shape[0], math.prod(lead[o.groups :])
    uses, small, per_use = steps * sequences, SMALL, PER_USE[primitive]
    if primitive == "gru_states":
        if uses < FEW_USES or (steps == 1 and weights > ONE_STEP):
            return True
        small, per_use = (SMALL, PER_USE_OF_ONE) if sequences == 1 else (SMALL_OF_SEVERAL, per_use)
    return weights > max(small, per_use * uses)


def keeps(named: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether a gradient is faster, on a CPU, if it keeps the preactivations, a few arrays like the states.

    Elsewhere it forms them again, all steps at once, and what it would keep is a constant that nothing reads: XLA
    leaves it out where both halves of a gradient are one program. Of a vjp whose halves are compiled apart it is an
    array, so that it is not asked for where the default backend is no CPU.

    Args:
      named: the operands of the states, by name.
      params: the parameters of their primitive.
    """
    if not config.keep_preactivations or jax.default_backend() != "cpu":
        return False
    o = Operands(**named)
    count = o.weight_count()
    if not isinstance(count, int):  # an export for any size
        return False
    if count > KEPT_FROM:
        return True
    if obstacle("gru_states", named, params):
        return False
    each = o.xs.shape[0] * math.prod(o.lead()) * o.h_0.shape[-1]
    return preactivation_count(params["cell"]) * each <= KEPT_UP_TO


def hoists(o: Operands) -> bool:
    """Whether XLA is faster on a CPU if it projects all inputs before its loop."""
    return o.xs.shape[0] * math.prod(o.lead()) * 3 * o.h_0.shape[-1] <= HOISTED


def suited(cell: GRU, dtype: Any) -> GRU:
    """The cell with σ through tanh, for which XLA on a CPU takes less time than for an exponential and a division."""
    if dtype != jnp.float32 or cell.gate != activations.SIGMOID:
        return cell
    return dataclasses.replace(cell, gate=_sigmoid_through_tanh)


def _sigmoid_through_tanh(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jnp.tanh(0.5 * x)


class Lowering(NamedTuple):
    """What one primitive of a computation becomes on this machine.

    Attributes:
      primitive: "gru_states", "gru_pull" (its gradient), "gru_push" (its tangent) or "gru_linear".
      native: whether it calls a native kernel.
      why: the kernel's instruction set, or why it is left to XLA.
    """

    primitive: str
    native: bool
    why: str


def lowerings(function: Callable[..., Any]) -> Callable[..., list[Lowering]]:
    """Tells which lowering the recurrences of a computation will use, without running it.

    Args:
      function: any function of arrays, such as the loss of a model with GRU layers in it, or such a layer. Modules of
        Flax's nnx that it holds are copied first, so that no random stream moves on, nor anything else in them.

    Returns:
      A function of the same arguments that returns a `Lowering` for every recurrence in the computation. It answers for
      one device of the default platform, for `jax.jit` and not for `jax.export`, which always writes the portable form.

    >>> import gru_jax
    >>> params = gru_jax.CUDNN.init(jax.random.key(0), 2, 3)
    >>> loss = lambda params, xs: gru_jax.unroll(gru_jax.CUDNN, params, xs, method="fused")[1].sum()
    >>> for lowering in gru_jax.lowerings(jax.grad(loss))(params, jnp.ones((5, 2))):
    ...     print(lowering)
    Lowering(primitive='gru_states', native=False, why='method="fused" asks for XLA')
    Lowering(primitive='gru_pull', native=False, why='method="fused" asks for XLA')
    """

    def report(*args: Any, **kwargs: Any) -> list[Lowering]:
        def traced(*args: Any) -> Any:
            return modules.with_copies(functools.partial(function, **kwargs))(*args)

        return list(_lowerings(jax.make_jaxpr(traced)(*args).jaxpr))

    return report


def _lowerings(jaxpr: Any) -> Iterator[Lowering]:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("gru_states", "gru_pull", "gru_push", "gru_linear"):
            named = {n: x.aval for n, x in zip(params["names"], equation.invars, strict=True)}
            why = obstacle(name, named, params)
            if why is None and jax.default_backend() != "cpu":
                why = f"the platform is {jax.default_backend()}"
            yield Lowering(name, why is None, why or _native.isa())
        for inner in jax.tree.leaves(tuple(params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner, "eqns"):
                yield from _lowerings(getattr(inner, "jaxpr", inner))


def rule(primitive: str, portable: Callable[..., Any], loops: Callable[..., Any]) -> Callable[..., Any]:
    """The lowering rule of a primitive on a CPU, given its portable one and the one with the loops that suit a CPU."""

    def lower(ctx: Any, *operands: Any, names: tuple[str, ...], **params: Any) -> Any:
        if ctx.module_context.lowering_parameters.for_export:
            return portable(ctx, *operands, names=names, **params)
        native = _CALLS.get(primitive)
        devices = partitioning.devices(ctx.module_context.axis_context)
        named = named_operands(ctx.avals_in, names)
        why = obstacle(primitive, named, params)
        if native is None or devices is None or why:
            if why == missing and missing:
                unbuilt.warn(missing)
            return loops(ctx, *operands, names=names, **params)
        call: Callable[..., Any] = functools.partial(native, names=names, **params)
        several = primitive != "gru_linear"
        if devices > 1:
            outputs = params.get("wrt") or ("hs",) * len(ctx.avals_out)
            call = partitioning.partitioned(call, names, outputs, several)
        with partitioning.no_mesh():
            avals = [jax.core.ShapedArray(x.shape, x.dtype) for x in ctx.avals_in]
            return mlir.lower_fun(call, multiple_results=several)(ctx.replace(avals_in=avals), *operands)

    return lower


# --- Calls of the kernels ---------------------------------------------------------------------------------------------


class _Folded:
    """Group axes folded into one, G, and batch axes into one, B, of the operands (see `gru_jax.recurrence`)."""

    def __init__(self, lead: tuple[int, ...], groups: int) -> None:
        self.lead, self.groups = lead, groups
        self.sizes = math.prod(lead[:groups]), math.prod(lead[groups:])

    def timed(self, x: jax.Array) -> jax.Array:
        """(T, *group, *batch, K) to (T, G, B, K)."""
        return jnp.broadcast_to(x, (x.shape[0], *self.lead, x.shape[-1])).reshape(x.shape[0], *self.sizes, x.shape[-1])

    def shared(self, x: jax.Array) -> jax.Array:
        """The same, but (T, 1, B, K) where all groups read the same."""
        if math.prod(x.shape[1 : 1 + self.groups]) > 1:
            return self.timed(x)
        lead = (*[1] * self.groups, *self.lead[self.groups :])
        x = jnp.broadcast_to(x, (x.shape[0], *lead, x.shape[-1]))
        return x.reshape(x.shape[0], 1, self.sizes[1], x.shape[-1])

    def timeless(self, x: jax.Array | None) -> jax.Array:
        """(*group, *batch, H) to (G, B, H)."""
        if x is None:
            return _none(jnp.float32)
        return jnp.broadcast_to(x, (*self.lead, x.shape[-1])).reshape(*self.sizes, x.shape[-1])

    def flags(self, x: jax.Array | None) -> jax.Array:
        """(T, *group, *batch, 1) to (T, G, B)."""
        return _none(bool) if x is None else self.timed(x)[..., 0]

    def weight(self, x: jax.Array | None) -> jax.Array:
        """(*group, …) to (G, …)."""
        if x is None:
            return _none(jnp.float32)
        own = x.shape[self.groups :]
        return jnp.broadcast_to(x, (*self.lead[: self.groups], *own)).reshape(self.sizes[0], *own)

    def all(self, o: Operands) -> tuple[jax.Array, ...]:
        """The operands of the states, in the order of the handlers."""
        weights = (self.weight(w) for w in (o.kernel, o.bias, o.recurrent_kernel, o.recurrent_bias))
        flags = (self.flags(o.mask), self.flags(o.resets))
        return (
            self.shared(o.xs),
            self.timeless(o.h_0),
            *weights,
            self.timeless(o.drop),
            *flags,
            self.timeless(o.reset_state),
        )


def _none(dtype: Any) -> jax.Array:
    """How the handlers are told that an optional operand is not given."""
    return jnp.zeros((0,), dtype)


def _threads() -> np.int64:
    return np.int64(config.native_threads)


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _states(
    *args: Any, names: tuple[str, ...], cell: Any, reverse: bool, method: str, keep: bool, followed: bool
) -> list[jax.Array]:
    o = Operands(**named_operands(args, names))
    folded, steps, features = _Folded(o.lead(), o.groups), o.xs.shape[0], o.h_0.shape[-1]
    hs, none = _array(steps, *folded.sizes, features), _array(0)
    kept = [hs if keep and (name != "q" or cell.reset_after) else none for name in Preactivations._fields]
    call = jax.ffi.ffi_call("gru_jax_states", (hs, *kept))
    outs = call(
        *folded.all(o),
        candidate=cell.candidate.name,
        reset_after=cell.reset_after,
        reverse=reverse,
        threads=_threads(),
    )
    return [x.reshape(steps, *folded.lead, features) for x in outs if x.size]


def _pull(
    *args: Any, names: tuple[str, ...], wrt: tuple[str, ...], cell: Any, reverse: bool, method: str
) -> list[jax.Array]:
    named = named_operands(args, names)
    hs, ct = named.pop("hs"), named.pop("ct")
    kept = [named.pop(KEPT + name, None) for name in Preactivations._fields]
    o = Operands(**named)
    folded = _Folded(hs.shape[1:-1], o.groups)
    (groups, rows), steps, weights = folded.sizes, hs.shape[0], not set(wrt).isdisjoint(WEIGHTS)

    def result(name: str, wanted: bool, *shape: int) -> jax.ShapeDtypeStruct:
        return _array(*shape) if wanted and getattr(o, name) is not None else _array(0)

    width, features = o.kernel.shape[-2], hs.shape[-1]
    results = {
        "xs": result("xs", "xs" in wrt, steps, groups, rows, width),
        "h_0": result("h_0", True, groups, rows, features),
        "reset_state": result("reset_state", "reset_state" in wrt, groups, rows, features),
        "kernel": result("kernel", weights, groups, width, 3 * features),
        "bias": result("bias", "bias" in wrt, groups, 3 * features),
        "recurrent_kernel": result("recurrent_kernel", weights, groups, features, 3 * features),
        "recurrent_bias": result("recurrent_bias", "recurrent_bias" in wrt, groups, features),
    }
    call = jax.ffi.ffi_call("gru_jax_states_vjp", tuple(results.values()))
    outs = call(
        *folded.all(o),
        folded.timed(hs),
        folded.timed(ct),
        *(_none(jnp.float32) if x is None else folded.timed(x) for x in kept),
        candidate=cell.candidate.name,
        reset_after=cell.reset_after,
        reverse=reverse,
        threads=_threads(),
    )
    shapes = {
        "xs": (steps, *folded.lead, width),
        **dict.fromkeys(("h_0", "reset_state"), (*folded.lead, features)),
        **{name: (*folded.lead[: o.groups], *results[name].shape[1:]) for name in WEIGHTS},
    }
    by_name = dict(zip(results, outs, strict=True))
    return [by_name[name].reshape(shapes[name]) for name in wrt]


def _linear(
    *args: Any, names: tuple[str, ...], method: str, reset_after: bool, reverse: bool, transposed: bool
) -> jax.Array:
    named = named_operands(args, names)
    kernel, s = named["recurrent_kernel"], named["source"]
    coefficients = [named[name] for name in Linearisation._fields]
    flags = [named.get(name) for name in ("mask", "resets")]
    given = [*coefficients, *(x for x in flags if x is not None)]
    groups, ndim = kernel.ndim - 2, s.ndim - 2
    others = [x.shape[1:-1] for x in (*given, s)] + [(*kernel.shape[:groups], *[1] * (ndim - groups))]
    folded = _Folded(jnp.broadcast_shapes(*others), groups)
    held = _Folded(_period(folded.lead, [x.shape[1:-1] for x in given], groups), groups)
    call = jax.ffi.ffi_call("gru_jax_linear_recurrence", _array(s.shape[0], *folded.sizes, s.shape[-1]))
    ys = call(
        *(held.timed(c) for c in coefficients),
        folded.weight(kernel),
        folded.timeless(named.get("drop")),
        folded.timed(s),
        *(held.flags(x) for x in flags),
        reset_after=reset_after,
        reverse=reverse,
        transposed=transposed,
        threads=_threads(),
    )
    return ys.reshape(s.shape[0], *folded.lead, s.shape[-1])


def _period(lead: tuple[int, ...], leads: list[tuple[int, ...]], groups: int) -> tuple[int, ...]:
    """The group and batch axes that coefficients need: leading batch axes along which they repeat are left out."""
    own = jnp.broadcast_shapes(*leads)
    repeated = len(list(itertools.takewhile(lambda size: size == 1, own[groups:])))
    return (*lead[:groups], *[1] * repeated, *lead[groups + repeated :])


_CALLS: dict[str, Callable[..., Any]] = {"gru_states": _states, "gru_pull": _pull, "gru_linear": _linear}
