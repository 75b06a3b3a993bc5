"""The GRU as a NumPy loop over time, batch entry and nothing else, written from the published equations.

Shares no code with the package: weights are plain matrices by gate, the loop is the definition.
"""

import numpy as np


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(
    w, xs, h_0, *, reset_after, candidate=np.tanh, mask=None, resets=None, reset_state=None, reverse=False, drop=None
):
    """States of one sequence batch.

    Args:
      w: dict with W_r, W_z, W_n (D, H), U_r, U_z, U_n (H, H), b_r, b_z, b_n, c_n (H,).
      xs: (T, B, D). h_0, reset_state, drop: (B, H). mask, resets: (T, B). No reset_state is zero.

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
                h = np.zeros_like(h) if reset_state is None else reset_state[b]
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


# --- Other cells: one step of one sequence, as the papers write it ----------------------------------------------------


def lstm(w, state, x):
    h, c = state
    i, f, o = (sigmoid(x @ w[f"W_{k}"] + h @ w[f"U_{k}"] + w[f"b_{k}"]) for k in "ifo")
    g = np.tanh(x @ w["W_g"] + h @ w["U_g"] + w["b_g"])
    c = f * c + i * g
    return o * np.tanh(c), c


def leaky(w, state, x):
    """With w["tau"] = 1 the simple recurrent network."""
    (h,) = state
    n = np.tanh(x @ w["W_n"] + h @ w["U_n"] + w["b_n"])
    return (h + (n - h) / w["tau"],)


def mgu(w, state, x):
    """Zhou et al. 2016; the gate f replaces."""
    (h,) = state
    f = sigmoid(x @ w["W_f"] + h @ w["U_f"] + w["b_f"])
    n = np.tanh((f * h) @ w["U_n"] + x @ w["W_n"] + w["b_n"])
    return ((1 - f) * h + f * n,)


def mingru(w, state, x):
    """Feng et al. 2024; the gate z replaces."""
    (h,) = state
    z, v = sigmoid(x @ w["W_z"] + w["b_z"]), x @ w["W_n"] + w["b_n"]
    n = np.array([a + 0.5 if a >= 0 else sigmoid(a) for a in v])
    return ((1 - z) * h + z * n,)


def refine_gru(w, state, x):
    """Gu et al. 2020, g between the bounds f² and 1 − (1 − f)², in a GRU that resets after the product."""
    (h,) = state
    r, f, s = (sigmoid(x @ w[f"W_{k}"] + h @ w[f"U_{k}"] + w[f"b_{k}"]) for k in "rfs")
    n = np.tanh(x @ w["W_n"] + w["b_n"] + r * (h @ w["U_n"] + w["c_n"]))
    g = s * (1 - (1 - f) ** 2) + (1 - s) * f**2
    return (g * h + (1 - g) * n,)


def run(step, w, xs, state_0, *, mask=None, resets=None, reset_state=None, reverse=False):
    """States of one sequence batch by one of these steps.

    Args:
      xs: (T, B, D). state_0, reset_state: tuple of (B, H). mask, resets: (T, B). No reset_state is zero.

    Returns:
      (state_T, hs), tuple of (B, H), and the first of the state at every step, (T, B, H).
    """
    steps, batch, _ = xs.shape
    hs = np.zeros((steps, *state_0[0].shape))
    last = [part.copy() for part in state_0]
    for b in range(batch):
        state = tuple(part[b] for part in state_0)
        start = (
            tuple(np.zeros_like(part[b]) for part in state_0)
            if reset_state is None
            else [part[b] for part in reset_state]
        )
        for t in range(steps)[:: -1 if reverse else 1]:
            if resets is not None and resets[t, b]:
                state = start
            if mask is None or mask[t, b]:
                state = step(w, state, xs[t, b])
                hs[t, b] = state[0]
        for part, value in zip(last, state, strict=True):
            part[b] = value
    return tuple(last), hs
