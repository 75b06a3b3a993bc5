"""What `gru_jax.unroll` needs of a cell, and what a cell of one's own inherits; states and their checks."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import convert_element_type_p

from gru_jax import checks, initializers

State = Any
"""The state of a cell: an array (*batch, features), or a NamedTuple of such arrays."""


@runtime_checkable
class Cell(Protocol):
    """A cell, as `gru_jax.unroll` takes it and a type checker sees it: a frozen, hashable value.

    Whoever writes one inherits from `CellBase`, which has all of it but `init` and `step`.
    """

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of `unroll` that there are for the cell; the first is what "auto" stands for."""
        ...

    @property
    def update_gate(self) -> str:
        """The name of the gate that holds the state where it is 1; empty where there is none."""
        ...

    def init(self, key: jax.Array, in_features: int, features: int, /) -> Any:
        """Fresh parameters, any pytree of arrays."""
        ...

    def step(self, params: Any, state: Any, x: Any, /) -> Any:
        """The state that follows `state` on input x (*batch, in_features), with any leading batch dimensions."""
        ...

    def initial_state(self, params: Any, batch: Sequence[int], dtype: Any, /) -> Any:
        """A fresh state, any pytree of arrays."""
        ...

    def output(self, state: Any, /) -> Any:
        """What a state shows to the outside: (*batch, features)."""
        ...

    def gates(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The values of the gates by name, at one step."""
        ...

    def check(self, params: Any, name: str = "params") -> None:
        """Refuses what are not parameters of this cell; `name` is what an error calls them."""
        ...

    def check_and_cast(self, params: Any, x: Any, name: str, symbols: str) -> tuple[Any, Any, Any]:
        """Checks parameters against an input; both in the compute dtype, and the dtype of the state."""
        ...


def check_cell(cell: Any) -> None:
    """Refuses what is no cell; a class of cells is none."""
    if not isinstance(cell, Cell) or isinstance(cell, type):
        raise TypeError(f"cell must be a gru_jax.GRU or another of gru_jax.cells, got {type(cell).__name__}")


class CellBase:
    """Base of a cell of one's own: its equations are all that is to be written.

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
        """The methods of `gru_jax.unroll`, the first of which is what "auto" stands for."""
        return ("auto", "scan", "fused")

    @property
    def update_gate(self) -> str:
        """The name of the gate that holds the state where it is 1; empty where there is none."""
        return ""

    def initial_state(self, params: Any, batch: Sequence[int], dtype: Any, /) -> Any:
        """A fresh state, zero.

        Args:
          params: the parameters, as from `init`, which says how wide the state is.
          batch: the sizes of the batch axes.
          dtype: of the state.

        Returns:
          Zeros (*batch, features).

        Raises:
          ValueError: if `init` makes such parameters for no number of features, or for several.
        """
        leaves, structure = jax.tree.flatten(params)
        return jnp.zeros((*batch, _features(self, structure, tuple(jnp.shape(leaf) for leaf in leaves))), dtype)

    def output(self, state: Any, /) -> jax.Array:
        """What a state shows to the outside: the state if it is one array, else its first leaf."""
        return jax.tree.leaves(state)[0]

    def gates(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The values of the gates by name, at one step; none."""
        return {}

    def check(self, params: Any, name: str = "params") -> None:
        """Refuses parameters that are no arrays; `name` is what an error calls them.

        Raises:
          TypeError: if one of them is no array; names that one.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            checks.array(name + jax.tree_util.keystr(path), leaf)

    def check_and_cast(self, params: Any, x: Any, name: str, symbols: str) -> tuple[Any, Any, Any]:
        """Checks parameters and casts those in floating point, and the input, to the compute dtype.

        Args:
          params: the parameters.
          x: (..., in_features), the input, in floating point or of integers; `name` and `symbols` are what an error
            calls it and its shape.

        Returns:
          Parameters and input in the compute dtype, the promotion of their dtypes; and the dtype of the state, float32
          where the compute dtype is narrower. Integers stay as they are.
        """
        checks.floating(name, x)
        self.check(params)
        params = jax.tree.map(jnp.asarray, params)
        if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (x, *jax.tree.leaves(params))):
            raise TypeError(f"{name} or params must be floating point, got {x.dtype}")
        dtype = initializers.floating_dtype((x, params))
        return *initializers.cast_floating((params, x), dtype), initializers.at_least_float32(dtype)


@functools.lru_cache(maxsize=256)
def _features(cell: Any, structure: Any, shapes: tuple[tuple[int, ...], ...]) -> int:
    """For how many features `cell.init` makes parameters of these shapes."""
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
    """Whether `cell.init` makes parameters of these shapes for so many features and inputs of some width."""
    one, two = (_shapes(cell, in_features, features) for in_features in (1, 2))
    if one is None or two is None or [len(shape) for shape in one[1]] != [len(shape) for shape in shapes]:
        return False
    axes = zip(*(sum(each, ()) for each in (one[1], two[1], shapes)), strict=True)
    # Sizes grow with the width of the input in proportion, if at all.
    widths = {1 + (size - first) // (second - first) for first, second, size in axes if second > first} or {1}
    return len(widths) == 1 and _shapes(cell, widths.pop(), features) == (structure, shapes)


def _shapes(cell: Any, in_features: int, features: int) -> Any:
    """Structure and shapes of what `cell.init` makes, or None if it cannot."""
    try:
        made = jax.eval_shape(lambda key: cell.init(key, in_features, features), jax.random.key(0))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    leaves, structure = jax.tree.flatten(made)
    return structure, tuple(leaf.shape for leaf in leaves)


def cast_state(name: str, state: State, like: State) -> State:
    """A state, or its parts, of the type of `like`, broadcast to its shape and cast to its dtype."""
    state = broadcast_state(name, state, like)
    return jax.tree.map(lambda part, like_part: part.astype(like_part.dtype), state, like)


def broadcast_state(name: str, state: State, like: State) -> State:
    """A state of the structure of `like`, each leaf broadcast to its shape by NumPy's rules, in a dtype of its own."""
    given: Any = jax.tree.structure(state)
    expected: Any = jax.tree.structure(like)
    if jax.tree_util.treedef_is_leaf(expected):
        return _part(name, state, like)
    if given != expected:
        fields = getattr(like, "_fields", "")
        wanted = f"{type(like).__name__}{fields}" if fields else str(expected)
        raise TypeError(f"{name} must be a {wanted}, got {type(state).__name__}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, like_leaf: _part(name + jax.tree_util.keystr(path), leaf, like_leaf), state, like
    )


def _part(name: str, value: Any, like: jax.Array) -> jax.Array:
    value = checks.array(name, value)
    checks.broadcasts(name, value, "(*batch, features)", like.shape)
    checks.floating(name, value)
    return jnp.broadcast_to(value, like.shape)


def cast_like(state: State, given: State) -> State:
    """A state, part by part in the dtype and weak type of `given`; where that is of integers, it stays as it is."""
    return jax.tree.map(_typed_as, state, given)


def _typed_as(part: jax.Array, given: Any) -> jax.Array:
    given = jax.typeof(jnp.asarray(given))
    if (part.dtype, part.weak_type) == (given.dtype, given.weak_type) or not jnp.issubdtype(given.dtype, jnp.floating):
        return part
    return convert_element_type_p.bind(part, new_dtype=given.dtype, weak_type=given.weak_type, sharding=None)
