"""How frameworks pack the weights of one cell: a table, and one engine that reads it."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from gru_jax.cells import Params


class PackedWeights(NamedTuple):
    """Weights of one cell as a framework has them.

    Attributes:
      kernel: (in_features, 3·features), or its transpose.
      recurrent_kernel: (features, 3·features), or its transpose.
      bias: (3·features,), or None.
      recurrent_bias: (3·features,), or (features,) where it is that of the candidate alone, or None.
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
      transposed: whether matrices are (3·features, …), to be multiplied from the left.
      replaces: whether an open update gate replaces the state. Ours keeps it, so with σ(−a) = 1 − σ(a) its weights and
        bias change their sign.
      second: the gates that have a bias on the recurrent side: "rzn", "n" or "".
    """

    gates: str
    transposed: bool = False
    replaces: bool = False
    second: str = "rzn"

    def unpack(self, packed: PackedWeights, reset_after: bool) -> Params:
        """Parameters in our order.

        Of two biases whose terms are added before the activation the sum is kept: those of r and z, and with reset
        before, whose recurrent bias is outside of the reset gate, those of n. With reset after, a recurrent bias that
        is not given is zero.
        """
        kernels = (np.asarray(value).T if self.transposed else value for value in packed[:2])
        kernel, recurrent_kernel = map(self._ours, kernels)
        if packed.bias is None:
            return Params(kernel, recurrent_kernel)
        bias, features = self._ours(packed.bias), recurrent_kernel.shape[0]
        second: Any = (
            np.zeros(features, bias.dtype) if packed.recurrent_bias is None else np.asarray(packed.recurrent_bias)
        )
        if second.size == 3 * features:
            second = self._ours(second)
            summed = slice(None, 2 * features if reset_after else None)
            bias = bias.astype(np.result_type(bias, second))
            bias[summed] += second[summed]
            second = second[2 * features :]
        return Params(kernel, recurrent_kernel, bias, second.copy() if reset_after else None)

    def pack(self, params: Params, use_bias: bool, dtype: Any = None) -> PackedWeights:
        """The framework's weights; biases that a cell has not are zero, and None without use_bias.

        Args:
          params: of a cell.
          use_bias: whether there are to be biases.
          dtype: to cast to, if not None.

        Raises:
          ValueError: if the recurrent bias is not zero and the framework has none.
        """
        given: Any = [None if value is None else np.asarray(value).astype(dtype or value.dtype) for value in params]
        _, recurrent_kernel, bias, recurrent_bias = given
        if not self.second and recurrent_bias is not None and recurrent_bias.any():
            raise ValueError("recurrent_bias must be zero: this framework's cell has none, got other values")
        kernel, recurrent = (self._theirs(value).T if self.transposed else self._theirs(value) for value in given[:2])
        if not use_bias:
            return PackedWeights(kernel, recurrent)
        zero = np.zeros(recurrent_kernel.shape[0], recurrent_kernel.dtype)
        bias = self._theirs(np.tile(zero, 3) if bias is None else bias)
        second = zero if recurrent_bias is None else np.array(recurrent_bias)
        if self.second == "rzn":
            second = self._theirs(np.concatenate([zero, zero, second]))
        return PackedWeights(kernel, recurrent, bias, second if self.second else None)

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
KERAS_BEFORE = Packing("zrn", second="")
LINEN = Packing("rzn", second="n")
NNX = Packing("rzn", second="")
HAIKU = Packing("zrn", replaces=True, second="")
EQUINOX = Packing("rzn", transposed=True, second="n")
