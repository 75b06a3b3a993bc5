"""The GRU as a value: its equations, and beside them their linearisation."""

import dataclasses
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from gru_jax import activations, checks, gates
from gru_jax.axes import SERIES
from gru_jax.cells.affine import Projected, biased, lifted, product, project, split
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class GRU(PackedCell[Params]):
    """The equations of a gated recurrent unit. Frozen and hashable: a static argument of `jax.jit`.

    ::

        z = σ(x W_z + h U_z + b_z)              r = σ(x W_r + h U_r + b_r)
        n = φ(x W_n + b_n + r ⊙ (h U_n + c_n))  with reset_after, else  φ(x W_n + b_n + (r ⊙ h) U_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    Named special cases: `CUDNN` (the default), `CHO2014`, `GOODFELLOW`. See `gru_jax.gates` for the sources. `Params`,
    3 (DH + H² + H) of them, and H more with reset_after.

    Attributes:
      reset_after: whether the reset gate acts after the recurrent product (True) or before it.
      gate: σ, elementwise. It must not close over traced values. What JAX has, or is σ or tanh by another name, is held
        by its name, `gru_jax.activations.Named`, so that copies of a cell are equal to it.
      candidate: φ, likewise.

    Raises:
      TypeError: if reset_after is not a bool or an activation cannot be called.

    >>> cell = GRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> h_1 = cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3)))
    >>> h_1.shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"

    reset_after: bool = True
    gate: gates.Activation = jax.nn.sigmoid
    candidate: gates.Activation = jnp.tanh

    def __post_init__(self) -> None:
        if not isinstance(self.reset_after, bool):
            raise TypeError(f"reset_after must be a bool, got {self.reset_after!r}")
        for name in ("gate", "candidate"):
            checks.function(name, getattr(self, name))
            object.__setattr__(self, name, activations.canonical(getattr(self, name)))

    @property
    def methods(self) -> tuple[str, ...]:
        # With "auto" the lowering chooses.
        return ("auto", "scan", "fused", "native")

    def layout(self, in_features: int, features: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        layout = super().layout(in_features, features)
        return layout | {"recurrent_bias": ("(features,)", (features,))} if self.reset_after else layout

    def gate_values(
        self,
        params: Params,
        h_tm1: jax.Array,
        x_t: jax.Array,
        /,
        *,
        recurrent_dropout_mask: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        projected = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        bias = params.recurrent_bias
        return gates_of(self, projected, h_tm1, params.recurrent_kernel, bias, recurrent_dropout_mask)[0]._asdict()


CUDNN = GRU()
"""Reset after, tanh: cuDNN, PyTorch, Flax, Keras' default, Equinox; Cho et al. 2014, v1."""

CHO2014 = GRU(reset_after=False)
"""Reset before, tanh: Cho et al. 2014, v3; Keras reset_after=False, Haiku, ONNX' default."""

GOODFELLOW = GRU(reset_after=False, candidate=jax.nn.sigmoid)
"""Reset before, a logistic candidate, so that h lies in (0, 1): Goodfellow et al. 2016, equations 10.45 to 10.47.

The book makes h of time t from the input and the gates of time t − 1; here, as everywhere, all are those of time t."""


class Gates(NamedTuple):
    """The values of a step's gates: reset gate, update gate and candidate."""

    r: jax.Array
    z: jax.Array
    n: jax.Array


