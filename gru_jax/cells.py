"""The GRU as a value: which equations, and the parameters they need.

Axis legend of this package: T time, *batch any number of batch axes (none too), D in_features, H features, 3H the gates
r, z, n side by side.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import checks, gates, initializers
from gru_jax.initializers import Initializer


class Params(NamedTuple):
    """Parameters of one GRU cell; gates lie in the order r, z, n.

    A pytree: what `cell.init` makes, `unroll` takes and an optimizer updates.

    Attributes:
      kernel: input weights W, (D, 3H).
      recurrent_kernel: recurrent weights U, (H, 3H).
      bias: input bias b, (3H,), or None.
      recurrent_bias: the candidate's recurrent bias c_n, (H,); None without bias or with reset before.
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


# The projected input: one array (..., H) for each gate r, z, n. Three arrays rather than one of 3H, because XLA on CPU
# does not vectorise gate arithmetic over slices of a packed array inside a loop.
Projected = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class GRU:
    """The equations of a gated recurrent unit. Frozen and hashable: a static argument of `jax.jit`.

    ::

        z = σ(x W_z + h U_z + b_z)              r = σ(x W_r + h U_r + b_r)
        n = φ(x W_n + b_n + r ⊙ (h U_n + c_n))  with reset_after, else  φ(x W_n + b_n + (r ⊙ h) U_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    Named special cases: `CUDNN` (the default), `CHO2014`, `GOODFELLOW`. See `gru_jax.gates` for the sources.

    Attributes:
      reset_after: whether the reset gate acts after the recurrent product (True) or before it.
      gate: σ, elementwise. It must not close over traced values.
      candidate: φ, elementwise. It must not close over traced values.

    Raises:
      TypeError: if reset_after is not a bool or an activation cannot be called.

    >>> cell = GRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_1 = cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3)))
    >>> h_1.shape
    (2, 4)
    """

    reset_after: bool = True
    gate: gates.Activation = jax.nn.sigmoid
    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        if not isinstance(self.reset_after, bool):
            raise TypeError(f"reset_after must be a bool, got {self.reset_after!r}")
        checks.function("gate", self.gate)
        checks.function("candidate", self.candidate)

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
    ) -> Params:
        """Fresh parameters, drawn in one compiled call.

        Args:
          key: a PRNG key.
          in_features: D, at least 1.
          features: H, at least 1.
          use_bias: whether there are biases at all.
          kernel_init: initializer of W, applied to each gate's (D, H).
          recurrent_kernel_init: initializer of U, applied to each gate's (H, H).
          bias_init: initializer of the biases, applied to each gate's (H,).
          update_bias_init: initializer of b_z where it is to differ, e.g. `gru_jax.initializers.chrono(100)`.
          dtype: of the parameters.

        Returns:
          `Params`.

        Raises:
          TypeError, ValueError: if a size is not a positive integer, an initializer cannot be called, or
            update_bias_init is given with use_bias=False.
        """
        checks.integer("in_features", in_features, at_least=1)
        checks.integer("features", features, at_least=1)
        inits = (
            kernel_init,
            recurrent_kernel_init,
            bias_init,
            bias_init if update_bias_init is None else update_bias_init,
        )
        for name, init in zip(
            ("kernel_init", "recurrent_kernel_init", "bias_init", "update_bias_init"), inits, strict=True
        ):
            checks.function(name, init)
        if update_bias_init is not None and not use_bias:
            raise ValueError("update_bias_init needs use_bias=True, got use_bias=False")
        return _init(key, int(in_features), int(features), self.reset_after, use_bias, inits, jnp.dtype(dtype))

    def step(
        self,
        params: Params,
        h_tm1: jax.Array,
        x_t: jax.Array,
        *,
        recurrent_dropout_mask: jax.Array | None = None,
    ) -> jax.Array:
        """One step: the state h_t that follows h_tm1 on input x_t.

        Args:
          params: `Params`.
          h_tm1: (*batch, features), the state before.
          x_t: (*batch, in_features).
          recurrent_dropout_mask: (*batch, features); multiplies the state where it enters a recurrent product, and
            there only: the state itself is not dropped (Gal & Ghahramani, NeurIPS 2016).

        Returns:
          h_t, (*batch, features), in float32 where the computation is in bfloat16 or float16.

        Raises:
          TypeError, ValueError: if a shape or dtype does not fit.
        """
        h_tm1, x_t = checks.array("h_tm1", h_tm1), checks.array("x_t", x_t)
        params, x_t, state_dtype = self.prepare(params, x_t, "x_t", "(*batch, in_features)")
        checks.shape("h_tm1", h_tm1, "(*batch, features)", (*x_t.shape[:-1], params.features))
        mask = recurrent_dropout_mask
        if mask is not None:
            checks.shape("recurrent_dropout_mask", mask, "(*batch, features)", h_tm1.shape)
            mask = mask.astype(state_dtype)
        projected = project(params.kernel, params.bias, x_t, state_dtype)
        c_n = None if params.recurrent_bias is None else params.recurrent_bias.astype(state_dtype)
        return self.advance(projected, h_tm1.astype(state_dtype), params.recurrent_kernel, c_n, mask)

    def prepare(self, params: Params, x: jax.Array, name: str, symbols: str) -> tuple[Params, jax.Array, Any]:
        """Checks parameters against an input and casts both to the compute dtype.

        Args:
          params: `Params`.
          x: (..., in_features), the input; `name` and `symbols` are what an error calls it and its shape.

        Returns:
          Parameters and input in the compute dtype, the promotion of their dtypes; and the dtype of the state, float32
          where the compute dtype is narrower.
        """
        if not isinstance(params, Params):
            raise TypeError(f"params must be gru_jax.Params, as cell.init returns them, got {type(params).__name__}")
        checks.floating(name, x)
        kernel, recurrent_kernel, bias, recurrent_bias = params
        features = recurrent_kernel.shape[0]
        checks.shape("params.recurrent_kernel", recurrent_kernel, "(features, 3·features)", (features, 3 * features))
        checks.shape("params.kernel", kernel, "(in_features, 3·features)", (kernel.shape[0], 3 * features))
        if bias is not None:
            checks.shape("params.bias", bias, "(3·features,)", (3 * features,))
        if recurrent_bias is not None:
            if not self.reset_after:
                raise ValueError(
                    "params.recurrent_bias must be None with reset_after=False: that cell has no such bias"
                )
            checks.shape("params.recurrent_bias", recurrent_bias, "(features,)", (features,))
        checks.shape(name, x, symbols, (*x.shape[:-1], kernel.shape[0]))
        dtype = jnp.result_type(x, *(leaf for leaf in params if leaf is not None))
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"params must be floating point, got {dtype}")
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return cast, x.astype(dtype), jnp.promote_types(dtype, jnp.float32)

    def advance(
        self,
        projected: Projected,
        h_tm1: jax.Array,
        recurrent_kernel: jax.Array,
        recurrent_bias: jax.Array | None,
        recurrent_dropout_mask: jax.Array | None,
    ) -> jax.Array:
        """One step from a projected input; the body of both `step` and the fused recurrence.

        Args:
          projected: x_t W + b of each gate, three arrays (*group, *batch, H).
          h_tm1: (*group, *batch, H).
          recurrent_kernel: U, (*group, H, 3H); see `product` for the group axes.
          recurrent_bias: c_n, broadcastable to h_tm1, or None.
          recurrent_dropout_mask: broadcastable to h_tm1, or None.

        Returns:
          h_t, like h_tm1.
        """
        x_r, x_z, x_n = projected
        features = h_tm1.shape[-1]
        h_in = h_tm1 if recurrent_dropout_mask is None else h_tm1 * recurrent_dropout_mask
        if self.reset_after:
            h_r, h_z, h_n = split(product(h_in, recurrent_kernel))
            r = gates.reset_gate(x_r, h_r, self.gate)
            z = gates.update_gate(x_z, h_z, self.gate)
            h_n = h_n if recurrent_bias is None else h_n + recurrent_bias
            n = gates.candidate_reset_after(x_n, h_n, r, self.candidate)
        else:
            h_r, h_z = split(product(h_in, recurrent_kernel[..., : 2 * features]), 2)
            r = gates.reset_gate(x_r, h_r, self.gate)
            z = gates.update_gate(x_z, h_z, self.gate)
            n = gates.candidate_reset_before(
                x_n, product(r * h_in, recurrent_kernel[..., 2 * features :]), self.candidate
            )
        return gates.interpolate(z, h_tm1, n)


