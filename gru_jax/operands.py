"""What the recurrences of a GRU are applied to: NamedTuples of arrays, each with the roles of its axes beside it.

T time; *weight_batch, axes of weights that `vmap` batched, usually none; *batch. See `gru_jax.axes`.
"""

import math
from typing import Annotated, Any, NamedTuple

import jax

from gru_jax.axes import MATRIX, SERIES, STATE, VECTOR, batch_shape
from gru_jax.cells import Projected, project
from gru_jax.cells.gru import Linearisation, Preactivations


class Operands(NamedTuple):
    """What the states depend on, and its tangents and cotangents; what is optional is None where it is not given.

    Attributes:
      xs: the inputs, (T, *weight_batch, *batch, D).
      h_0: the state before the first step, (*weight_batch, *batch, H).
      kernel, bias: W and b, (*weight_batch, D, 3H) and (*weight_batch, 3H).
      recurrent_kernel, recurrent_bias: U and c_n, (*weight_batch, H, 3H) and (*weight_batch, H).
      dropout_mask: multiplies the state where it enters a product with U; a constant for differentiation.
      mask: (T, *weight_batch, *batch, 1), bool; where False the state is held.
      resets: shaped alike; where True `reset_state`, or zero, takes the place of the state before the step.
    """

    xs: Annotated[Any, SERIES]
    h_0: Annotated[Any, STATE]
    kernel: Annotated[Any, MATRIX]
    recurrent_kernel: Annotated[Any, MATRIX]
    bias: Annotated[Any, VECTOR] = None
    recurrent_bias: Annotated[Any, VECTOR] = None
    dropout_mask: Annotated[Any, STATE] = None
    mask: Annotated[Any, SERIES] = None
    resets: Annotated[Any, SERIES] = None
    reset_state: Annotated[Any, STATE] = None

    @property
    def weight_axes(self) -> int:
        """The number of axes of the weight batch."""
        return self.recurrent_kernel.ndim - 2

    def weight_count(self) -> int:
        """The numbers in W and U, of one of the weight batch."""
        return math.prod(self.kernel.shape[-2:]) + math.prod(self.recurrent_kernel.shape[-2:])

    def state_count(self) -> int:
        """The numbers in the states of all steps."""
        return self.xs.shape[0] * math.prod(batch_shape(self)[0]) * self.h_0.shape[-1]

    def projected(self) -> Projected:
        """x W + b of each gate, three arrays (T, *weight_batch, *batch, H)."""
        bias = None if self.bias is None else self.over_batch(self.bias)
        return project(self.kernel, bias, self.xs, self.h_0.dtype, 1)

    def over_batch(self, bias: jax.Array) -> jax.Array:
        """A bias (*weight_batch, K) with batch axes of size 1."""
        return bias.reshape(*bias.shape[:-1], *[1] * (self.h_0.ndim - 1 - self.weight_axes), bias.shape[-1])

    def candidate_bias(self) -> jax.Array | None:
        """c_n with batch axes, or None."""
        return None if self.recurrent_bias is None else self.over_batch(self.recurrent_bias)


NO_OPERANDS = Operands(*[None] * len(Operands._fields))


class JvpOperands(NamedTuple):
    """What the tangent of the states depends on.

    Attributes:
      primals: what the states depend on.
      hs: the states, (T, *weight_batch, *batch, H).
      residuals: the preactivations, if they were saved.
      tangents: of the primals, None for zero.
    """

    primals: Operands
    hs: Annotated[Any, SERIES]
    residuals: Preactivations | None
    tangents: Operands

    @property
    def weight_axes(self) -> int:
        """The number of axes of the weight batch."""
        return self.primals.weight_axes


class VjpOperands(NamedTuple):
    """What the cotangents of `primals` depend on: as of `JvpOperands`, and the cotangent of the states."""

    primals: Operands
    hs: Annotated[Any, SERIES]
    residuals: Preactivations | None
    cotangent: Annotated[Any, SERIES]

    @property
    def weight_axes(self) -> int:
        """The number of axes of the weight batch."""
        return self.primals.weight_axes


class LinearOperands(NamedTuple):
    """What the linear recurrence depends on.

    Attributes:
      jac: coefficients of J_t.
      recurrent_kernel: U.
      dropout_mask, mask, resets: those of the states, or None.
      source: s, (T, *weight_batch, *batch, H).
    """

    jac: Linearisation
    recurrent_kernel: Annotated[Any, MATRIX]
    dropout_mask: Annotated[Any, STATE]
    mask: Annotated[Any, SERIES]
    resets: Annotated[Any, SERIES]
    source: Annotated[Any, SERIES]

    @property
    def weight_axes(self) -> int:
        """The number of axes of the weight batch."""
        return self.recurrent_kernel.ndim - 2