def gates_of(
    cell: GRU,
    projected: Projected,
    h_tm1: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    dropout_mask: jax.Array | None,
    time_axes: int = 0,
) -> tuple[Gates, "Preactivations"]:
    """The equations of the gates, at one step or, from the states before them, at all steps at once.

    Args:
      cell: which equations.
      projected: x_t W + b of each gate, three arrays ([T,] *weight_batch, *batch, H).
      h_tm1: ([T,] *weight_batch, *batch, H).
      kernel: U, (*weight_batch, H, 3H).
      bias: c_n, broadcastable to h_tm1; or None.
      dropout_mask: of the recurrent connections, broadcastable to h_tm1; or None.
      time_axes: the number of time axes, 1 or 0.

    Returns:
      The gates, and what their activations act on.
    """
    x_r, x_z, x_n = projected
    h_in = _dropped(h_tm1, dropout_mask)
    if cell.reset_after:
        h_r, h_z, h_n = split(product(h_in, kernel, time_axes))
    else:
        h_r, h_z = split(product(h_in, _rz(kernel), time_axes), 2)
    # The equations of the gates, with the identity in place of their activations.
    pre_r, pre_z = gates.reset_gate(x_r, h_r, _identity), gates.update_gate(x_z, h_z, _identity)
    r = cell.gate(pre_r)
    if cell.reset_after:
        q = biased(h_n, bias)
        pre_n = gates.candidate_reset_after(x_n, q, r, _identity)
    else:
        q, pre_n = None, gates.candidate_reset_before(x_n, product(r * h_in, _n(kernel), time_axes), _identity)
    return Gates(r, cell.gate(pre_z), cell.candidate(pre_n)), Preactivations(pre_r, pre_z, pre_n, q)


def _identity(x: jax.Array) -> jax.Array:
    return x


def _dropped(h: jax.Array, dropout_mask: jax.Array | None) -> jax.Array:
    return h if dropout_mask is None else h * lifted(dropout_mask, h.ndim)


def _rz(kernel: jax.Array) -> jax.Array:
    return kernel[..., : 2 * kernel.shape[-2]]


def _n(kernel: jax.Array) -> jax.Array:
    return kernel[..., 2 * kernel.shape[-2] :]


# --- The linearisation ------------------------------------------------------------------------------------------------


class Preactivations(NamedTuple):
    """What the activations of a step act on, each (T, *weight_batch, *batch, H) or, for one step, without time.

    Attributes:
      r, z, n: of the reset gate, the update gate and the candidate.
      q: h_tm1 U_n + c_n, which the reset gate multiplies; None where it acts before the product.
    """

    r: Annotated[jax.Array, SERIES]
    z: Annotated[jax.Array, SERIES]
    n: Annotated[jax.Array, SERIES]
    q: Annotated[jax.Array | None, SERIES]


class Linearisation(NamedTuple):
    """The Jacobian J_t = ∂h_t/∂h_tm1 as five elementwise coefficients, to be read with U; shaped like `Preactivations`.

    Once all states are known, the gates and with them the coefficients of every step follow in parallel over time. With
    q = h_tm1 U_n + c_n, c_z = (h_tm1 − n) ⊙ σ'(·) and a_n = (1 − z) ⊙ φ'(·)::

        reset after   J y = z ⊙ y + c_r ⊙ (y U_r) + c_z ⊙ (y U_z) + a_n ⊙ r ⊙ (y U_n)     c_r = a_n ⊙ q ⊙ σ'(·)
        reset before  J y = z ⊙ y + c_z ⊙ (y U_z) + a_n ⊙ ((c_r ⊙ (y U_r) + r ⊙ y) U_n)   c_r = h_tm1 ⊙ σ'(·)

    A dropout mask m on the recurrent connections multiplies h and y wherever they enter a product with U.
    """

    z: Annotated[jax.Array, SERIES]
    r: Annotated[jax.Array, SERIES]
    c_r: Annotated[jax.Array, SERIES]
    c_z: Annotated[jax.Array, SERIES]
    a_n: Annotated[jax.Array, SERIES]


def linearise(cell: GRU, pre: Preactivations, h_tm1: jax.Array, dropout_mask: jax.Array | None) -> Linearisation:
    """The coefficients of J, from the states before and the preactivations; arguments as of `gates_of`."""
    (r, slope_r), (z, slope_z) = _with_slope(cell.gate, pre.r), _with_slope(cell.gate, pre.z)
    n, slope_n = _with_slope(cell.candidate, pre.n)
    a_n = (1 - z) * slope_n
    c_r = _dropped(h_tm1, dropout_mask) * slope_r if pre.q is None else a_n * pre.q * slope_r
    return Linearisation(z, r, c_r, (h_tm1 - n) * slope_z, a_n)


