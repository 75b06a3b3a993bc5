"""What `gru_jax.unroll` needs of a cell, the base class of a user's own cell, and the checks of states."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core.primitives import convert_element_type_p

from gru_jax import checks, initializers

State = Any
"""The state of a cell: an array (*batch, features), or another pytree of arrays with the batch axes in front."""


@runtime_checkable
class Cell(Protocol):
    """A cell as `gru_jax.unroll` takes it, for type checkers: a frozen, hashable value.

    `CellBase` implements all of it but `init` and `step`.
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of `unroll` that the cell has. "auto" stands for the first."""
        ...

    @property
    def update_gate(self) -> str:
        """The name of the gate that keeps the state where it is 1; empty if there is none."""
        ...

    @property
    def takes_recurrent_dropout(self) -> bool:
        """Whether `step` takes a recurrent_dropout_mask."""
        ...

    def init(self, key: jax.Array, in_features: int, features: int, /) -> Any:
        """Fresh parameters, any pytree of arrays."""
        ...

    def step(self, params: Any, state: Any, x: Any, /) -> Any:
        """The next state, for an input x (*batch, in_features) with any number of batch axes."""
        ...

    def initial_state(self, params: Any, batch: Sequence[int], dtype: Any, /) -> Any:
        """A fresh state, any pytree of arrays."""
        ...

    def output(self, state: Any, /) -> Any:
        """The output that belongs to a state, (*batch, features)."""
        ...

    def gates(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The values of the gates at one step, by name."""
        ...

    def check(self, params: Any, name: str = "params") -> None:
        """Checks that `params` are parameters of this cell. Errors call them `name`."""
        ...

    def in_features(self, params: Any) -> int | None:
        """The width of the input, None if the parameters do not tell it."""
        ...

    def cast(self, params: Any, x: Any, dtype: Any = None) -> tuple[Any, Any, Any]:
        """Parameters and input in the compute dtype; and the dtype of the state."""
        ...


def check_cell(cell: Any) -> None:
    """Checks that `cell` is a cell, and not a class of cells."""
    if not isinstance(cell, Cell) or isinstance(cell, type):
        raise TypeError(f"cell must be a gru_jax.GRU or another of gru_jax.cells, got {type(cell).__name__}")


def check_method(cell: Cell, method: Any) -> None:
    """Checks that `method` is one of the cell's."""
    checks.choice("method", method, tuple(dict.fromkeys(("auto", *cell.methods))))


