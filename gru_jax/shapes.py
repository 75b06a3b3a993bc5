"""Of what shape the results of the primitives are, and what `vmap` makes of them.

The operands have names, and their axes are those of `gru_jax.recurrence`: weights have group axes, the others group and
batch axes, behind time where they have that. What holds for an operand holds for its tangent, "d_" and its name.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from gru_jax.cells import GRU
from gru_jax.linearisation import preactivation_count
from gru_jax.recurrence import TIMELESS, WEIGHTS, lead_axes


def named_operands(values: Iterable[Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What a primitive is applied to, by the names that it has as a parameter."""
    return dict(zip(names, values, strict=True))


def _groups(operands: dict[str, Any]) -> int:
    return operands["recurrent_kernel"].ndim - 2


def _base(name: str) -> str:
    return name.removeprefix("d_")


def states_avals(*avals: Any, cell: GRU, keep: bool, **params: Any) -> list[Any]:
    """hs and, if they are kept, the preactivations; a cell that resets before the product has one less."""
    return [like_states(*avals, **params)] * (1 + keep * preactivation_count(cell))


def like_states(*avals: Any, names: tuple[str, ...], **params: Any) -> Any:
    """hs, shaped like the widest of its operands, with their sharding."""
    operands = named_operands(avals, names)
    sizes, spec = lead_axes(operands)
    timed = operands["source"] if "source" in operands else operands["xs"]
    state = operands.get("h_0", timed)
    sharding = _sharding(operands, timed.sharding.spec[0], *spec, None)
    shape = (timed.shape[0], *sizes, state.shape[-1])
    return timed.update(shape=shape, dtype=state.dtype, weak_type=False, sharding=sharding)


def _sharding(operands: dict[str, Any], *spec: Any) -> NamedSharding:
    """As `spec` says, on the mesh of the operands, which some of them may not know."""
    meshes = (aval.sharding.mesh for aval in operands.values())
    return NamedSharding(next((mesh for mesh in meshes if not mesh.empty), AbstractMesh((), ())), PartitionSpec(*spec))


def pull_avals(*avals: Any, names: tuple[str, ...], wrt: tuple[str, ...], **params: Any) -> list[Any]:
    """The cotangents of the operands in `wrt`, with all group and batch axes."""
    operands = named_operands(avals, names)
    sizes, spec = lead_axes(operands)
    groups, outs = _groups(operands), []
    for name in wrt:
        aval = operands[name]

        def full(own: Any, lead: tuple[Any, ...], name: str = name) -> tuple[Any, ...]:
            if name in WEIGHTS:
                return (*lead[:groups], *own[groups:])
            return (*own[: name not in TIMELESS], *lead, own[-1])

        shape = full(aval.shape, sizes)
        sharding = _sharding(operands, *full(aval.sharding.spec, spec))
        outs.append(aval.update(shape=shape, weak_type=False, sharding=sharding))
    return outs


def batch(primitive: Primitive, args: Any, dims: Any, *, names: tuple[str, ...], **params: Any) -> tuple[Any, Any]:
    """Batched weights open a new group axis in front; any other operand a new batch axis behind the groups.

    Gradients of weights open a group axis too: they are not summed over what is batched.
    """
    operands, axes = named_operands(args, names), named_operands(dims, names)
    wrt = params.get("wrt", ())
    mapped = {_base(name) for name, axis in axes.items() if axis is not None}
    grouped = any(name in WEIGHTS for name in (*mapped, *wrt))
    place = 0 if grouped else _groups(operands)

    def new_axis(name: str) -> int | None:
        if name in WEIGHTS:
            return 0 if grouped else None
        return place + (name not in TIMELESS)

    batched = {}
    for name, value in operands.items():
        axis = new_axis(_base(name))
        if axis is not None:
            value = jnp.expand_dims(value, axis) if axes[name] is None else jnp.moveaxis(value, axes[name], axis)
        batched[name] = value
    out = primitive.bind(*batched.values(), names=names, **params)
    if primitive.multiple_results:
        return out, [new_axis(name) for name in wrt] or [place + 1] * len(out)
    return out, place + 1