def source(
    reset_after: bool,
    jac: Linearisation,
    h_tm1: jax.Array,
    kernel: jax.Array,
    dropout_mask: jax.Array | None,
    d_projected: Projected | None,
    d_kernel: jax.Array | None,
    d_bias: jax.Array | None,
) -> jax.Array:
    """The tangent of h_t at fixed h_tm1, at all steps: what the tangents of everything but the state add at each.

    Args:
      reset_after: where the reset gate acts.
      jac: the coefficients.
      h_tm1, kernel, dropout_mask: as of `gates_of`.
      d_projected, d_kernel, d_bias: tangents of x W + b, U and c_n; None for zero.
    """
    d_r, d_z, d_n = d_projected or 3 * [jnp.zeros_like(jac.z)]
    if d_kernel is not None:
        h_in = _dropped(h_tm1, dropout_mask)
        if reset_after:
            h_r, h_z, h_n = project(d_kernel, None, h_in, h_in.dtype, 1)
            d_n = d_n + jac.r * h_n
        else:
            h_r, h_z = project(_rz(d_kernel), None, h_in, h_in.dtype, 1, 2)
            d_n = d_n + product(jac.r * h_in, _n(d_kernel), 1)
        d_r, d_z = d_r + h_r, d_z + h_z
    if reset_after:
        d_n = d_n if d_bias is None else d_n + jac.r * lifted(d_bias, jac.r.ndim)
        return jac.c_r * d_r + jac.c_z * d_z + jac.a_n * d_n
    return jac.c_z * d_z + jac.a_n * (d_n + product(jac.c_r * d_r, _n(kernel), 1))


def jac_vector(
    reset_after: bool,
    jac: Linearisation,
    kernel: jax.Array,
    dropout_mask: jax.Array | None,
    y: jax.Array,
    time_axes: int = 0,
) -> jax.Array:
    """J y, at one step (time_axes = 0) or at all (time_axes = 1)."""
    y_in = _dropped(y, dropout_mask)
    if reset_after:
        y_r, y_z, y_n = split(product(y_in, kernel, time_axes))
        return jac.z * y + jac.c_r * y_r + jac.c_z * y_z + jac.a_n * (jac.r * y_n)
    y_r, y_z = split(product(y_in, _rz(kernel), time_axes), 2)
    return jac.z * y + jac.c_z * y_z + jac.a_n * product(jac.c_r * y_r + jac.r * y_in, _n(kernel), time_axes)


def vector_jac(
    reset_after: bool,
    jac: Linearisation,
    kernel_t: jax.Array,
    dropout_mask: jax.Array | None,
    y: jax.Array,
    time_axes: int = 0,
) -> jax.Array:
    """Jᵀ y, at one step (time_axes = 0) or at all (time_axes = 1); kernel_t is Uᵀ, (*weight_batch, 3H, H)."""
    candidate, features = jac.a_n * y, y.shape[-1]
    if reset_after:
        through = jnp.concatenate([jac.c_r * y, jac.c_z * y, jac.r * candidate], axis=-1)
        return jac.z * y + _dropped(product(through, kernel_t, time_axes), dropout_mask)
    v = product(candidate, kernel_t[..., 2 * features :, :], time_axes)
    through = jnp.concatenate([jac.c_r * v, jac.c_z * y], axis=-1)
    inner = jac.r * v + product(through, kernel_t[..., : 2 * features, :], time_axes)
    return jac.z * y + _dropped(inner, dropout_mask)


def _with_slope(function: gates.Activation, preactivation: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An activation's value and its derivative."""
    return jax.jvp(function, (preactivation,), (jnp.ones_like(preactivation),))
