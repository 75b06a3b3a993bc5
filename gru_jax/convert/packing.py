"""How frameworks pack the weights of one cell: a table, and the code that reads it."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from gru_jax.cells import Params


class PackedWeights(NamedTuple):
    """Weights of one cell in a framework's order.

    Attributes:
      kernel: (in_features, 3·features), or its transpose.
      recurrent_kernel: (features, 3·features), or its transpose.
      bias: (3·features,), or None.
      recurrent_bias: (3·features,); or (features,) if only the candidate has one; or None.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any = None
    recurrent_bias: Any = None


@dataclasses.dataclass(frozen=True)
class Packing:
    """How a framework packs a cell.

    Attributes:
      gates: the order of the gates. Ours is "rzn".
      transposed: whether matrices are (3·features, …), to be multiplied from the left.
      replaces: whether the update gate replaces the state where it is 1. Ours keeps it. Its weights and bias then
        change sign, as σ(−a) = 1 − σ(a).
      recurrent_biases: the gates that have a recurrent bias: "rzn", "n" or "".
    """

    gates: str
    transposed: bool = False
    replaces: bool = False
    recurrent_biases: str = "rzn"

    def unpack(self, packed: PackedWeights, reset_after: bool) -> Params:
        """Parameters in our order.

        Two biases that are added before the activation become one, their sum: those of r and z, and, with reset before,
        where the reset gate does not act on the recurrent bias, those of n. With reset after, a missing recurrent bias
        becomes zero.
        """
        kernels = (np.asarray(value).T if self.transposed else value for value in packed[:2])
        kernel, recurrent_kernel = map(self._ours, kernels)
        if packed.bias is None:
            return Params(kernel, recurrent_kernel)
        bias, features = self._ours(packed.bias), recurrent_kernel.shape[0]
        recurrent_bias: Any = packed.recurrent_bias
        recurrent_bias = np.zeros(features, bias.dtype) if recurrent_bias is None else np.asarray(recurrent_bias)
        if recurrent_bias.size == 3 * features:
            recurrent_bias = self._ours(recurrent_bias)
            summed = slice(None, 2 * features if reset_after else None)
            bias = bias.astype(np.result_type(bias, recurrent_bias))
            bias[summed] += recurrent_bias[summed]
            recurrent_bias = recurrent_bias[2 * features :]
        return Params(kernel, recurrent_kernel, bias, recurrent_bias.copy() if reset_after else None)

    def pack(self, params: Params, use_bias: bool, dtype: Any = None) -> PackedWeights:
        """The framework's weights. Biases that the cell lacks are zero; without use_bias they are None.

        Args:
          params: of a cell.
          use_bias: whether the framework's cell has biases.
          dtype: of the result; by default that of the parameters.

        Raises:
          ValueError: if the recurrent bias is not zero and the framework has none.
        """
        arrays: Any = [None if value is None else np.asarray(value).astype(dtype or value.dtype) for value in params]
        _, recurrent_kernel, bias, recurrent_bias = arrays
        if not self.recurrent_biases and recurrent_bias is not None and recurrent_bias.any():
            raise ValueError("recurrent_bias must be zero: this framework's cell has none, got other values")
        kernel, recurrent = (self._theirs(value).T if self.transposed else self._theirs(value) for value in arrays[:2])
        if not use_bias:
            return PackedWeights(kernel, recurrent)
        zero = np.zeros(recurrent_kernel.shape[0], recurrent_kernel.dtype)
        bias = self._theirs(np.tile(zero, 3) if bias is None else bias)
        recurrent_bias = zero if recurrent_bias is None else np.array(recurrent_bias)
        if self.recurrent_biases == "rzn":
            recurrent_bias = self._theirs(np.concatenate([zero, zero, recurrent_bias]))
        return PackedWeights(kernel, recurrent, bias, recurrent_bias if self.recurrent_biases else None)

    def _ours(self, value: Any) -> Any:
        gates = dict(zip(self.gates, np.split(np.asarray(value), 3, axis=-1), strict=True))
        return np.concatenate([self._signed(gate, gates[gate]) for gate in "rzn"], axis=-1)

    def _theirs(self, value: Any) -> Any:
        gates = dict(zip("rzn", np.split(np.asarray(value), 3, axis=-1), strict=True))
        return np.concatenate([self._signed(gate, gates[gate]) for gate in self.gates], axis=-1)

    def _signed(self, gate: str, value: Any) -> Any:
        return -value if self.replaces and gate == "z" else value


TORCH = Packing("rzn", transposed=True)
ONNX = Packing("zrn", transposed=True)
KERAS = Packing("zrn")
KERAS_BEFORE = Packing("zrn", recurrent_biases="")
LINEN = Packing("rzn", recurrent_biases="n")
NNX = Packing("rzn", recurrent_biases="")
HAIKU = Packing("zrn", replaces=True, recurrent_biases="")
EQUINOX = Packing("rzn", transposed=True, recurrent_biases="n")
