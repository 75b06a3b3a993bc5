"""The GRU as a value: which equations it has."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from gru_jax import activations, checks, gates
from gru_jax.cells.affine import biased, product, project, split
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class GRU(PackedCell[Params]):
    """The equations of a gated recurrent unit. Frozen and hashable: a static argument of `jax.jit`.

    ::

        z = σ(x W_z + h U_z + b_z)              r = σ(x W_r + h U_r + b_r)
        n = φ(x W_n + b_n + r ⊙ (h U_n + c_n))  with reset_after, else  φ(x W_n + b_n + (r ⊙ h) U_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    Named special cases: `CUDNN` (the default), `CHO2014`, `GOODFELLOW`. See `gru_jax.gates` for the sources. `Params`,
    3 (DH + H² + H) of them, and H more with reset_after.

    Attributes:
      reset_after: whether the reset gate acts after the recurrent product (True) or before it.
      gate: σ, elementwise. It must not close over traced values. What JAX has, or is σ or tanh by another name, is held
        by its name, `gru_jax.activations.Named`, so that copies of a cell are equal to it.
      candidate: φ, likewise.

    Raises:
      TypeError: if reset_after is not a bool or an activation cannot be called.

    >>> cell = GRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_1 = cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3)))
    >>> h_1.shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"

    reset_after: bool = True
    gate: gates.Activation = jax.nn.sigmoid
    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        if not isinstance(self.reset_after, bool):
            raise TypeError(f"reset_after must be a bool, got {self.reset_after!r}")
        for name in ("gate", "candidate"):
            checks.function(name, getattr(self, name))
            object.__setattr__(self, name, activations.canonical(getattr(self, name)))

    @property
    def methods(self) -> tuple[str, ...]:
        # With "auto" the lowering chooses.
        return ("auto", "scan", "fused", "native")

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout = super().layout(in_features, features)
        return layout | {"recurrent_bias": ("(features,)", (features,))} if self.reset_after else layout

    def gate_values(
        self,
        params: Params,
        h_tm1: jax.Array,
        x_t: jax.Array,
        /,
        *,
        recurrent_dropout_mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        h_in = h_tm1 if recurrent_dropout_mask is None else h_tm1 * recurrent_dropout_mask
        kernel, width = params.recurrent_kernel, 2 * params.features
        x_r, x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        if self.reset_after:
            h_r, h_z, h_n = split(product(h_in, kernel))
        else:
            h_r, h_z = split(product(h_in, kernel[:, :width]), 2)
        r, z = gates.reset_gate(x_r, h_r, self.gate), gates.update_gate(x_z, h_z, self.gate)
        if self.reset_after:
            n = gates.candidate_reset_after(x_n, biased(h_n, params.recurrent_bias), r, self.candidate)
        else:
            n = gates.candidate_reset_before(x_n, product(r * h_in, kernel[:, width:]), self.candidate)
        return {"r": r, "z": z, "n": n}


CUDNN = GRU()
"""Reset after, tanh: cuDNN, PyTorch, Flax, Keras' default, Equinox; Cho et al. 2014, v1."""

CHO2014 = GRU(reset_after=False)
"""Reset before, tanh: Cho et al. 2014, v3; Keras reset_after=False, Haiku, ONNX' default."""

GOODFELLOW = GRU(reset_after=False, candidate=jax.nn.sigmoid)
"""Reset before, a logistic candidate, so that h lies in (0, 1): Goodfellow et al. 2016, equations 10.45 to 10.47.

The book makes h of time t from the input and the gates of time t − 1; here, as everywhere, all are those of time t."""
