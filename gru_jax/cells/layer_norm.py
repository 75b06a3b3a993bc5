"""The GRU with layer normalisation."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import gates
from gru_jax.cells.affine import biased, lifted, product, split
from gru_jax.cells.packed import Inits, PackedCell
from gru_jax.serialization import serializable


@serializable
class LayerNormParams(NamedTuple):
    """Parameters of a layer-normalised GRU, gates in the order r, z, n.

    Attributes:
      kernel: W, (D, 3H).
      recurrent_kernel: U, (H, 3H).
      bias: b, (3H,), added after the norm; or None.
      recurrent_bias: c_n, (H,), if input and state are normalised separately; otherwise None, as without bias.
      gain: g, (3H,), which multiplies the normalised preactivations; if input and state are normalised separately, only
        those of the input.
      recurrent_gain: k, (3H,), for those of the state; None if the two are normalised together.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    recurrent_bias: jax.Array | None = None
    gain: jax.Array | None = None
    recurrent_gain: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class LayerNormGRU(PackedCell[LayerNormParams]):
    """A GRU that resets after the product, with preactivations normalised to mean 0 and variance 1.

    LN(v) = (v − mean v) / √(var v + ε), over the units of v. Input and state are normalised together, as in Dreamer::

        a_r, a_z, a_n = g ⊙ LN(x W + h U) + b                           one norm over all 3H
        r = σ(a_r)      z = σ(a_z − u)      n = tanh(r ⊙ a_n)

    or separately, as in Ba et al.::

        p_r, p_z = g ⊙ LN(x W_rz) + b           q_r, q_z = k ⊙ LN(h U_rz)             norms over 2H
        p_n = g_n ⊙ LN(x W_n) + b_n             q_n = k_n ⊙ LN(h U_n) + c_n           norms over H
        r = σ(p_r + q_r)      z = σ(p_z + q_z − u)      n = tanh(p_n + r ⊙ q_n)

    and in both h_t = z ⊙ h_tm1 + (1 − z) ⊙ n. Named special cases: `DREAMER`, `BA2016`.

    In both papers the gate z replaces the state; ours keeps. So the gains and biases g_z, k_z, b_z are minus theirs. W
    and U are the same, since a change of sign in one gate would change a norm over several. ``update_bias_init`` draws
    b_z. The separate form has two biases for r and for z; here they are one, their sum, as in every cell.

    `LayerNormParams`, 3 (DH + H²) + 6H of them; separate, 3 (DH + H²) + 10H.

    Attributes:
      separate: whether input and state are normalised separately.
      update_bias: u, added to the preactivation of the papers' update gate, which replaces, so subtracted here. With
        −1, Dreamer's, a fresh cell keeps more of its state.
      epsilon: ε, added to the variance.

    Raises:
      TypeError, ValueError: if separate is not a bool, or update_bias or epsilon is not a finite number, epsilon above
        zero.

    Reference:
      D. Hafner, T. Lillicrap, M. Norouzi, J. Ba: Mastering Atari with discrete world models, ICLR 2021
      (arXiv:2010.02193), after GRUCell in the authors' code (danijar/dreamerv2, common/nets.py), which packs r, n, z,
      has ε = 0.001, and a second bias, within the norm, that is left out here.
      J. L. Ba, J. R. Kiros, G. Hinton: Layer normalization, arXiv:1607.06450, supplementary material, which was not at
      hand: the equations are from memory. LayerNormGRU of haste is the same with norms over 3H.

    >>> cell = LayerNormGRU(update_bias=-1.0)
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"
    params_type: ClassVar[Any] = LayerNormParams

    separate: bool = False
    update_bias: float = 0.0
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if not isinstance(self.separate, bool):
            raise TypeError(f"separate must be a bool, got {self.separate!r}")
        for name in ("update_bias", "epsilon"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
            if not np.isfinite(value) or (name == "epsilon" and value <= 0):
                raise ValueError(f"{name} must be finite{', and above 0' * (name == 'epsilon')}, got {value}")
            object.__setattr__(self, name, float(value))

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        packed, single = ("(3·features,)", (3 * features,)), ("(features,)", (features,))
        own = {"gain": packed}
        if self.separate:
            own |= {"recurrent_gain": packed, "recurrent_bias": single}
        return super().layout(in_features, features) | own

    def draw(
        self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any
    ) -> LayerNormParams:
        params = super().draw(key, in_features, features, use_bias, inits, dtype)
        ones = jnp.ones((3 * features,), dtype)
        return params._replace(gain=ones, recurrent_gain=ones if self.separate else None)

    def gate_values(self, params: LayerNormParams, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_a, h_a = product(x_t, params.kernel, dtype=h_tm1.dtype), product(h_tm1, params.recurrent_kernel)
        if not self.separate:
            a_r, a_z, a_n = split(biased(self._normalised(x_a + h_a, params.gain), params.bias))
            r = jax.nn.sigmoid(a_r)
            return {"r": r, "z": jax.nn.sigmoid(a_z - self.update_bias), "n": jnp.tanh(r * a_n)}
        biases = [None] * 3 if params.bias is None else split(params.bias)
        p_r, p_z, p_n = map(biased, self._by_gates_and_candidate(x_a, params.gain), biases)
        q_r, q_z, q_n = self._by_gates_and_candidate(h_a, params.recurrent_gain)
        r = gates.reset_gate(p_r, q_r)
        n = gates.candidate_reset_after(p_n, biased(q_n, params.recurrent_bias), r)
        return {"r": r, "z": jax.nn.sigmoid(p_z + q_z - self.update_bias), "n": n}

    def _by_gates_and_candidate(self, a: jax.Array, gain: Any) -> list[jax.Array]:
        """The preactivations (..., 3H) by gate. r and z are normalised together, n by itself."""
        width = 2 * (a.shape[-1] // 3)
        return [
            *split(self._normalised(a[..., :width], gain[:width]), 2),
            self._normalised(a[..., width:], gain[width:]),
        ]

    def _normalised(self, a: jax.Array, gain: Any) -> jax.Array:
        """g ⊙ LN(a)."""
        centred = a - a.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + self.epsilon)
        return centred * scale * lifted(gain, a.ndim).astype(a.dtype)


DREAMER = LayerNormGRU(update_bias=-1.0)
"""Input and state normalised together, an update bias of −1: Dreamer's, since its second version."""

BA2016 = LayerNormGRU(separate=True, epsilon=1e-5)
"""Input and state normalised separately: Ba et al. 2016."""