class CellBase:
    """Base class of a user's own cell. Only the equations are left to write.

    A subclass is a frozen dataclass with ``init(key, in_features, features, /)``, which returns any pytree of arrays,
    and ``step(params, state, x, /)``, which returns the next state for x (*batch, in_features), with any leading batch
    dimensions. If the state is not one array (*batch, features), it also has ``initial_state(params, batch, dtype,
    /)``: any pytree of floating-point arrays, and of integers, which have no tangent. Then `gru_jax.unroll`, every
    derivative, masks, lengths, resets, the layers and ``experiments train --cell`` take it.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Damped(CellBase):
    ...     rate: float = 0.1
    ...
    ...     def init(self, key, in_features, features, /):
    ...         k_in, k_rec = jax.random.split(key)
    ...         W = initializers.lecun_normal(k_in, (in_features, features))
    ...         return {"W": W, "U": initializers.lecun_normal(k_rec, (features, features))}
    ...
    ...     def step(self, params, h, x, /):
    ...         return h + self.rate * (jnp.tanh(x @ params["W"] + h @ params["U"]) - h)
    >>> import gru_jax
    >>> cell = Damped()
    >>> params = cell.init(jax.random.key(0), 3, 4)
    >>> h_T, hs = gru_jax.unroll(cell, params, jnp.ones((10, 2, 3)), lengths=jnp.array([10, 7]))
    >>> hs.shape
    (10, 2, 4)
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of `gru_jax.unroll` that the cell has. "auto" stands for the first."""
        return ("auto", "scan", "fused")

    @property
    def update_gate(self) -> str:
        """The name of the gate that keeps the state where it is 1; empty if there is none."""
        return ""

    @property
    def takes_recurrent_dropout(self) -> bool:
        """Whether `step` names `recurrent_dropout_mask` among its arguments.

        A step that takes any keyword might ignore the mask, so it does not count.

        >>> from gru_jax import cells
        >>> cells.GRU().takes_recurrent_dropout, cells.LSTM().takes_recurrent_dropout
        (True, False)
        >>> class AnyKeyword(CellBase):
        ...     def step(self, params, state, x, /, **options):
        ...         return state
        >>> AnyKeyword().takes_recurrent_dropout
        False
        """
        return "recurrent_dropout_mask" in inspect.signature(self.step).parameters  # type: ignore[attr-defined]

    def initial_state(self, params: Any, batch: Sequence[int], dtype: Any, /) -> Any:
        """A fresh state, zero.

        Args:
          params: the parameters, as from `init`. Their shapes tell how wide the state is.
          batch: the sizes of the batch axes.
          dtype: of the state.

        Returns:
          Zeros (*batch, features).

        Raises:
          ValueError: if `init` makes parameters of these shapes for no number of features, or for several.
        """
        leaves, structure = jax.tree.flatten(params)
        return jnp.zeros((*batch, _features(self, structure, tuple(jnp.shape(leaf) for leaf in leaves))), dtype)

    def output(self, state: Any, /) -> jax.Array:
        """The output that belongs to a state: the state if it is one array, otherwise its first leaf."""
        return jax.tree.leaves(state)[0]

    def gates(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The values of the gates at one step, by name: none."""
        return {}

    def check(self, params: Any, name: str = "params") -> None:
        """Checks that the leaves of `params` are arrays in dtypes that JAX computes in. Errors call them `name`.

        Raises:
          TypeError: if a leaf is not; names the leaf.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            leaf_name = name + jax.tree_util.keystr(path)
            is_array = isinstance(leaf, jax.Array | np.ndarray)
            if is_array and any(jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.floating, jnp.integer)):
                checks.floating(leaf_name, leaf)
            checks.array(leaf_name, leaf)

    def in_features(self, params: Any) -> int | None:
        """The width of the input, where the parameters tell it: they do not."""
        return None

    def cast(self, params: Any, x: Any, dtype: Any = None) -> tuple[Any, Any, Any]:
        """Parameters and input in the compute dtype; and the dtype of the state.

        Args:
          params: the parameters.
          x: (..., in_features), the input.
          dtype: of the computation; by default the promotion of the dtypes of parameters and input.

        Returns:
          Parameters and input in the compute dtype, integers as they are; and the dtype of the state, which is the
          same, or float32 if that is wider.

        Raises:
          TypeError: if none of the arrays is in floating point.
        """
        params = jax.tree.map(jnp.asarray, params)
        if dtype is not None:
            params, x = initializers.cast_floating((params, x), dtype)
        leaves = (x, *jax.tree.leaves(params))
        if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise TypeError(f"params must be floating point, got {leaves[-1].dtype}")
        dtype = initializers.floating_dtype(leaves)
        return *initializers.cast_floating((params, x), dtype), initializers.at_least_float32(dtype)


def check_and_cast(cell: Cell, params: Any, x: jax.Array, name: str, symbols: str) -> tuple[Any, Any, Any]:
    """Checks parameters and an input (..., in_features) against each other, and casts them; see `CellBase.cast`.

    Errors call the input `name`, and its shape `symbols`.
    """
    checks.floating(name, x)
    cell.check(params)
    in_features = cell.in_features(params)
    if in_features is not None:
        checks.shape(name, x, symbols, (*x.shape[:-1], in_features))
    return cell.cast(params, x)


@functools.lru_cache(maxsize=256)
def _features(cell: Any, structure: Any, shapes: tuple[tuple[int, ...], ...]) -> int:
    """The number of features for which `cell.init` makes parameters of these shapes."""
    sizes = sorted({size for shape in shapes for size in shape})
    divisors = sorted({d for size in sizes for d in range(1, size) if size % d == 0}.difference(sizes))
    for candidates in (sizes, sizes + divisors):
        fitting = [features for features in candidates if _fits(cell, features, structure, shapes)]
        if len(fitting) == 1:
            return fitting[0]
    raise ValueError(
        f"{type(cell).__name__} needs initial_state(params, batch, dtype): how wide its state is does not follow from "
        f"its init and the shapes of params, {', '.join(map(str, shapes))}"
    )


