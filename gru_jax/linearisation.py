"""The linearisation of a GRU step: its Jacobian J_t = ∂h_t/∂h_tm1 as five elementwise coefficients and U.

Once all states are known, the gates and with them the coefficients of every step follow in parallel over time. With
q = h_tm1 U_n + c_n, c_z = (h_tm1 − n) ⊙ σ'(·) and a_n = (1 − z) ⊙ φ'(·):

    reset after   J y = z ⊙ y + c_r ⊙ (y U_r) + c_z ⊙ (y U_z) + a_n ⊙ r ⊙ (y U_n)     c_r = a_n ⊙ q ⊙ σ'(·)
    reset before  J y = z ⊙ y + c_z ⊙ (y U_z) + a_n ⊙ ((c_r ⊙ (y U_r) + r ⊙ y) U_n)   c_r = h_tm1 ⊙ σ'(·)

A dropout mask m on the recurrent connections multiplies h and y wherever they enter a product with U.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import gates
from gru_jax.cells import GRU, Projected, lifted, product, project, split


class Preactivations(NamedTuple):
    """What the activations of a step act on, each (T, *group, *batch, H) or, for one step, without the time axis.

    Attributes:
      r, z, n: of the reset gate, the update gate and the candidate.
      q: h_tm1 U_n + c_n, which the reset gate multiplies; None where it acts before the product.
    """

    r: jax.Array
    z: jax.Array
    n: jax.Array
    q: jax.Array | None


def preactivation_count(cell: GRU) -> int:
    """How many there are: q only where the reset gate acts after the product."""
    return 4 if cell.reset_after else 3


class Linearisation(NamedTuple):
    """Coefficients of J_t, each (T, *group, *batch, H) or, for one step, without the time axis."""

    z: jax.Array
    r: jax.Array
    c_r: jax.Array
    c_z: jax.Array
    a_n: jax.Array


def preactivations(
    cell: GRU,
    projected: Projected,
    h_tm1: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    drop: jax.Array | None,
    lead: int = 1,
) -> Preactivations:
    """The preactivations at all steps at once, from the states before them; or at one step.

    Args:
      cell: the equations.
      projected: x_t W + b of each gate, three arrays (*lead, *group, *batch, H).
      h_tm1: (*lead, *group, *batch, H).
      kernel: U, (*group, H, 3H).
      bias: c_n, broadcastable to h_tm1.
      drop: recurrent dropout mask, broadcastable to h_tm1, or None.
      lead: the number of time axes, 1 or 0.
    """
    x_r, x_z, x_n = projected
    h_in = _dropped(h_tm1, drop)
    if cell.reset_after:
        h_r, h_z, h_n = split(product(h_in, kernel, lead))
        q = h_n + lifted(bias, h_n.ndim)
        return Preactivations(x_r + h_r, x_z + h_z, x_n + gates.reset_gate(x_r, h_r, cell.gate) * q, q)
    h_r, h_z = split(product(h_in, _rz(kernel), lead), 2)
    rh_n = product(gates.reset_gate(x_r, h_r, cell.gate) * h_in, _n(kernel), lead)
    return Preactivations(x_r + h_r, x_z + h_z, x_n + rh_n, None)


def activated(cell: GRU, at: Preactivations, h_tm1: jax.Array) -> jax.Array:
    """The state h_t that the preactivations lead to."""
    return gates.interpolate(cell.gate(at.z), h_tm1, cell.candidate(at.n))


def linearise(cell: GRU, at: Preactivations, h_tm1: jax.Array, drop: jax.Array | None) -> Linearisation:
    """The coefficients of J, from the states before and the preactivations; arguments as in `preactivations`."""
    (r, slope_r), (z, slope_z) = _with_slope(cell.gate, at.r), _with_slope(cell.gate, at.z)
    n, slope_n = _with_slope(cell.candidate, at.n)
    a_n = (1 - z) * slope_n
    c_r = _dropped(h_tm1, drop) * slope_r if at.q is None else a_n * at.q * slope_r
    return Linearisation(z, r, c_r, (h_tm1 - n) * slope_z, a_n)


def source(
    reset_after: bool,
    at: Linearisation,
    h_tm1: jax.Array,
    kernel: jax.Array,
    drop: jax.Array | None,
    d_projected: Projected | None,
    d_kernel: jax.Array | None,
    d_bias: jax.Array | None,
    lead: int = 1,
) -> jax.Array:
    """The tangent of h_t at fixed h_tm1: what the tangents of everything but the state add at each step.

    Args:
      reset_after: where the reset gate acts.
      at: the coefficients.
      h_tm1, kernel, drop: as in `preactivations`.
      d_projected, d_kernel, d_bias: tangents of x W + b, U and c_n; None for zero.
      lead: the number of time axes, 1 or 0.
    """
    d_r, d_z, d_n = d_projected or 3 * [jnp.zeros_like(at.z)]
    if d_kernel is not None:
        h_in = _dropped(h_tm1, drop)
        if reset_after:
            h_r, h_z, h_n = project(d_kernel, None, h_in, h_in.dtype, lead)
            d_n = d_n + at.r * h_n
        else:
            h_r, h_z = project(_rz(d_kernel), None, h_in, h_in.dtype, lead, 2)
            d_n = d_n + product(at.r * h_in, _n(d_kernel), lead)
        d_r, d_z = d_r + h_r, d_z + h_z
    if reset_after:
        d_n = d_n if d_bias is None else d_n + at.r * lifted(d_bias, at.r.ndim)
        return at.c_r * d_r + at.c_z * d_z + at.a_n * d_n
    return at.c_z * d_z + at.a_n * (d_n + product(at.c_r * d_r, _n(kernel), lead))


def apply(
    reset_after: bool, at: Linearisation, kernel: jax.Array, drop: jax.Array | None, y: jax.Array, lead: int = 0
) -> jax.Array:
    """J y, at one step (lead = 0) or at all (lead = 1)."""
    y_in = _dropped(y, drop)
    if reset_after:
        y_r, y_z, y_n = split(product(y_in, kernel, lead))
        return at.z * y + at.c_r * y_r + at.c_z * y_z + at.a_n * (at.r * y_n)
    y_r, y_z = split(product(y_in, _rz(kernel), lead), 2)
    return at.z * y + at.c_z * y_z + at.a_n * product(at.c_r * y_r + at.r * y_in, _n(kernel), lead)


def apply_transposed(
    reset_after: bool, at: Linearisation, kernel_t: jax.Array, drop: jax.Array | None, y: jax.Array, lead: int = 0
) -> jax.Array:
    """Jᵀ y, at one step (lead = 0) or at all (lead = 1); kernel_t is Uᵀ, (*group, 3H, H)."""
    candidate, features = at.a_n * y, y.shape[-1]
    if reset_after:
        through = jnp.concatenate([at.c_r * y, at.c_z * y, at.r * candidate], axis=-1)
        return at.z * y + _dropped(product(through, kernel_t, lead), drop)
    v = product(candidate, kernel_t[..., 2 * features :, :], lead)
    through = jnp.concatenate([at.c_r * v, at.c_z * y], axis=-1)
    return at.z * y + _dropped(at.r * v + product(through, kernel_t[..., : 2 * features, :], lead), drop)


def _with_slope(function: gates.Activation, preactivation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An activation's value and its derivative."""
    return jax.jvp(function, (preactivation,), (jnp.ones_like(preactivation),))


def _dropped(h: jax.Array, drop: jax.Array | None) -> jax.Array:
    return h if drop is None else h * lifted(drop, h.ndim)


def _rz(kernel: jax.Array) -> jax.Array:
    return kernel[..., : 2 * kernel.shape[-2]]


def _n(kernel: jax.Array) -> jax.Array:
    return kernel[..., 2 * kernel.shape[-2] :]
