"""Recurrent networks without gates: Elman's, and leaky units, whose memory fades with a time constant of their own."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import activations, checks, gates
from gru_jax.cells.affine import lifted, product, project
from gru_jax.cells.base import Inits, Packed, Params
from gru_jax.serialization import serializable


@dataclasses.dataclass(frozen=True)
class Elman(Packed[Params]):
    """The simple recurrent network: h_t = φ(x W + h_tm1 U + b).

    `Params`, DH + H² + H of them. It has no gate that keeps, and no ``update_bias_init``.

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

    def step(
        self,
        params: Params,
        state_tm1: jax.Array,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: jax.Array | None = None,
    ) -> jax.Array:
        """One step: h_t, (*batch, features), that follows state_tm1 on x_t, (*batch, in_features).

        Where resets, (*batch,), is True an episode begins: reset_state, zero if None, takes the place of state_tm1. In
        float32 where the computation is in bfloat16 or float16. TypeError, ValueError: if a shape or dtype does not
        fit.
        """
        params, h_tm1, x_t = self.ready(params, state_tm1, x_t, resets, reset_state)
        return _candidate(self, params, h_tm1, x_t)


@serializable
class LeakyParams(NamedTuple):
    """Parameters of leaky units.

    Attributes:
      kernel: input weights W, (D, H).
      recurrent_kernel: recurrent weights U, (H, H).
      bias: b, (H,), or None.
      leak: a, (H,), where α = σ(a) is learned; None where time constants are fixed.
    """

    kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array | None = None
    leak: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Leaky(Packed[LeakyParams]):
    """Leaky units: running averages of a simple recurrent network, each with a time constant of its own.

    ::

        n = φ(x W + h_tm1 U + b)
        h_t = α ⊙ h_tm1 + (1 − α) ⊙ n          α = 1 − 1/τ, fixed, or α = σ(a), learned

    A unit forgets with time constant τ = 1/(1 − α) steps; in terms of a, τ = 1 + exp(a), as for the gates of the other
    cells, so that `gru_jax.initializers.chrono` as ``update_bias_init``, which draws a, spreads τ over [2, max_time].
    (exp(−1/τ), the decay in continuous time, is another α; they agree for large τ.) Special cases: α = 0, τ = 1 is
    `Elman`; a GRU is leaky with an α of every step's own.

    `LeakyParams`, DH + H² + H of them, and H more where time constants are learned.

    Attributes:
      time_constant: τ in steps, at least 1: a number for all units, or a tuple with one for each; None to learn them.
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

    @property
    def fields(self) -> tuple[str, ...]:
        return (*super().fields, "leak") if self.time_constant is None else super().fields

    def _check_update_bias(self, use_bias: bool) -> None:
        if self.time_constant is not None:
            raise ValueError(f"update_bias_init must be None with time_constant={self.time_constant}, which is fixed")

    def draw(
        self, key: jax.Array, in_features: int, features: int, use_bias: bool, inits: Inits, dtype: Any
    ) -> LeakyParams:
        key, key_leak = jax.random.split(key)
        kernel, recurrent_kernel, bias, _ = super().draw(key, in_features, features, use_bias, inits, dtype)
        self._check_units(features)
        leak = None
        if self.time_constant is None:
            leak = (inits.update_bias or inits.bias)(key_leak, (features,), dtype)
        return LeakyParams(kernel, recurrent_kernel, bias, leak)

    def step(
        self,
        params: LeakyParams,
        state_tm1: jax.Array,
        x_t: jax.Array,
        *,
        resets: jax.Array | None = None,
        reset_state: jax.Array | None = None,
    ) -> jax.Array:
        """One step: h_t, (*batch, features), that follows state_tm1 on x_t, (*batch, in_features).

        Where resets, (*batch,), is True an episode begins: reset_state, zero if None, takes the place of state_tm1. In
        float32 where the computation is in bfloat16 or float16. TypeError, ValueError: if a shape or dtype does not
        fit.
        """
        params, h_tm1, x_t = self.ready(params, state_tm1, x_t, resets, reset_state)
        if params.leak is None:
            keep = 1 - 1 / jnp.asarray(self.time_constant, h_tm1.dtype)
        else:
            keep = jax.nn.sigmoid(params.leak.astype(h_tm1.dtype))
        return gates.interpolate(lifted(keep, h_tm1.ndim), h_tm1, _candidate(self, params, h_tm1, x_t))

    def _check_shapes(self, params: LeakyParams, name: str) -> None:
        super()._check_shapes(params, name)
        self._check_units(self.features(params))
        if self.time_constant is None and params.leak is None:
            raise ValueError(f"{name}.leak must have shape (features,) with time_constant=None, got None")

    def _check_units(self, features: int) -> None:
        tau = self.time_constant
        if isinstance(tau, tuple) and len(tau) != features:
            raise ValueError(f"time_constant must have features = {features} numbers, got {len(tau)}")


def _candidate(cell: Elman | Leaky, params: Params | LeakyParams, h_tm1: jax.Array, x_t: jax.Array) -> jax.Array:
    """φ(x W + h U + b)."""
    (x_n,) = project(params.kernel, params.bias, x_t, h_tm1.dtype, parts=1)
    return cell.candidate(x_n + product(h_tm1, params.recurrent_kernel))
