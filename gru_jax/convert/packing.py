"""How frameworks pack the weights of one cell: as data, with one engine."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from gru_jax.cells import Params


class Packed(NamedTuple):
    """Weights of one cell as cuDNN, PyTorch and ONNX have them: transposed, with a bias on either side.

    Attributes:
      kernel: (3·features, in_features).
      recurrent_kernel: (3·features, features).
      bias: (3·features,), or None.
      recurrent_bias: (3·features,), or None.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any = None
    recurrent_bias: Any = None


@dataclasses.dataclass(frozen=True)
class Packing:
    """A framework's way to pack a cell.

    Attributes:
      gates: the order of the gates; ours is "rzn".
    """

    gates: str

    def unpack(self, packed: Packed, reset_after: bool) -> Params:
        """Parameters in our order.

        Of two biases whose terms are added before the activation the sum is kept: those of r and z, and with reset
        before, whose recurrent bias is outside of the reset gate, those of n.
        """
        kernel, recurrent_kernel = (self._ours(np.asarray(value).T) for value in packed[:2])
        if packed.bias is None:
            return Params(kernel, recurrent_kernel)
        bias, second = self._ours(packed.bias), self._ours(packed.recurrent_bias)
        if not reset_after:
            return Params(kernel, recurrent_kernel, bias + second)
        of_gates = 2 * recurrent_kernel.shape[0]
        bias[:of_gates] += second[:of_gates]
        return Params(kernel, recurrent_kernel, bias, second[of_gates:])

    def pack(self, params: Params, use_bias: bool, dtype: Any = None) -> Packed:
        """The framework's weights; biases that a cell has not are zero, and None without use_bias.

        Args:
          params: of a cell.
          use_bias: whether there are to be biases.
          dtype: to cast to, if not None.
        """
        given: Any = [None if value is None else np.asarray(value).astype(dtype or value.dtype) for value in params]
        kernel, recurrent_kernel, bias, recurrent_bias = given
        kernels = self._theirs(kernel).T, self._theirs(recurrent_kernel).T
        if not use_bias:
            return Packed(*kernels)
        zero = np.zeros(recurrent_kernel.shape[0], recurrent_kernel.dtype)
        bias = np.tile(zero, 3) if bias is None else bias
        second = np.concatenate([zero, zero, zero if recurrent_bias is None else recurrent_bias])
        return Packed(*kernels, self._theirs(bias), self._theirs(second))

    def _ours(self, value: Any) -> Any:
        return _gates(value, [self.gates.index(gate) for gate in "rzn"])

    def _theirs(self, value: Any) -> Any:
        return _gates(value, ["rzn".index(gate) for gate in self.gates])


TORCH = Packing("rzn")
ONNX = Packing("zrn")


def _gates(value: Any, order: list[int]) -> Any:
    """A copy of (..., 3·features) with its gates in another order."""
    gates = np.split(np.asarray(value), 3, axis=-1)
    return np.concatenate([gates[i] for i in order], axis=-1)
