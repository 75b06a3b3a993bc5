"""What the cells of this package have in common: parameters packed by gate, their checks and draws, a checked step."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers, meshes
from gru_jax.cells.base import CellBase, State, cast_state
from gru_jax.gates import interpolate
from gru_jax.initializers import Initializer
from gru_jax.serialization import serializable


@serializable
class Params(NamedTuple):
    """Parameters of a cell whose gates lie side by side, G of them in the order of `cell.order`; a GRU's: r, z, n.

    A pytree: what `cell.init` makes, `unroll` takes and an optimizer updates.

    Attributes:
      kernel: input weights W, (D, G·H).
      recurrent_kernel: recurrent weights U, (H, G·H), or fewer gates where `cell.recurrent_order` says which.
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


class PackedCell(CellBase, Generic[P]):
    """Base of this package's cells: parameters are packed by gate, and each gate is drawn on its own.

    A cell is its `gate_values`, and its `next_state` where that is no interpolation of z and n. What else a cell has in
    particular is its `layout`, if there are other parameters than a kernel, a recurrent kernel and a bias.

    Attributes:
      order: a letter for each gate, in the order in which they are packed.
      recurrent_order: of the gates that see the state, where not all of them do.
      update_gate: the gate that holds the state, whose bias `update_bias_init` draws; empty where there is none.
      params_type: what `init` returns.
    """

    order: ClassVar[str]
    recurrent_order: ClassVar[str] = ""
    update_gate: ClassVar[str] = ""  # type: ignore[assignment]
    params_type: ClassVar[Any] = Params

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The shapes of the parameters that the cell has, biases included, each in symbols and in numbers."""
        gates, recurrent = len(self.order), len(self.recurrent_order or self.order)
        width, recurrent_width = (f"{n}·features" if n > 1 else "features" for n in (gates, recurrent))
        return {
            "recurrent_kernel": (f"(features, {recurrent_width})", (features, recurrent * features)),
            "kernel": (f"(in_features, {width})", (in_features, gates * features)),
            "bias": (f"({width},)", (gates * features,)),
        }

    def gate_values(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The gates by name: the equations. Arguments are those of `step`, checked and in the compute dtype."""
        raise NotImplementedError

    def next_state(self, gates: dict[str, jax.Array], state: Any, /) -> Any:
        """The state that follows, from the gates and the state before: z ⊙ h + (1 − z) ⊙ n."""
        return interpolate(gates["z"], state, gates["n"])

    def unchecked_step(self, params: Any, state: Any, x: Any, /, **options: Any) -> Any:
        """One step without its checks."""
        return self.next_state(self.gate_values(params, state, x, **options), state)

    def step(
        self,
        params: P,
        state_tm1: Any,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Any = None,
    ) -> Any:
        """One step: the state that follows state_tm1 on input x_t.

        Args:
          params: as from `init`.
          state_tm1: (*batch, features), or what broadcasts to it, the state before; of an LSTM an `LSTMState` of such.
          x_t: (*batch, in_features).
          resets: (*batch,), bool, or a number that is not 0 for True; where True an episode begins, and reset_state
            takes the place of state_tm1.
          reset_state: like state_tm1; zero if None.

        Returns:
          The state, in float32 where the computation is in bfloat16 or float16.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit.
        """
        return self.unchecked_step(*self.check_step(params, state_tm1, x_t, resets, reset_state))

    def gates(self, params: P, state: Any, x: jax.Array, /) -> dict[str, jax.Array]:
        """The values of the gates by name, at one step, (*batch, features) each; the candidate is one of them.

        Arguments and errors are those of `step`.

        >>> from gru_jax.cells import MGU
        >>> params = MGU().init(jax.random.key(0), in_features=3, features=4)
        >>> {name: value.shape for name, value in MGU().gates(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).items()}
        {'z': (2, 4), 'n': (2, 4)}
        """
        values = self.gate_values(*self.check_step(params, state, x))
        return dict(zip(values, jnp.broadcast_arrays(*values.values()), strict=True))

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
        drawn = {"kernel": kernel, "recurrent_kernel": self.draw_recurrent_kernel(keys[1], features, inits, dtype)}
        if use_bias:
            drawn["bias"] = self.draw_bias(keys[2:-1], features, inits, dtype)
            if "recurrent_bias" in self.layout(in_features, features):
                drawn["recurrent_bias"] = inits.bias(keys[-1], (features,), dtype)
        return self.params_type(**drawn)

    def draw_recurrent_kernel(self, key: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        """The packed recurrent kernel."""
        count = len(self.recurrent_order or self.order)
        return initializers.per_gate(inits.recurrent_kernel, key, features, features, dtype, count)

    def draw_bias(self, keys: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        """The packed bias, from a key for each gate."""
        drawn = []
        for gate, key in zip(self.order, keys, strict=True):
            init = inits.bias if gate != self.update_gate or inits.update_bias is None else inits.update_bias
            drawn.append(init(key, (features,), dtype))
        return jnp.concatenate(drawn)

    def features(self, params: Any) -> int:
        """H, the width of the state."""
        return params.recurrent_kernel.shape[0]

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
            dtype = initializers.at_least_float32(jnp.result_type(*jax.tree.leaves(params)))
        return jnp.zeros((*batch, self.features(params)), dtype)

    def check_and_cast(self, params: Any, x: jax.Array, name: str, symbols: str) -> tuple[Any, jax.Array, Any]:
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
        return cast, x.astype(dtype), initializers.at_least_float32(dtype)

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
        given, symbols = params._asdict(), self.layout(1, 1)
        for field, value in given.items():
            if field not in symbols and value is not None:
                raise ValueError(f"{name}.{field} must be None: this {type(self).__name__} has none")
        fields = [field for field in symbols if given[field] is not None or field not in ("bias", "recurrent_bias")]
        for field in fields:
            symbol, shape = symbols[field]
            checks.weight(f"{name}.{field}", given[field], symbol, len(shape))
        layout = self.layout(params.kernel.shape[0], self.features(params))
        for field in fields:
            checks.shape(f"{name}.{field}", given[field], *layout[field])

    def check_step(
        self,
        params: Any,
        state_tm1: State,
        x_t: jax.Array,
        resets: jax.Array | None = None,
        reset_state: State | None = None,
        name: str = "state_tm1",
    ) -> tuple[Any, State, jax.Array]:
        """The arguments of `step`, checked; parameters and input in the compute dtype, the state in its own.

        Where `resets` is True, the state is reset_state, zero if None. `name` is what an error calls the state.
        """
        x_t = checks.array("x_t", x_t)
        params, x_t, dtype = self.check_and_cast(params, x_t, "x_t", "(*batch, in_features)")
        batch = x_t.shape[:-1]
        zero = self.initial_state(params, batch, dtype)
        state_tm1, start = cast_state(name, state_tm1, zero), zero
        if resets is not None:
            resets = checks.flags("resets", resets)
            checks.shape("resets", resets, "(*batch,)", batch)
            resets = resets[..., None]
            start = zero if reset_state is None else cast_state("reset_state", reset_state, zero)
        x_t, params, resets, (state_tm1, start) = meshes.align_shardings(
            x_t, params, resets, (state_tm1, start), time_axes=0
        )
        if resets is not None:
            state_tm1 = jax.tree.map(functools.partial(jnp.where, resets), start, state_tm1)
        return params, state_tm1, x_t
