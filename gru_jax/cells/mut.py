"""Three mutants of the GRU, the best of ten thousand architectures in an evolutionary search."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from gru_jax import gates
from gru_jax.cells.affine import lifted, product, project, split
from gru_jax.cells.gru import CHO2014
from gru_jax.cells.packed import PackedCell, Params


@dataclasses.dataclass(frozen=True)
class MUT1(PackedCell[Params]):
    """MUT1: a GRU that resets before the product, and whose update gate does not depend on the state.

    ::

        z = σ(x W_z + b_z)              r = σ(x W_r + h U_r + b_r)
        n = tanh((r ⊙ h) U_n + tanh(x W_n) + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper has tanh(x) in n, which needs as many inputs as units; W_n = I gives the paper's cell. Its gate z
    replaces, so its weights W_z, b_z are minus ours. Our gate keeps. ``update_bias_init`` draws b_z.

    `Params`, 3 (DH + H) + 2 H² of them; gates in the order r, z, n, of which r and n have recurrent weights.

    Reference:
      R. Jozefowicz, W. Zaremba, I. Sutskever: An empirical exploration of recurrent network architectures, ICML 2015,
      section 4; the equations are taken from two summaries that agree, not from the paper itself.

    >>> cell = MUT1()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    recurrent_order: ClassVar[str] = "rn"
    update_gate: ClassVar[str] = "z"

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_r, x_z, x_n = project(params.kernel, None, x_t, h_tm1.dtype)
        bias = jnp.zeros(params.kernel.shape[-1:], h_tm1.dtype) if params.bias is None else params.bias
        b_r, b_z, b_n = split(lifted(bias, h_tm1.ndim).astype(h_tm1.dtype))
        kernel_r, kernel_n = split(params.recurrent_kernel, 2)
        r = gates.reset_gate(x_r + b_r, product(h_tm1, kernel_r))
        n = gates.candidate_reset_before(jnp.tanh(x_n) + b_n, product(r * h_tm1, kernel_n))
        return {"r": r, "z": jax.nn.sigmoid(x_z + b_z), "n": n}


@dataclasses.dataclass(frozen=True)
class MUT2(PackedCell[Params]):
    """MUT2: a GRU that resets before the product.

    ::

        z = σ(x W_z + h U_z + b_z)      r = σ(x W_r + h U_r + b_r)
        n = tanh((r ⊙ h) U_n + x W_n + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper has x itself in r, which needs as many inputs as units; W_r = I gives the paper's cell. With a matrix
    there the equations are those of `gru_jax.CHO2014`. The paper's gate z replaces, so its weights W_z, U_z, b_z are
    minus ours. Our gate keeps. ``update_bias_init`` draws b_z.

    `Params`, 3 (DH + H² + H) of them; gates in the order r, z, n.

    Reference:
      As of `MUT1`.

    >>> cell = MUT2()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        return CHO2014.gate_values(params, h_tm1, x_t)


@dataclasses.dataclass(frozen=True)
class MUT3(PackedCell[Params]):
    """MUT3: a GRU that resets before the product, and whose update gate depends on the tanh of the state.

    ::

        z = σ(x W_z + tanh(h) U_z + b_z)        r = σ(x W_r + h U_r + b_r)
        n = tanh((r ⊙ h) U_n + x W_n + b_n)
        h_t = z ⊙ h_tm1 + (1 − z) ⊙ n

    The paper's gate z replaces, so its weights W_z, U_z, b_z are minus ours. Our gate keeps. ``update_bias_init`` draws
    b_z.

    `Params`, 3 (DH + H² + H) of them; gates in the order r, z, n.

    Reference:
      As of `MUT1`.

    >>> cell = MUT3()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))).shape
    (2, 4)
    """

    order: ClassVar[str] = "rzn"
    update_gate: ClassVar[str] = "z"

    def gate_values(self, params: Params, h_tm1: jax.Array, x_t: jax.Array, /) -> dict[str, jax.Array]:
        x_r, x_z, x_n = project(params.kernel, params.bias, x_t, h_tm1.dtype)
        kernel_r, kernel_z, kernel_n = split(params.recurrent_kernel)
        r = gates.reset_gate(x_r, product(h_tm1, kernel_r))
        z = gates.update_gate(x_z, product(jnp.tanh(h_tm1), kernel_z))
        return {"r": r, "z": z, "n": gates.candidate_reset_before(x_n, product(r * h_tm1, kernel_n))}
