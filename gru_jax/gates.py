"""The gate equations, each a pure function of projected inputs and recurrent products.

A gate depends on the input ``x_t`` and the state ``h_tm1`` only through affine maps. The functions here take the
results of those maps. So the same equation serves a single step, a scan, which forms the products of all gates by one
matrix multiplication, and the linearisation, which forms them for all steps at once::

    x_g = x_t W_g + b_g          "projected input of gate g",    shape (..., features)
    h_g = h_tm1 U_g              "recurrent product of gate g",  shape (..., features)

Every argument broadcasts over leading batch dimensions. ``h``: state, ``r``: reset gate, ``z``: update gate (``u`` in
Goodfellow et al.), ``n``: candidate. The update gate keeps: z = 1 copies the old state, z = 0 replaces it.

References:
  [G] I. Goodfellow, Y. Bengio, A. Courville: Deep Learning, MIT Press 2016, section 10.10.2, equations 10.45 to 10.47.
  [C] K. Cho et al.: Learning Phrase Representations using RNN Encoder-Decoder, arXiv:1406.1078 (v1: reset after the
      product, v3: reset before it), equations 5 to 8 of v3.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def update_gate(x_z: jax.Array, h_z: jax.Array, gate: Activation = jax.nn.sigmoid) -> jax.Array:
    """How much of each unit's state is kept: z = σ(x W_z + b_z + h_tm1 U_z).

    [G] equation 10.46, where it is called u; [C] equation 6.

    Args:
      x_z: projected input, (..., features).
      h_z: recurrent product, (..., features).
      gate: elementwise activation σ, onto (0, 1).

    Returns:
      z, (..., features).

    >>> float(update_gate(jnp.float32(0.), jnp.float32(0.)))
    0.5
    """
    return gate(x_z + h_z)


def reset_gate(x_r: jax.Array, h_r: jax.Array, gate: Activation = jax.nn.sigmoid) -> jax.Array:
    """Which parts of the state form the next candidate: r = σ(x W_r + b_r + h_tm1 U_r).

    [G] equation 10.47; [C] equation 5.

    Args:
      x_r: projected input, (..., features).
      h_r: recurrent product, (..., features).
      gate: elementwise activation σ, onto (0, 1).

    Returns:
      r, (..., features).
    """
    return gate(x_r + h_r)


def candidate_reset_before(x_n: jax.Array, rh_n: jax.Array, candidate: Activation = jnp.tanh) -> jax.Array:
    """The candidate with the reset gate before the product: n = φ(x W_n + b_n + (r ⊙ h_tm1) U_n).

    The inner part of [G] equation 10.45 (φ = σ there); [C] equation 8 of v3.

    Args:
      x_n: projected input, (..., features).
      rh_n: product of the gated state, (r ⊙ h_tm1) U_n, (..., features).
      candidate: elementwise activation φ.

    Returns:
      n, (..., features).
    """
    return candidate(x_n + rh_n)


def candidate_reset_after(x_n: jax.Array, h_n: jax.Array, r: jax.Array, candidate: Activation = jnp.tanh) -> jax.Array:
    """The candidate with the reset gate after the product: n = φ(x W_n + b_n + r ⊙ (h_tm1 U_n + c_n)).

    [C] in its v1; the form of cuDNN, PyTorch, Flax and Keras' default.

    Args:
      x_n: projected input, (..., features).
      h_n: recurrent product with the recurrent bias, h_tm1 U_n + c_n, (..., features).
      r: reset gate, (..., features).
      candidate: elementwise activation φ.

    Returns:
      n, (..., features).
    """
    return candidate(x_n + r * h_n)


def interpolate(z: jax.Array, h_tm1: jax.Array, n: jax.Array) -> jax.Array:
    """The new state, a leaky integration with a leak chosen per unit and step: h_t = z ⊙ h_tm1 + (1 − z) ⊙ n.

    [G] equation 10.45; [C] equation 7.

    Args:
      z: update gate, (..., features).
      h_tm1: old state, (..., features).
      n: candidate, (..., features).

    Returns:
      h_t, (..., features).

    >>> interpolate(jnp.array([1., 0.]), jnp.array([5., 5.]), jnp.array([7., 7.])).tolist()
    [5.0, 7.0]
    """
    return z * h_tm1 + (1 - z) * n


def refine(z: jax.Array, s: jax.Array) -> jax.Array:
    """The update gate moved by a refine gate s: z² at s = 0, z at s = ½, 1 − (1 − z)² at s = 1.

    A. Gu et al., arXiv:1910.09890, section 3: g = s ⊙ (1 − (1 − z)²) + (1 − s) ⊙ z², with f for z and r for s.

    Args:
      z: update gate, (..., features).
      s: refine gate, (..., features).

    Returns:
      The effective gate g, (..., features).

    >>> refine(jnp.float32(0.5), jnp.array([0., 0.5, 1.])).tolist()
    [0.25, 0.5, 0.75]
    """
    return z + (2 * s - 1) * z * (1 - z)
