"""Recurrent networks without gates: Elman's, and leaky units, each with a time constant of its own."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import activations, checks, gates
from gru_jax.cells.affine import lifted, product, project
from gru_jax.cells.packed import Inits, PackedCell, Params
from gru_jax.serialization import serializable


@dataclasses.dataclass(frozen=True)
class Elman(PackedCell[Params]):
    """The simple recurrent network: h_t = φ(x W + h_tm1 U + b).

    `Params`, DH + H² + H of them. It has no gate that keeps, so no ``update_bias_init``.

    Attributes:
      candidate: φ, elementwise. It must not close over traced values.

    Raises:
      TypeError: if candidate cannot be called.

    Reference:
      J. Elman: Finding structure in time, Cognitive Science 1990, there with σ; Goodfellow et al. 2016, equations 10.8
      and 10.9.

    >>> cell = Elman()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "n"

    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        checks.function("candidate", self.candidate)
        object.__setattr__(self, "candidate", activations.canonical(self.candidate))

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        return {"n": _candidate(self, params, h_tm1, x_t)}

    def next_state(self, gates: dict[str, jax.Array], h_tm1: jax.Array, /) -> jax.Array:
        return gates["n"]


@serializable
class LeakyParams(NamedTuple):
    """Parameters of leaky units.

    Attributes:
      kernel: input weights W, (D, H).
      recurrent_kernel: recurrent weights U, (H, H).
      bias: b, (H,), or None.
      leak: a, (H,), if α = σ(a) is learned; None if time constants are fixed.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    leak: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Leaky(PackedCell[LeakyParams]):
    """Leaky units: running averages of a simple recurrent network, each with a time constant of its own.

    ::

        n = φ(x W + h_tm1 U + b)
        h_t = α ⊙ h_tm1 + (1 − α) ⊙ n          α = 1 − 1/τ, fixed, or α = σ(a), learned

    A unit forgets with the time constant τ = 1/(1 − α) steps. In terms of a, τ = 1 + exp(a), as for the gates of other
    cells. So `gru_jax.initializers.chrono` as ``update_bias_init``, which draws a, spreads τ over [2, max_time].
    (exp(−1/τ), the decay in continuous time, is a different α; the two agree for large τ.) With α = 0, τ = 1 it is
    `Elman`; a GRU is a leaky unit whose α differs from step to step.

    `LeakyParams`, DH + H² + H of them, and H more if time constants are learned. `gates` returns α as z.

    Attributes:
      time_constant: τ in steps, at least 1: a number for all units, or a tuple with one for each; None to learn τ.
      candidate: φ, elementwise. It must not close over traced values.

    Raises:
      TypeError, ValueError: if a time constant is not a number of at least 1, or candidate cannot be called.

    Reference:
      Goodfellow et al. 2016, sections 10.9.2 (running averages μ) and 10.10; M. Mozer, NIPS 1991; H. Jaeger et al.,
      Neural Networks 2007.

    >>> cell = Leaky(time_constant=(1.0, 10.0, 100.0))
    >>> params = cell.init(jax.random.key(0), in_features=2, features=3)
    >>> cell.step(params, jnp.ones(3), jnp.zeros(2)).shape, params.leak is None
    ((3,), True)
    """

    order: ClassVar[str] = "n"
    update_gate: ClassVar[str] = "z"
    params_type: ClassVar[Any] = LeakyParams

    time_constant: float | tuple[float, ...] | None = None
    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        checks.function("candidate", self.candidate)
        object.__setattr__(self, "candidate", activations.canonical(self.candidate))
        tau = self.time_constant
        for value in () if tau is None else tau if isinstance(tau, tuple) else (tau,):
            if isinstance(value, bool) or not isinstance(value, int | float | np.number):
                raise TypeError(f"time_constant must be a number, a tuple of numbers or None, got {tau!r}")
            if not 1 <= value < np.inf:
                raise ValueError(f"time_constant must be at least 1 and finite, got {value}")

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout = super().layout(in_features, features)
        return layout if self.time_constant is not None else layout | {"leak": ("(features,)", (features,))}

    def _check_update_bias(self, use_bias: bool) -> None:
        if self.time_constant is not None:
            raise ValueError(f"update_bias_init must be None with time_constant={self.time_constant}, which is fixed")

    def draw(
        self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any
    ) -> LeakyParams:
        key, key_leak = jax.random.split(key)
        params = super().draw(key, in_features, features, use_bias, inits, dtype)
        self._check_units(features)
        if self.time_constant is not None:
            return params
        return params._replace(leak=(inits.update_bias or inits.bias)(key_leak, (features,), dtype))

    def gate_values(self, params: LeakyParams, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        if params.leak is None:
            alpha = 1 - 1 / jnp.asarray(self.time_constant, h_tm1.dtype)
        else:
            alpha = jax.nn.sigmoid(params.leak.astype(h_tm1.dtype))
        return {"z": lifted(alpha, h_tm1.ndim), "n": _candidate(self, params, h_tm1, x_t)}

    def _check_shapes(self, params: LeakyParams, name: str) -> None:
        super()._check_shapes(params, name)
        self._check_units(self.features(params))

    def _check_units(self, features: int) -> None:
        tau = self.time_constant
        if isinstance(tau, tuple) and len(tau) != features:
            raise ValueError(f"time_constant must have features = {features} numbers, got {len(tau)}")


def _candidate(cell: Elman | Leaky, params: Params | LeakyParams, h_tm1: jax.Array, x_t: jax.Array) -> jax.Array:
    """φ(x W + h U + b)."""
    (x_n,) = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=1)
    return cell.candidate(x_n + product(h_tm1, params.recurrent_kernel))
