"""The recurrences of a GRU by the native kernels: C++ in `native/`, on a CPU, in float32.

The gates are σ, the candidate is tanh or σ.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import activations, gates, policy, unbuilt
from gru_jax.axes import batch_shape, field_axes
from gru_jax.cells import GRU
from gru_jax.cells.gru import Preactivations
from gru_jax.lowerings.xla import saves_preactivations
from gru_jax.operands import LinearOperands, Operands, VjpOperands
from gru_jax.registry import Lowering, Question
from gru_jax.settings import config

try:
    from gru_jax import _native

    for _target, _handler in _native.handlers().items():
        jax.ffi.register_ffi_target(_target, _handler, platform="cpu")
    native_import_error = None
except ImportError as error:
    native_import_error = unbuilt.why(error)


CANDIDATES: dict[gates.Activation, str] = {activations.TANH: "tanh", activations.SIGMOID: "sigmoid"}
"""The activations of a candidate that the kernels have, and what they call them; the gates' is sigmoid."""


def _obstacle(question: Question) -> str | None:
    operands, params, method = question.operands, question.params, question.params["method"]
    if method == "fused":
        return 'method="fused" asks for XLA'
    if not config.native:
        return "gru_jax.config.native is False"
    cell = params.get("cell")
    if cell is not None and (cell.gate != activations.SIGMOID or cell.candidate not in CANDIDATES):
        return "the cell has other activations than a sigmoid gate and a tanh or sigmoid candidate"
    arrays = jax.tree.leaves(operands)
    dtypes = {str(x.dtype) for x in arrays if x.dtype != bool}
    if dtypes != {"float32"}:
        return f"the kernels are for float32, got {', '.join(sorted(dtypes))}"
    if not all(isinstance(size, int) and size > 0 for x in arrays for size in x.shape):
        return "an axis is empty, or its size is not known"
    if isinstance(operands, VjpOperands) and operands.hs.shape != operands.cotangent.shape:
        return "many cotangents share one linearisation"
    if method == "auto" and not _pays(question):
        return "XLA is faster for so few steps of so wide a state"
    if question.devices is None:
        return "the devices are not known"
    return native_import_error


def _pays(question: Question) -> bool:
    """Whether the weights are used so often, for their number, that a kernel is faster than XLA."""
    if question.recurrence == "gru_linear_recurrence":
        return True
    o: Operands = question.operands if question.recurrence == "gru_states" else question.operands.primals
    sizes = batch_shape(o)[0]
    if math.prod(sizes[: o.weight_axes]) > 1:
        return True  # XLA has no fast product of several matrices
    sequences = math.prod(sizes[o.weight_axes :])
    return policy.kernel_pays(question.recurrence, o.weight_count(), o.xs.shape[0], sequences)


def _warn(why: str) -> None:
    if why == native_import_error:
        unbuilt.warn(why)


class FlatAxes:
    """The weight batch folded into one axis, G, and the batch into one, B, as the kernels take them."""

    def __init__(self, batch_shape: tuple[int, ...], weight_axes: int) -> None:
        self.batch_shape, self.weight_axes = batch_shape, weight_axes
        self.sizes = math.prod(batch_shape[:weight_axes]), math.prod(batch_shape[weight_axes:])

    def series(self, x: jax.Array | None) -> jax.Array:
        """(T, *weight_batch, *batch, K) to (T, G, B, K)."""
        if x is None:
            return _absent(jnp.float32)
        x = jnp.broadcast_to(x, (x.shape[0], *self.batch_shape, x.shape[-1]))
        return x.reshape(x.shape[0], *self.sizes, x.shape[-1])

    def shared_series(self, x: jax.Array) -> jax.Array:
        """The same, but (T, 1, B, K) where all of the weight batch read the same."""
        if math.prod(x.shape[1 : 1 + self.weight_axes]) > 1:
            return self.series(x)
        shape = (*[1] * self.weight_axes, *self.batch_shape[self.weight_axes :])
        x = jnp.broadcast_to(x, (x.shape[0], *shape, x.shape[-1]))
        return x.reshape(x.shape[0], 1, self.sizes[1], x.shape[-1])

    def state(self, x: jax.Array | None) -> jax.Array:
        """(*weight_batch, *batch, H) to (G, B, H)."""
        if x is None:
            return _absent(jnp.float32)
        return jnp.broadcast_to(x, (*self.batch_shape, x.shape[-1])).reshape(*self.sizes, x.shape[-1])

    def flags(self, x: jax.Array | None) -> jax.Array:
        """(T, *weight_batch, *batch, 1) to (T, G, B)."""
        return _absent(bool) if x is None else self.series(x)[..., 0]

    def weight(self, x: jax.Array | None) -> jax.Array:
        """(*weight_batch, …) to (G, …)."""
        if x is None:
            return _absent(jnp.float32)
        own = x.shape[self.weight_axes :]
        return jnp.broadcast_to(x, (*self.batch_shape[: self.weight_axes], *own)).reshape(self.sizes[0], *own)

    def operands(self, o: Operands) -> tuple[jax.Array, ...]:
        """The operands of the states, in the order of the handlers."""
        weights = (self.weight(w) for w in (o.kernel, o.bias, o.recurrent_kernel, o.recurrent_bias))
        states = (self.state(o.dropout_mask), self.flags(o.mask), self.flags(o.resets), self.state(o.reset_state))
        return (self.shared_series(o.xs), self.state(o.h_0), *weights, *states)


