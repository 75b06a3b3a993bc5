"""The base of this package's cells: parameters packed by gate, how they are drawn and checked, and a checked step."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from gru_jax import checks, initializers, meshes
from gru_jax.cells.base import CellBase, State, cast_state, check_and_cast, check_dropout_mask
from gru_jax.gates import interpolate
from gru_jax.initializers import Initializer
from gru_jax.serialization import serializable


@serializable
class Params(NamedTuple):
    """Parameters of a cell with G gates, which lie side by side in the order of `cell.order`; of a GRU r, z, n.

    A pytree, which `cell.init` returns, `unroll` takes and an optimizer updates.

    Attributes:
      kernel: input weights W, (D, G·H).
      recurrent_kernel: recurrent weights U, (H, G·H); of fewer gates if the cell has a `recurrent_order`.
      bias: input bias b, (G·H,), or None.
      recurrent_bias: recurrent bias c_n of the candidate, (H,), for cells that reset after the product; None for other
        cells and without bias.
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
    """The initializers of a cell. update_bias is None if it is the same as bias."""

    kernel: Initializer
    recurrent_kernel: Initializer
    bias: Initializer
    update_bias: Initializer | None


P = TypeVar("P")


class PackedCell(CellBase, Generic[P]):
    """Base of this package's cells: parameters are packed by gate, and each gate is drawn separately.

    A cell defines `gate_values`; `next_state`, if that does not interpolate by z between the state and n; and `layout`,
    if it has other parameters than a kernel, a recurrent kernel and a bias.

    Attributes:
      order: a letter for each gate, in the order in which they are packed.
      recurrent_order: the letters of the gates that have recurrent weights, if not all of them do.
      update_gate: the gate that keeps the state, whose bias `update_bias_init` draws; empty if there is none.
      params_type: the type that `init` returns.
    """

    order: ClassVar[str]
    recurrent_order: ClassVar[str] = ""
    update_gate: ClassVar[str] = ""  # type: ignore[assignment]
    params_type: ClassVar[Any] = Params

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The shape of each parameter of the cell, biases included: in symbols and in numbers."""
        gates, recurrent = len(self.order), len(self.recurrent_order or self.order)
        width, recurrent_width = (f"{n}·features" if n > 1 else "features" for n in (gates, recurrent))
        return {
            "recurrent_kernel": (f"(features, {recurrent_width})", (features, recurrent * features)),
            "kernel": (f"(in_features, {width})", (in_features, gates * features)),
            "bias": (f"({width},)", (gates * features,)),
        }

    def gate_values(self, params: Any, state: Any, x: Any, /) -> dict[str, jax.Array]:
        """The gates by name: the cell's equations. Arguments are those of `step`, checked and in the compute dtype."""
        raise NotImplementedError

    def next_state(self, gates: dict[str, jax.Array], state: Any, /) -> Any:
        """The next state, from the gates and the state before: z ⊙ h + (1 − z) ⊙ n."""
        return interpolate(gates["z"], state, gates["n"])

    def unchecked_step(self, params: Any, state: Any, x: Any, /, **options: Any) -> Any:
        """`step` without its checks."""
        return self.next_state(self.gate_values(params, state, x, **options), state)

    def step(
        self,
        params: P,
        h_tm1: Any,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: Any = None,
        recurrent_dropout_mask: jax.Array | None = None,
    ) -> Any:
        """One step: the next state h_t, after h_tm1 and the input x_t.

        Args:
          params: as from `init`.
          h_tm1: the state before, (*batch, features) or an array that broadcasts to it; of an LSTM an `LSTMState`
            of such arrays.
          x_t: (*batch, in_features).
          resets: (*batch,), bool, or numbers, which are True if not 0. Where True an episode begins: reset_state takes
            the place of h_tm1.
          reset_state: like h_tm1; zero if None.
          recurrent_dropout_mask: (*batch, features), a constant by which the state is multiplied where it enters a
            recurrent product; the state itself is not dropped (Gal & Ghahramani, NeurIPS 2016). For cells whose
            `gate_values` takes it, like the GRU's.

        Returns:
          h_t, in float32 if the computation is in bfloat16 or float16.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit, or the cell takes no recurrent_dropout_mask.
        """
        params, h_tm1, x_t = self.check_step(params, h_tm1, x_t, resets, reset_state)
        mask = check_dropout_mask(self, recurrent_dropout_mask, h_tm1)
        options = {} if mask is None else {"recurrent_dropout_mask": mask}
        return self.unchecked_step(params, h_tm1, x_t, **options)

    def gates(self, params: P, state: Any, x: jax.Array, /) -> dict[str, jax.Array]:
        """The values of the gates at one step, by name, (*batch, features) each. The candidate is one of them.

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
        """Fresh parameters. Each gate is drawn separately.

        Initializers run op by op, as in Flax, so that making one anew for each cell compiles nothing anew.

        Args:
          key: a PRNG key.
          in_features: D, at least 1.
          features: H, at least 1.
          use_bias: whether there are biases.
          kernel_init: initializer of W, applied to each gate's (D, H).
          recurrent_kernel_init: initializer of U, applied to each gate's (H, H).
          bias_init: initializer of the biases, applied to each gate's (H,).
          update_bias_init: initializer of the bias of the gate that keeps (of a GRU b_z), e.g.
            `gru_jax.initializers.chrono(100)`; bias_init if None.
          dtype: of the parameters.

        Returns:
          The parameters, a NamedTuple: `Params` unless the cell says otherwise.

        Raises:
          TypeError, ValueError: if a size is not a positive integer, an initializer cannot be called, dtype is not a
            floating-point one, or update_bias_init is given and there is no such bias.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.integer("features", features, at_least=1)
        inits = Inits(kernel_init, recurrent_kernel_init, bias_init, update_bias_init)
        for name, init in inits._asdict().items():
            if init is not None:
                checks.function(f"{name}_init", init)
        if update_bias_init is not None:
            self._check_update_bias(use_bias)
        checks.param_dtype(dtype, "dtype")
        return self.draw(key, int(in_features), int(features), use_bias, inits, jnp.dtype(dtype))

    def _check_update_bias(self, use_bias: bool) -> None:
        if not self.update_gate:
            raise ValueError(f"update_bias_init must be None: {type(self).__name__} has no gate that keeps")
        if not use_bias:
            raise ValueError("update_bias_init needs use_bias=True, got use_bias=False")

    def draw(self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any) -> Any:
        """`init` without its checks."""
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
        """Draws the packed recurrent kernel."""
        count = len(self.recurrent_order or self.order)
        return initializers.per_gate(inits.recurrent_kernel, key, features, features, dtype, count)

    def draw_bias(self, keys: jax.Array, features: int, inits: Inits, dtype: Any) -> jax.Array:
        """Draws the packed bias, with a key for each gate."""
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
          dtype: by default that of the parameters, or float32 if that is narrower.

        Returns:
          Zeros (*batch, features); of an LSTM an `LSTMState` of them.
        """
        self.check(params)
        if dtype is None:
            dtype = initializers.at_least_float32(jnp.result_type(*jax.tree.leaves(params)))
        return jnp.zeros((*batch, self.features(params)), dtype)

    @property
    def takes_recurrent_dropout(self) -> bool:
        return "recurrent_dropout_mask" in inspect.signature(self.gate_values).parameters

    def in_features(self, params: Any) -> int:
        """D, the width of the input."""
        return params.kernel.shape[0]

    def cast(self, params: Any, x: jax.Array, dtype: Any = None) -> tuple[Any, jax.Array, Any]:
        params, x, state_dtype = super().cast(params, x, dtype)
        # Integers too: they are weights here.
        dtype = initializers.floating_dtype((params, x))
        return *jax.tree.map(lambda leaf: leaf.astype(dtype), (params, x)), state_dtype

    def check(self, params: Any, name: str = "params") -> None:
        """Checks that `params` are parameters of this cell. Errors call them `name`.

        Raises:
          TypeError, ValueError: if they have another type, or a leaf is not an array of the right shape; names the
            leaf.
        """
        if not isinstance(params, self.params_type):
            expected, got = f"gru_jax.cells.{self.params_type.__name__}", type(params).__name__
            raise TypeError(f"{name} must be {expected}, as cell.init returns them, got {got}")
        self._check_shapes(params, name)

    def _check_shapes(self, params: Any, name: str) -> None:
        leaves, symbols = params._asdict(), self.layout(1, 1)
        for field, value in leaves.items():
            if field not in symbols and value is not None:
                raise ValueError(f"{name}.{field} must be None: this {type(self).__name__} has none")
        fields = [field for field in symbols if leaves[field] is not None or field not in ("bias", "recurrent_bias")]
        for field in fields:
            symbol, shape = symbols[field]
            checks.weight(f"{name}.{field}", leaves[field], symbol, len(shape))
        layout = self.layout(self.in_features(params), self.features(params))
        for field in fields:
            checks.shape(f"{name}.{field}", leaves[field], *layout[field])

    def check_step(
        self,
        params: Any,
        h_tm1: State,
        x_t: jax.Array,
        resets: jax.Array | None = None,
        reset_state: State | None = None,
    ) -> tuple[Any, State, jax.Array]:
        """The arguments of `step`, checked: parameters and input in the compute dtype, the state in its own.

        Where `resets` is True, the state is reset_state, zero if None.
        """
        x_t = checks.array("x_t", x_t)
        params, x_t, dtype = check_and_cast(self, params, x_t, "x_t", "(*batch, in_features)")
        batch = x_t.shape[:-1]
        zero = self.initial_state(params, batch, dtype)
        h_tm1, start = cast_state("h_tm1", h_tm1, zero), zero
        resets = checks.optional_flags("resets", resets, "(*batch,)", batch)
        if resets is not None:
            resets = resets[..., None]
            start = zero if reset_state is None else cast_state("reset_state", reset_state, zero)
        x_t, params, resets, (h_tm1, start) = meshes.align_shardings(x_t, params, resets, (h_tm1, start), time_axes=0)
        if resets is not None:
            h_tm1 = jax.tree.map(functools.partial(jnp.where, resets), start, h_tm1)
        return params, h_tm1, x_t
