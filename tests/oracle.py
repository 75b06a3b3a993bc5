"""The GRU as a NumPy loop over time, batch entry and nothing else, written from the published equations.

Shares no code with the package: weights are plain matrices by gate, the loop is the definition.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(w, xs, h_0, *, reset_after, candidate=np.tanh, mask=None, resets=None, reverse=False, drop=None):
    """States of one sequence batch.

    Args:
      w: dict with W_r, W_z, W_n (D, H), U_r, U_z, U_n (H, H), b_r, b_z, b_n, c_n (H,).
      xs: (T, B, D). h_0: (B, H). mask, resets: (T, B). drop: (B, H).

    Returns:
      (h_T, hs), (B, H) and (T, B, H).
    """
    steps, batch, _ = xs.shape
    hs = np.zeros((steps, batch, h_0.shape[1]))
    h_last = h_0.copy()
    for b in range(batch):
        h = h_0[b]
        for t in range(steps)[:: -1 if reverse else 1]:
            if resets is not None and resets[t, b]:
                h = h_0[b]
            if mask is not None and not mask[t, b]:
                continue
            x = xs[t, b]
            seen = h if drop is None else h * drop[b]
            r = sigmoid(x @ w["W_r"] + w["b_r"] + seen @ w["U_r"])
            u = sigmoid(x @ w["W_z"] + w["b_z"] + seen @ w["U_z"])
            if reset_after:
                n = candidate(x @ w["W_n"] + w["b_n"] + r * (seen @ w["U_n"] + w["c_n"]))
            else:
                n = candidate(x @ w["W_n"] + w["b_n"] + (r * seen) @ w["U_n"])
            h = u * h + (1 - u) * n
            hs[t, b] = h
        h_last[b] = h
    return h_last, hs


def weights(params):
    """The oracle's weights from the package's packed ones, whose gates lie r, z, n side by side."""
    kernel, recurrent_kernel, bias, recurrent_bias = (None if p is None else np.asarray(p, np.float64) for p in params)
    features = recurrent_kernel.shape[0]
    w = {}
    for i, gate in enumerate("rzn"):
        block = slice(i * features, (i + 1) * features)
        w[f"W_{gate}"], w[f"U_{gate}"] = kernel[:, block], recurrent_kernel[:, block]
        w[f"b_{gate}"] = np.zeros(features) if bias is None else bias[block]
    w["c_n"] = np.zeros(features) if recurrent_bias is None else recurrent_bias
    return w
