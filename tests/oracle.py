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
            dropped = None if drop is None else drop[b]
            gates = gru_gates(w, h, xs[t, b], reset_after=reset_after, candidate=candidate, drop=dropped)
            u, n = gates["z"], gates["n"]
            h = u * h + (1 - u) * n
            hs[t, b] = h
        h_last[b] = h
    return h_last, hs


def gru_gates(w, h, x, *, reset_after, candidate=np.tanh, drop=None):
    """Reset gate, update gate and candidate of one step of one sequence."""
    seen = h if drop is None else h * drop
    r = sigmoid(x @ w["W_r"] + w["b_r"] + seen @ w["U_r"])
    u = sigmoid(x @ w["W_z"] + w["b_z"] + seen @ w["U_z"])
    if reset_after:
        n = candidate(x @ w["W_n"] + w["b_n"] + r * (seen @ w["U_n"] + w["c_n"]))
    else:
        n = candidate(x @ w["W_n"] + w["b_n"] + (r * seen) @ w["U_n"])
    return {"r": r, "z": u, "n": n}


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


# --- Other cells: one step of one sequence, as the papers write it, to the next state and the gates -------------------


def affine(w, h, x, k):
    return x @ w[f"W_{k}"] + h @ w[f"U_{k}"] + w[f"b_{k}"]


def lstm(w, state, x):
    h, c = state
    i, f, o = (sigmoid(affine(w, h, x, k)) for k in "ifo")
    g = np.tanh(affine(w, h, x, "g"))
    c = f * c + i * g
    return (o * np.tanh(c), c), {"i": i, "f": f, "g": g, "o": o}


def leaky(w, state, x):
    """With w["tau"] = 1 the simple recurrent network."""
    (h,) = state
    n = np.tanh(affine(w, h, x, "n"))
    return (h + (n - h) / w["tau"],), {"n": n, "z": 1 - 1 / np.asarray(w["tau"])}


def mgu(w, state, x):
    """Zhou et al. 2016; the gate f replaces."""
    (h,) = state
    f = sigmoid(affine(w, h, x, "f"))
    n = np.tanh((f * h) @ w["U_n"] + x @ w["W_n"] + w["b_n"])
    return ((1 - f) * h + f * n,), {"f": f, "n": n}


def mingru(w, state, x):
    """Feng et al. 2024; the gate z replaces."""
    (h,) = state
    z, v = sigmoid(x @ w["W_z"] + w["b_z"]), x @ w["W_n"] + w["b_n"]
    n = np.array([a + 0.5 if a >= 0 else sigmoid(a) for a in v])
    return ((1 - z) * h + z * n,), {"z": z, "n": n}


def refine_gru(w, state, x):
    """Gu et al. 2020, g between the bounds f² and 1 − (1 − f)², in a GRU that resets after the product."""
    (h,) = state
    r, f, s = (sigmoid(affine(w, h, x, k)) for k in "rfs")
    n = np.tanh(x @ w["W_n"] + w["b_n"] + r * (h @ w["U_n"] + w["c_n"]))
    g = s * (1 - (1 - f) ** 2) + (1 - s) * f**2
    return (g * h + (1 - g) * n,), {"r": r, "f": f, "s": s, "n": n, "g": g}


def ugrnn(w, state, x, activation=np.tanh):
    """Collins et al. 2017; the gate g keeps."""
    (h,) = state
    c, g = activation(affine(w, h, x, "c")), sigmoid(affine(w, h, x, "g"))
    return (g * h + (1 - g) * c,), {"g": g, "c": c}


def ligru(w, state, x):
    """Ravanelli et al. 2018, without its batch normalisation; the gate z keeps."""
    (h,), gates = state, ugrnn(w, state, x, lambda a: np.where(a > 0, a, 0.0))[1]
    z, candidate = gates["g"], gates["c"]
    return (z * h + (1 - z) * candidate,), gates


def cfn(w, state, x):
    """Laurent & von Brecht 2016, with a bias b_n besides."""
    (h,) = state
    theta, eta = sigmoid(affine(w, h, x, "θ")), sigmoid(affine(w, h, x, "η"))
    n = np.tanh(x @ w["W_n"] + w["b_n"])
    return (theta * np.tanh(h) + eta * n,), {"θ": theta, "η": eta, "n": n}