def _absent(dtype: Any) -> jax.Array:
    """How the handlers are told that an optional operand is not given."""
    return jnp.zeros((0,), dtype)


def _threads() -> np.int64:
    return np.int64(config.native_threads)


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _states(
    o: Operands, *, cell: GRU, reverse: bool, method: str, saves_residuals: bool, differentiated: bool
) -> list[jax.Array]:
    batch = batch_shape(o)[0]
    flat, steps, features = FlatAxes(batch, o.weight_axes), o.xs.shape[0], o.h_0.shape[-1]
    hs, absent = _array(steps, *flat.sizes, features), _array(0)
    saved = [hs if saves_residuals and (name != "q" or cell.reset_after) else absent for name in Preactivations._fields]
    call = jax.ffi.ffi_call("gru_jax_states", (hs, *saved))
    outs = call(
        *flat.operands(o),
        candidate=CANDIDATES[cell.candidate],
        reset_after=cell.reset_after,
        reverse=reverse,
        threads=_threads(),
    )
    return [x.reshape(steps, *batch, features) for x in outs if x.size]


def _states_vjp(
    operands: VjpOperands, *, wrt: tuple[str, ...], cell: GRU, reverse: bool, method: str
) -> list[jax.Array]:
    o, hs, residuals, ct = operands
    batch, weight_axes = hs.shape[1:-1], o.weight_axes
    flat, width, features = FlatAxes(batch, weight_axes), o.kernel.shape[-2], hs.shape[-1]
    (groups, rows), steps = flat.sizes, hs.shape[0]
    weights = not all(field_axes(Operands, name).batch for name in wrt)

    def result(name: str, wanted: bool, *shape: int) -> jax.ShapeDtypeStruct:
        return _array(*shape) if wanted and getattr(o, name) is not None else _array(0)

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
        *flat.operands(o),
        flat.series(hs),
        flat.series(ct),
        *(flat.series(x) for x in residuals or [None] * 4),
        candidate=CANDIDATES[cell.candidate],
        reset_after=cell.reset_after,
        reverse=reverse,
        threads=_threads(),
    )
    shapes = {"xs": (steps, *batch, width), **dict.fromkeys(("h_0", "reset_state"), (*batch, features))}
    by_name = dict(zip(results, outs, strict=True))
    return [by_name[name].reshape(shapes.get(name, (*batch[:weight_axes], *results[name].shape[1:]))) for name in wrt]


def _linear_recurrence(
    o: LinearOperands, *, method: str, reset_after: bool, reverse: bool, transposed: bool
) -> jax.Array:
    (batch, _), weight_axes = batch_shape(o), o.weight_axes
    flat, steps, features = FlatAxes(batch, weight_axes), o.source.shape[0], o.source.shape[-1]
    along_j = o._replace(source=None, dropout_mask=None)
    repeated = FlatAxes(_broadcast_period(batch, batch_shape(along_j)[0], weight_axes), weight_axes)
    call = jax.ffi.ffi_call("gru_jax_linear_recurrence", _array(steps, *flat.sizes, features))
    ys = call(
        *(repeated.series(coefficient) for coefficient in o.jac),
        flat.weight(o.recurrent_kernel),
        flat.state(o.dropout_mask),
        flat.series(o.source),
        repeated.flags(o.mask),
        repeated.flags(o.resets),
        reset_after=reset_after,
        reverse=reverse,
        transposed=transposed,
        threads=_threads(),
    )
    return ys.reshape(steps, *batch, features)


def _broadcast_period(batch: tuple[int, ...], own: tuple[int, ...], weight_axes: int) -> tuple[int, ...]:
    """The batch axes that coefficients need: leading ones along which they repeat have size 1."""
    repeated = len(list(itertools.takewhile(lambda size: size == 1, own[weight_axes:])))
    return (*batch[:weight_axes], *[1] * repeated, *batch[weight_axes + repeated :])


LOWERING = Lowering(
    "native",
    {"gru_states": _states, "gru_states_vjp": _states_vjp, "gru_linear_recurrence": _linear_recurrence},
    platforms=("cpu",),
    obstacle=_obstacle,
    saves=lambda question: saves_preactivations(question, native=True),
    detail=lambda: _native.isa(),
    passed_over=_warn,
    opaque=native_import_error is None,
)