def _fits(cell: Any, features: int, structure: Any, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether `cell.init` makes parameters of these shapes for `features` and some width of the input."""
    one, two = (_shapes(cell, in_features, features) for in_features in (1, 2))
    if one is None or two is None or [len(shape) for shape in one[1]] != [len(shape) for shape in shapes]:
        return False
    axes = zip(*(sum(each, ()) for each in (one[1], two[1], shapes)), strict=True)
    # A size is constant, or affine in the width of the input.
    widths = {1 + (size - first) // (second - first) for first, second, size in axes if second > first} or {1}
    return len(widths) == 1 and _shapes(cell, widths.pop(), features) == (structure, shapes)


def _shapes(cell: Any, in_features: int, features: int) -> Any:
    """Structure and shapes of the parameters that `cell.init` makes, or None if it raises an error."""
    try:
        made = jax.eval_shape(lambda key: cell.init(key, in_features, features), jax.random.key(0))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    leaves, structure = jax.tree.flatten(made)
    return structure, tuple(leaf.shape for leaf in leaves)


def check_dropout_mask(cell: Cell, mask: Any, state: State) -> jax.Array | None:
    """The recurrent dropout mask, checked, with the shape and dtype of the output for such a state; None for None."""
    if mask is None:
        return None
    if not cell.takes_recurrent_dropout:
        raise ValueError(f"recurrent_dropout_mask must be None: the step of {type(cell).__name__} does not take it")
    mask, like = checks.array("recurrent_dropout_mask", mask), cell.output(state)
    checks.shape("recurrent_dropout_mask", mask, "(*batch, features)", like.shape)
    checks.floating("recurrent_dropout_mask", mask)
    return jax.lax.stop_gradient(mask.astype(like.dtype))


def cast_state(name: str, state: State, like: State) -> State:
    """A state, checked, with the structure, shapes and dtypes of `like`. Errors call it `name`."""
    return astype_like(broadcast_state(name, state, like), like)


def astype_like(state: State, like: State) -> State:
    """A state with the dtypes of `like`, leaf by leaf."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), state, like)


def broadcast_state(name: str, state: State, like: State) -> State:
    """A state, checked, with the structure of `like`; each leaf is broadcast to its shape and keeps its own dtype."""
    got: Any = jax.tree.structure(state)
    expected: Any = jax.tree.structure(like)
    if jax.tree_util.treedef_is_leaf(expected):
        return _broadcast_leaf(name, state, like)
    if got != expected:
        fields = getattr(like, "_fields", "")
        wanted = f"{type(like).__name__}{fields}" if fields else str(expected)
        raise TypeError(f"{name} must be a {wanted}, got {type(state).__name__}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, like_leaf: _broadcast_leaf(name + jax.tree_util.keystr(path), leaf, like_leaf), state, like
    )


def _broadcast_leaf(name: str, value: Any, like: jax.Array) -> jax.Array:
    value = checks.array(name, value)
    checks.broadcasts(name, value, "(*batch, features)", like.shape)
    checks.floating(name, value)
    return jnp.broadcast_to(value, like.shape)


def restore_types(state: State, original: State) -> State:
    """A state with the dtypes and weak types of `original`, leaf by leaf; unchanged where that is of integers."""
    return jax.tree.map(_restore_type, state, original)


def _restore_type(leaf: jax.Array, original: Any) -> jax.Array:
    like = jax.typeof(jnp.asarray(original))
    if (leaf.dtype, leaf.weak_type) == (like.dtype, like.weak_type) or not jnp.issubdtype(like.dtype, jnp.floating):
        return leaf
    return convert_element_type_p.bind(leaf, new_dtype=like.dtype, weak_type=like.weak_type, sharding=None)