def split(packed: jax.Array, parts: int = 3) -> list[jax.Array]:
    """The gates of a packed array (..., parts·H), each (..., H)."""
    return jnp.split(packed, parts, axis=-1)


def project(kernel: jax.Array, bias: jax.Array | None, x: jax.Array, dtype: Any, lead: int = 0) -> Projected:
    """The projected input x W + b of each gate.

    Args:
      kernel: W, (*group, D, 3H); see `product` for the group axes.
      bias: b, (*group, *batch, 3H), broadcastable; or None.
      x: (*lead, *group, *batch, D).
      dtype: of the result.
      lead: the number of axes of x before the group axes.

    Returns:
      Three arrays (*lead, *group, *batch, H).
    """
    projected = [product(x, kernel_g, lead, dtype) for kernel_g in split(kernel)]
    if bias is not None:
        projected = [x_g + bias_g for x_g, bias_g in zip(projected, split(bias.astype(dtype)), strict=True)]
    x_r, x_z, x_n = projected
    return x_r, x_z, x_n


def product(h: jax.Array, kernel: jax.Array, lead: int = 0, dtype: Any = None) -> jax.Array:
    """h U in the dtype of U, accumulated in `dtype`.

    Args:
      h: (*lead, *group, *batch, H).
      kernel: (*group, H, K). Group axes belong to weights that were batched by `vmap`; usually there are none. A group
        axis may have size 1 in either.
      lead: the number of axes of h before the group axes.
      dtype: of the result; by default that of h.

    Returns:
      (*lead, *group, *batch, K).
    """
    dtype = h.dtype if dtype is None else dtype

    def dot(h: jax.Array, kernel: jax.Array) -> jax.Array:
        result = jnp.matmul(_rows(h).astype(kernel.dtype), kernel, preferred_element_type=dtype)
        return result.reshape(*h.shape[:-1], kernel.shape[-1])

    for group in reversed(range(kernel.ndim - 2)):
        dot = _over_group(dot, lead, h.shape[lead + group], kernel.shape[group])
    return dot(h, kernel)


