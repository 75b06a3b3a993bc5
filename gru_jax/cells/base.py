"""What `gru_jax.unroll` needs of a cell, and what cells have in common: packed parameters, their checks and draws."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import convert_element_type_p

from gru_jax import checks, initializers, meshes
from gru_jax.initializers import Initializer
from gru_jax.serialization import serializable

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

    def prepare(self, params: Any, x: Any, name: str, symbols: str) -> tuple[Any, Any, Any]:
        """Checks parameters against an input; both in the compute dtype, and the dtype of the state."""
        ...


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
        return ("fused", "scan")

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

    def prepare(self, params: Any, x: Any, name: str, symbols: str) -> tuple[Any, Any, Any]:
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
        floating = [leaf for leaf in (x, *jax.tree.leaves(params)) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
        if not floating:
            raise TypeError(f"{name} or params must be floating point, got {x.dtype}")
        dtype = jnp.result_type(*floating)

        def cast(leaf: Any) -> jax.Array:
            leaf = jnp.asarray(leaf)
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        return jax.tree.map(cast, params), cast(x), initializers.single_or_wider(dtype)


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


@serializable
class Params(NamedTuple):
    """Parameters of a cell whose gates lie side by side, G of them in the order of `cell.order`; a GRU's: r, z, n.

    A pytree: what `cell.init` makes, `unroll` takes and an optimizer updates.

    Attributes:
      kernel: input weights W, (D, G·H).
      recurrent_kernel: recurrent weights U, (H, G·H).
      bias: input bias b, (G·H,), or None.
      recurrent_bias: the candidate's recurrent bias c_n, (H,), of cells that reset after the product; None in others
        and without bias.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    recurrent_bias: jax.Array | None = None

    @property
    def in_features(self) -> int:
        """D, the width of the input."""
        return self.kernel.shape[0]

    @property
    def features(self) -> int:
        """H, the width of the state."""
        return self.recurrent_kernel.shape[0]


class Inits(NamedTuple):
    """The initializers of a cell; update_bias is None where it does not differ from bias."""

    kernel: Initializer
    recurrent_kernel: Initializer
    bias: Initializer
    update_bias: Initializer | None


P = TypeVar("P")


