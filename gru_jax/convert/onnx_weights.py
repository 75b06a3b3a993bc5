"""The weights of one direction of an ONNX GRU node: gates z, r, n, transposed, two biases side by side."""

from typing import Any

import numpy as np

from gru_jax.cells import Params

ORDER = (1, 0, 2)
"""Where ONNX' gates z, r, n lie among ours, r, z, n; and ours among ONNX'."""


def unpacked(weights: dict[str, Any], reset_after: bool) -> Params:
    """Parameters from W (3·features, in_features), R (3·features, features) and, maybe, B (6·features,)."""
    kernel, recurrent_kernel = (_reordered(weights[kind].T) for kind in "WR")
    if "B" not in weights:
        return Params(kernel, recurrent_kernel)
    bias, second = (_reordered(half) for half in np.split(weights["B"], 2))
    if not reset_after:
        return Params(kernel, recurrent_kernel, bias + second)
    of_gates = 2 * recurrent_kernel.shape[0]
    bias[:of_gates] += second[:of_gates]
    return Params(kernel, recurrent_kernel, bias, second[of_gates:])


def packed(params: Params, dtype: Any, use_bias: bool) -> dict[str, Any]:
    """W, R and, if use_bias, B of one direction; what has no bias gets zeros."""
    cast: Any = [None if value is None else np.asarray(value).astype(dtype) for value in params]
    kernel, recurrent_kernel, bias, recurrent_bias = cast
    weights = {"W": _reordered(kernel).T, "R": _reordered(recurrent_kernel).T}
    if use_bias:
        features = recurrent_kernel.shape[0]
        first = np.zeros(3 * features, dtype) if bias is None else _reordered(bias)
        inner = np.zeros(features, dtype) if recurrent_bias is None else recurrent_bias
        weights["B"] = np.concatenate([first, np.zeros(2 * features, dtype), inner])
    return weights


def _reordered(value: Any) -> Any:
    gates = np.split(value, 3, axis=-1)
    return np.concatenate([gates[i] for i in ORDER], axis=-1)