def _over_group(dot: Callable[..., jax.Array], lead: int, h_size: int, kernel_size: int) -> Callable[..., jax.Array]:
    """`dot` mapped over a group axis, of which either operand may have only one."""
    if h_size == 1 or kernel_size == 1:
        axes = (lead if h_size > 1 else None, 0 if kernel_size > 1 else None)

        def squeezed(h: jax.Array, kernel: jax.Array) -> jax.Array:
            h = h if h_size > 1 else jnp.squeeze(h, lead)
            kernel = kernel if kernel_size > 1 else jnp.squeeze(kernel, 0)
            if axes == (None, None):
                return jnp.expand_dims(dot(h, kernel), lead)
            return jax.vmap(dot, in_axes=axes, out_axes=lead)(h, kernel)

        return squeezed
    return jax.vmap(dot, in_axes=(lead, 0), out_axes=lead)


def _rows(h: jax.Array) -> jax.Array:
    """h (..., H) with its leading axes merged, where no axis of it can be sharded: a merged one would be gathered.

    In the gradient of a kernel, XLA on CPU contracts one axis up to twice as fast as time and batch, which it first
    copies into another layout.
    """
    if jax.device_count() > 1 or not jax.sharding.get_abstract_mesh().empty:
        return h
    return h.reshape(-1, h.shape[-1])


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5, 6))
def _init(
    key: jax.Array,
    in_features: int,
    features: int,
    reset_after: bool,
    use_bias: bool,
    inits: tuple[Initializer, Initializer, Initializer, Initializer],
    dtype: Any,
) -> Params:
    kernel_init, recurrent_kernel_init, bias_init, update_bias_init = inits
    keys = jax.random.split(key, 6)
    kernel = initializers.per_gate(kernel_init, keys[0], in_features, features, dtype)
    recurrent_kernel = initializers.per_gate(recurrent_kernel_init, keys[1], features, features, dtype)
    if not use_bias:
        return Params(kernel, recurrent_kernel)
    b_r, b_z, b_n, c_n = (
        init(k, (features,), dtype)
        for init, k in zip((bias_init, update_bias_init, bias_init, bias_init), keys[2:], strict=True)
    )
    return Params(kernel, recurrent_kernel, jnp.concatenate([b_r, b_z, b_n]), c_n if reset_after else None)


CUDNN = GRU()
"""Reset after, tanh: cuDNN, PyTorch, Flax, Keras' default, Equinox; Cho et al. 2014, v1."""

CHO2014 = GRU(reset_after=False)
"""Reset before, tanh: Cho et al. 2014, v3; Keras reset_after=False, Haiku, ONNX' default."""

GOODFELLOW = GRU(reset_after=False, candidate=jax.nn.sigmoid)
"""Reset before, a logistic candidate, so that h lies in (0, 1): Goodfellow et al. 2016, equations 10.45 to 10.47.

The book makes h of time t from the input and the gates of time t − 1; here, as everywhere, all are those of time t."""