def mut1(w, state, x):
    """Jozefowicz et al. 2015, with a matrix W_n of the input in the candidate; in this and the others z replaces."""
    (h,) = state
    z, r = sigmoid(x @ w["W_z"] + w["b_z"]), sigmoid(affine(w, h, x, "r"))
    n = np.tanh((r * h) @ w["U_n"] + np.tanh(x @ w["W_n"]) + w["b_n"])
    return (n * z + h * (1 - z),), {"r": r, "z": z, "n": n}


def mut2(w, state, x, seen=None):
    """With a matrix W_r of the input in the reset gate."""
    (h,) = state
    z, r = sigmoid(affine(w, h if seen is None else seen, x, "z")), sigmoid(affine(w, h, x, "r"))
    n = np.tanh((r * h) @ w["U_n"] + x @ w["W_n"] + w["b_n"])
    return (n * z + h * (1 - z),), {"r": r, "z": z, "n": n}


def mut3(w, state, x):
    return mut2(w, state, x, np.tanh(state[0]))


def normalised(a, epsilon):
    return (a - np.mean(a)) / np.sqrt(np.var(a) + epsilon)


def dreamer(w, state, x, update_bias=-1, epsilon=1e-3):
    """GRUCell of DreamerV2: reset, candidate and update as it packs them; the gate replaces."""
    (h,) = state
    parts = np.concatenate([x @ w[f"W_{k}"] + h @ w[f"U_{k}"] for k in "rnu"])
    parts = normalised(parts, epsilon) * np.concatenate([w[f"g_{k}"] for k in "rnu"])
    reset, cand, update = np.split(parts + np.concatenate([w[f"b_{k}"] for k in "rnu"]), 3)
    reset, update = sigmoid(reset), sigmoid(update + update_bias)
    cand = np.tanh(reset * cand)
    return (update * cand + (1 - update) * h,), {"r": reset, "u": update, "n": cand}


def layer_norm_gru(w, state, x, epsilon=1e-5):
    """Ba et al. 2016, supplementary material: norms of the gates together and of the candidate; the gate u replaces."""
    (h,) = state
    gains = {"W": "g", "U": "k"}

    def contribution(v, matrix, letters):
        products = np.concatenate([v @ w[f"{matrix}_{k}"] for k in letters])
        return normalised(products, epsilon) * np.concatenate([w[f"{gains[matrix]}_{k}"] for k in letters])

    a = contribution(x, "W", "ur") + contribution(h, "U", "ur") + np.concatenate([w["b_u"], w["b_r"]])
    u, r = np.split(sigmoid(a), 2)
    n = np.tanh(contribution(x, "W", "n") + w["b_n"] + r * (contribution(h, "U", "n") + w["c_n"]))
    return ((1 - u) * h + u * n,), {"r": r, "u": u, "n": n}


def block_gru(w, state, x):
    """A GRU that resets after the product; each U is a stack of the blocks on its diagonal."""
    (h,) = state
    whole = dict(w)
    for k in "rzn":
        blocks = w[f"U_{k}"]
        whole[f"U_{k}"] = np.zeros((h.size, h.size))
        for i, block in enumerate(blocks):
            units = slice(i * len(block), (i + 1) * len(block))
            whole[f"U_{k}"][units, units] = block
    gates = gru_gates(whole, h, x, reset_after=True)
    return (gates["z"] * h + (1 - gates["z"]) * gates["n"],), gates


def diagonal_gru(w, state, x):
    """A GRU that resets before the product; each U is the diagonal of a matrix."""
    (h,) = state
    gates = gru_gates(w | {f"U_{k}": np.diag(w[f"U_{k}"]) for k in "rzn"}, h, x, reset_after=False)
    return (gates["z"] * h + (1 - gates["z"]) * gates["n"],), gates


def run(
    step, w, xs, state_0, *, mask=None, resets=None, reset_state=None, reverse=False, zoneout=None, zoneout_mask=None
):
    """States of one sequence batch by one of these steps.

    Args:
      xs: (T, B, D). state_0, reset_state: tuple of (B, H). mask, resets: (T, B). No reset_state is zero.
      zoneout, zoneout_mask: of each part of the state a rate, and (T, B, H); of both at most one.

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
                old, (state, _) = state, step(w, state, xs[t, b])
                if zoneout is not None:
                    state = tuple(k * a + (1 - k) * c for k, a, c in zip(zoneout, old, state, strict=True))
                if zoneout_mask is not None:
                    state = tuple(np.where(k[t, b], a, c) for k, a, c in zip(zoneout_mask, old, state, strict=True))
                hs[t, b] = state[0]
        for part, value in zip(last, state, strict=True):
            part[b] = value
    return tuple(last), hs