class Packed(CellBase, Generic[P]):
    """Base of this package's cells: parameters are packed by gate, and each gate is drawn on its own.

    Attributes:
      order: a letter for each gate, in the order in which they are packed.
      update_gate: the gate that holds the state, whose bias `update_bias_init` draws; empty where there is none.
      params_type: what `init` returns.
    """

    order: ClassVar[str]
    update_gate: ClassVar[str] = ""  # type: ignore[assignment]
    params_type: ClassVar[Any] = Params

    @property
    def methods(self) -> tuple[str, ...]:
        return ("scan", "fused")

    @property
    def fields(self) -> tuple[str, ...]:
        """The parameters that the cell has, biases included."""
        return ("kernel", "recurrent_kernel", "bias")

    def init(
        self,
        key: jax.Array,
        in_features: int,
        features: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer = initializers.lecun_normal,
        recurrent_kernel_init: Initializer = initializers.orthogonal,
        bias_init: Initializer = initializers.zeros,
        update_bias_init: Initializer | None = None,
        dtype: Any = jnp.float32,
    ) -> P:
        """Fresh parameters, each gate drawn on its own.

        Initializers run op by op, as in Flax, so that one made anew for each cell compiles nothing anew.

        Args:
          key: a PRNG key.
          in_features: D, at least 1.
          features: H, at least 1.
          use_bias: whether there are biases at all.
          kernel_init: initializer of W, applied to each gate's (D, H).
          recurrent_kernel_init: initializer of U, applied to each gate's (H, H).
          bias_init: initializer of the biases, applied to each gate's (H,).
          update_bias_init: initializer of the bias of the gate that keeps (a GRU's b_z) where it is to differ, e.g.
            `gru_jax.initializers.chrono(100)`.
          dtype: of the parameters.

        Returns:
          The parameters, a NamedTuple: `Params` unless the cell says otherwise.

        Raises:
          TypeError, ValueError: if a size is not a positive integer, an initializer cannot be called, or
            update_bias_init is given where there is no bias that it could draw.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.integer("features", features, at_least=1)
        inits = Inits(kernel_init, recurrent_kernel_init, bias_init, update_bias_init)
        for name, init in inits._asdict().items():
            if init is not None:
                checks.function(f"{name}_init", init)
        if update_bias_init is not None:
            self._check_update_bias(use_bias)
        return self.draw(key, int(in_features), int(features), use_bias, inits, jnp.dtype(dtype))

    def _check_update_bias(self, use_bias: bool) -> None:
        if not self.update_gate:
            raise ValueError(f"update_bias_init must be None: {type(self).__name__} has no gate that keeps")
        if not use_bias:
            raise ValueError("update_bias_init needs use_bias=True, got use_bias=False")

    def draw(self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any) -> Any:
        """The parameters of `init`, after its checks."""
        count = len(self.order)
        keys = jax.random.split(key, count + 3)
        kernel = initializers.per_gate(inits.kernel, keys[0], in_features, features, dtype, count)
        recurrent_kernel = initializers.per_gate(inits.recurrent_kernel, keys[1], features, features, dtype, count)
        if not use_bias:
            return Params(kernel, recurrent_kernel)
        bias = self.draw_bias(keys[2:-1], features, inits, dtype)
        if "recurrent_bias" not in self.fields:
            return Params(kernel, recurrent_kernel, bias)
        return Params(kernel, recurrent_kernel, bias, inits.bias(keys[-1], (features,), dtype))

    def draw_bias(self, keys: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        """The packed bias, from a key for each gate."""
        drawn = []
        for gate, key in zip(self.order, keys, strict=True):
            init = inits.bias if gate != self.update_gate or inits.update_bias is None else inits.update_bias
            drawn.append(init(key, (features,), dtype))
        return jnp.concatenate(drawn)

    def features(self, params: Any) -> int:
        """H, the width of the state."""
        return params.kernel.shape[-1] // len(self.order)

    def initial_state(self, params: Any, batch: Sequence[int] = (), dtype: Any = None) -> Any:
        """A fresh state, zero.

        Args:
          params: the parameters, as from `init`.
          batch: the sizes of the batch axes.
          dtype: by default that of the parameters, or float32 where theirs is narrower.

        Returns:
          Zeros (*batch, features), or a NamedTuple of them where the cell says so.
        """
        self.check(params)
        if dtype is None:
            dtype = initializers.single_or_wider(jnp.result_type(*jax.tree.leaves(params)))
        return jnp.zeros((*batch, self.features(params)), dtype)

    def output(self, state: Any) -> jax.Array:
        """What a state shows to the outside: (*batch, features)."""
        return state

    def prepare(self, params: Any, x: jax.Array, name: str, symbols: str) -> tuple[Any, jax.Array, Any]:
        """Checks parameters against an input and casts both to the compute dtype.

        Args:
          params: the parameters.
          x: (..., in_features), the input; `name` and `symbols` are what an error calls it and its shape.

        Returns:
          Parameters and input in the compute dtype, the promotion of their dtypes; and the dtype of the state, float32
          where the compute dtype is narrower.
        """
        checks.floating(name, x)
        self.check(params)
        checks.shape(name, x, symbols, (*x.shape[:-1], params.kernel.shape[0]))
        dtype = jnp.result_type(x, *jax.tree.leaves(params))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"params must be floating point, got {dtype}")
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return cast, x.astype(dtype), initializers.single_or_wider(dtype)

    def check(self, params: Any, name: str = "params") -> None:
        """Refuses what are not parameters of this cell; `name` is what an error calls them.

        Raises:
          TypeError, ValueError: if they are of another type, or one of them is no array that fits; names that one.
        """
        if not isinstance(params, self.params_type):
            expected, got = f"gru_jax.cells.{self.params_type.__name__}", type(params).__name__
            raise TypeError(f"{name} must be {expected}, as cell.init returns them, got {got}")
        self._check_shapes(params, name)

    def _check_shapes(self, params: Any, name: str) -> None:
        count, given = len(self.order), params._asdict()
        width = f"{count}·features" if count > 1 else "features"
        symbols = {
            "recurrent_kernel": f"(features, {width})",
            "kernel": f"(in_features, {width})",
            "bias": f"({width},)",
        }
        fields = sorted(given, key=[*symbols, *given].index)
        for field in fields:
            if field in ("kernel", "recurrent_kernel"):
                checks.weight(f"{name}.{field}", given[field], symbols[field], 2)
        features = params.recurrent_kernel.shape[0] if "recurrent_kernel" in given else self.features(params)
        packed = count * features
        shapes = {"recurrent_kernel": (features, packed), "kernel": (params.kernel.shape[0], packed), "bias": (packed,)}
        for field in fields:
            value, symbol, shape = given[field], symbols.get(field, "(features,)"), shapes.get(field, (features,))
            if value is None:
                continue
            if field not in self.fields:
                raise ValueError(f"{name}.{field} must be None: this {type(self).__name__} has none")
            checks.weight(f"{name}.{field}", value, symbol, len(shape))
            checks.shape(f"{name}.{field}", value, symbol, shape)

    def ready(
        self,
        params: Any,
        state_tm1: State,
        x_t: jax.Array,
        resets: jax.Array | None,
        reset_state: State | None,
        name: str = "state_tm1",
    ) -> tuple[Any, State, jax.Array]:
        """The arguments of `step`, checked; parameters and input in the compute dtype, the state in its own.

        Where `resets` is True, the state is reset_state, zero if None. `name` is what an error calls the state.
        """
        x_t = checks.array("x_t", x_t)
        params, x_t, dtype = self.prepare(params, x_t, "x_t", "(*batch, in_features)")
        batch = x_t.shape[:-1]
        zero = self.initial_state(params, batch, dtype)
        state_tm1, start = checked_state(name, state_tm1, zero), zero
        if resets is not None:
            resets = checks.flags("resets", resets)
            checks.shape("resets", resets, "(*batch,)", batch)
            resets = resets[..., None]
            start = zero if reset_state is None else checked_state("reset_state", reset_state, zero)
        x_t, params, resets, (state_tm1, start) = meshes.aligned(x_t, params, resets, (state_tm1, start), lead=0)
        if resets is not None:
            state_tm1 = jax.tree.map(functools.partial(jnp.where, resets), start, state_tm1)
        return params, state_tm1, x_t


def checked_state(name: str, state: State, like: State) -> State:
    """A state, or its parts, of the type of `like`, broadcast to its shape and cast to its dtype."""
    state = broadcast_state(name, state, like)
    return jax.tree.map(lambda part, like_part: part.astype(like_part.dtype), state, like)


def broadcast_state(name: str, state: State, like: State) -> State:
    """A state of the structure of `like`, each leaf broadcast to its shape by NumPy's rules, in a dtype of its own."""
    given, expected = (jax.tree.structure(tree) for tree in (state, like))
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


def as_given(state: State, given: State) -> State:
    """A state, part by part in the dtype and weak type of `given`; where that is of integers, it stays as it is."""
    return jax.tree.map(_typed_as, state, given)


def _typed_as(part: jax.Array, given: Any) -> jax.Array:
    given = jax.typeof(jnp.asarray(given))
    if (part.dtype, part.weak_type) == (given.dtype, given.weak_type) or not jnp.issubdtype(given.dtype, jnp.floating):
        return part
    return convert_element_type_p.bind(part, new_dtype=given.dtype, weak_type=given.weak_type, sharding=None)
