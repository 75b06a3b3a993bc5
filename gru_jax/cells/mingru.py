"""minGRU, whose gate and candidate do not depend on the state, so that all steps can be computed in parallel."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import initializers
from gru_jax.cells.affine import project
from gru_jax.cells.packed import Inits, PackedCell
from gru_jax.serialization import serializable

LOG_ZERO = -1e30
"""ln 0 in sums of logarithms: exp(LOG_ZERO) = 0, and unlike −∞ it has a difference with itself."""


@serializable
class MinGRUParams(NamedTuple):
    """Parameters of a minGRU, gates in the order z, n.

    Attributes:
      kernel: W, (D, 2H).
      bias: b, (2H,), or None.
    """

    kernel: jax.Array
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class MinGRU(PackedCell[MinGRUParams]):
    """The minimal GRU, whose gate and candidate depend on the input only.

    ::

        z = σ(x W_z + b_z)
        n = g(x W_n + b_n)              g(v) = v + ½ for v ≥ 0, else σ(v); above zero
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper's gate replaces, ours keeps: its z is our 1 − z, and its weights W_z, b_z are minus ours.
    ``update_bias_init`` draws b_z. h_0 may have any sign (the paper applies g to it first, we do not), and is zero by
    default.

    The states are linear in h_0, h_t = A_t ⊙ h_0 + B_t, and g > 0. So an associative scan over time, of depth log T,
    computes ln A_t and ln B_t: the paper's log-space form, ``method="parallel"`` of `gru_jax.unroll`. It is more work,
    and a CPU has few cores to share it: there ``method="auto"`` is the loop, elsewhere the scan.

    `MinGRUParams`, 2 (DH + H) of them.

    Reference:
      L. Feng, F. Tung, M. O. Ahmed, Y. Bengio, H. Hajimirsadeghi: Were RNNs all we needed? arXiv:2410.01201, section
      3.1, and appendix B for the log-space form and g.

    >>> cell = MinGRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "zn"
    update_gate: ClassVar[str] = "z"
    params_type: ClassVar[Any] = MinGRUParams

    @property
    def methods(self) -> tuple[str, ...]:
        return ("auto", "scan", "parallel", "fused")

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout = super().layout(in_features, features)
        return {name: layout[name] for name in ("kernel", "bias")}

    def features(self, params: MinGRUParams) -> int:
        return params.kernel.shape[-1] // len(self.order)

    def draw(
        self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any
    ) -> MinGRUParams:
        key, *keys = jax.random.split(key, 3)
        kernel = initializers.per_gate(inits.kernel, key, in_features, features, dtype, 2)
        return MinGRUParams(kernel, self.draw_bias(jnp.stack(keys), features, inits, dtype) if use_bias else None)

    def gate_values(self, params: MinGRUParams, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=2)
        return {"z": jax.nn.sigmoid(x_z), "n": jnp.where(x_n >= 0, x_n + 0.5, jax.nn.sigmoid(x_n))}

    def parallel(
        self,
        params: MinGRUParams,
        xs: jax.Array,
        h_0: jax.Array,
        mask: jax.Array | None,
        resets: jax.Array | None,
        reset_state: jax.Array | None,
        reverse: bool,
    ) -> jax.Array:
        """All states at once, (T, *batch, features).

        Args:
          params: of the compute dtype, like xs; see `check_and_cast`.
          xs: (T, *batch, in_features), T at least 1.
          h_0: (*batch, features).
          mask, resets: (T, *batch, 1) bool, or None; as of `gru_jax.unroll`.
          reset_state: (*batch, features), or None for zero.
          reverse: run time backwards.
        """
        x_z, x_n = project(params.kernel, params.bias, xs, h_0.dtype, parts=2)
        log_n = jnp.where(x_n >= 0, jnp.log(jnp.where(x_n >= 0, x_n, 0) + 0.5), jax.nn.log_sigmoid(x_n))
        log_a, log_b = jax.nn.log_sigmoid(x_z), jax.nn.log_sigmoid(-x_z) + log_n
        if mask is not None:
            log_a, log_b = jnp.where(mask, log_a, 0), jnp.where(mask, log_b, LOG_ZERO)
        reset, log_a, log_b = jax.lax.associative_scan(_compose, (resets, log_a, log_b), reverse=reverse)
        start = h_0[None]
        if reset is not None:
            start = jnp.where(reset, 0 if reset_state is None else reset_state[None], start)
        if mask is None:
            return jnp.exp(log_a) * start + jnp.exp(log_b)
        # Where all steps so far are masked, the start is selected: it may be NaN, and a derivative would multiply that
        # by zero.
        masked = (log_a == 0) & (log_b < LOG_ZERO / 2)
        return jnp.where(masked, start, jnp.exp(log_a) * jnp.where(masked, 0, start) + jnp.exp(log_b))


def _compose(first: Any, second: Any) -> Any:
    """Composes two maps h ↦ a h + b, given as (reset, ln a, ln b). Where the second resets, its h is reset_state."""
    (reset_1, log_a1, log_b1), (reset_2, log_a2, log_b2) = first, second
    if reset_2 is not None:
        # Before the sum of exponentials, whose derivative would pass a NaN on even where nothing depends on it.
        log_a1, log_b1 = jnp.where(reset_2, 0, log_a1), jnp.where(reset_2, LOG_ZERO, log_b1)
        reset_1 = reset_1 | reset_2
    return reset_1, log_a1 + log_a2, jnp.logaddexp(log_b2, log_a2 + log_b1)
