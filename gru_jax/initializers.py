"""Initial values of a cell's weights, in the form of `jax.nn.initializers`: ``init(key, shape, dtype) -> array``.

A GRU's matrices hold three gates. Initializers, those of `jax.nn.initializers` too, are applied to each gate
separately. So fans and orthogonality refer to the matrix of one gate, however the gates are stored.

`chrono`, `uniform_gate` and `forget_bias` are for the bias of the gate that keeps, ``update_bias_init`` of `cell.init`:
σ(b) is the share of the state that a step keeps.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gru_jax import checks

Initializer = Callable[..., jax.Array]

zeros: Initializer = jax.nn.initializers.zeros


def is_zeros(init: Initializer | None) -> bool:
    """Whether an initializer is None or makes zeros without a key. Then no random stream is needed.

    >>> is_zeros(jax.nn.initializers.constant(0.0)), is_zeros(lecun_normal)
    (True, False)
    """
    if init is None or init is zeros:
        return True
    try:
        with jax.ensure_compile_time_eval():
            return not np.any(init(None, (2, 3), jnp.float32))
    except Exception:  # whatever a user's initializer raises without a key
        return False


forget_bias: Initializer = jax.nn.initializers.ones
"""1, so that a fresh cell keeps most of its state.

F. Gers et al., Neural Computation 2000; R. Jozefowicz et al., ICML 2015.
"""


def glorot_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """`jax.nn.initializers.glorot_uniform()` as one function, so that copies are equal and pickles load."""
    return jax.nn.initializers.glorot_uniform()(key, shape, dtype)


def lecun_normal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """`jax.nn.initializers.lecun_normal()` as one function."""
    return jax.nn.initializers.lecun_normal()(key, shape, dtype)


def orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """`jax.nn.initializers.orthogonal()`, in float32 for half precision, for which JAX has no QR decomposition.

    >>> orthogonal(jax.random.key(0), (3, 3), jnp.bfloat16).dtype
    dtype(bfloat16)
    """
    return jax.nn.initializers.orthogonal()(key, shape, at_least_float32(dtype)).astype(dtype)


def torch_uniform(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """U[−1/√H, 1/√H], from which PyTorch draws all weights and biases of a `torch.nn.GRU`.

    H is the width of the state: the last axis of one gate's kernel (D, H), recurrent kernel (H, H) and bias (H,). So it
    serves as `kernel_init`, `recurrent_kernel_init` and `bias_init`. (PyTorch has two biases for r and two for z, which
    are added; here there is one.)

    Args:
      key: a PRNG key.
      shape: (..., H), of one gate.
      dtype: of the result.

    Returns:
      The weights.

    >>> import gru_jax
    >>> drawn = dict.fromkeys(("kernel_init", "recurrent_kernel_init", "bias_init"), torch_uniform)
    >>> params = gru_jax.CUDNN.init(jax.random.key(0), in_features=3, features=100, **drawn)
    >>> [bool((0.09 < abs(leaf).max()) & (abs(leaf).max() <= 0.1)) for leaf in params]
    [True, True, True, True]
    """
    bound = shape[-1] ** -0.5
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.random.uniform(key, shape, wide, minval=-bound, maxval=bound).astype(dtype)


def chrono(max_time: int) -> Initializer:
    """Bias of the update gate for memories of up to `max_time` steps: b_z = ln U[1, max_time − 1].

    A unit whose update gate stays at σ(b_z) forgets with the time constant 1 + exp(b_z), which is uniform in
    [2, max_time].

    Args:
      max_time: the longest dependency expected, in steps; at least 3.

    Returns:
      An initializer for one gate's bias; pass it as ``update_bias_init``.

    Raises:
      ValueError: if max_time is below 3.

    Reference:
      C. Tallec, Y. Ollivier: Can recurrent neural networks warp time? ICLR 2018 (arXiv:1804.11188), for the
      forget gate of an LSTM; here for the update gate of a GRU, which keeps.

    >>> b_z = chrono(100)(jax.random.key(0), (1000,))
    >>> bool((b_z >= 0).all() and (b_z <= jnp.log(99.)).all())
    True
    """
    checks.integer("max_time", max_time, at_least=3)
    return _Chrono(int(max_time))


@dataclasses.dataclass(frozen=True)
class _Chrono:
    """The initializer that `chrono` returns. A value, equal to its copies."""

    max_time: int

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, minval=1.0, maxval=self.max_time - 1.0))


def uniform_gate(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Bias with which gates are uniform at first: b = −ln(1/u − 1), so σ(b) = u, with u ~ U[1/H, 1 − 1/H].

    As long as the weights have no effect, a unit keeps the share u of its state: the time constants 1/(1 − u) go up to
    H and follow a power law. 1 − u has the same distribution as u, so it does not matter whether the gate keeps, as
    ours do, or replaces.

    Args:
      key: a PRNG key.
      shape: (..., H), of one gate's bias.
      dtype: of the result.

    Returns:
      The bias; pass `uniform_gate` itself as ``update_bias_init``.

    Reference:
      A. Gu et al.: Improving the gating mechanism of recurrent neural networks, ICML 2020 (arXiv:1910.09890), "uniform
      gate initialisation".

    >>> keep = jax.nn.sigmoid(uniform_gate(jax.random.key(0), (100,)))
    >>> bool((keep >= 0.0099).all() and (keep <= 0.9901).all())
    True
    """
    least = 1 / max(shape[-1], 2)
    u = jax.random.uniform(key, shape, at_least_float32(dtype), minval=least, maxval=1 - least)
    return jax.scipy.special.logit(u).astype(dtype)


def per_gate(init: Initializer, key: jax.Array, rows: int, features: int, dtype: Any, gates: int = 3) -> jax.Array:
    """A packed matrix (rows, gates·features). `init` draws the block of each gate separately.

    A single `vmap` draws the blocks: so an orthogonal `init` compiles one decomposition, not one for each gate.
    """
    blocks = jax.vmap(lambda k: init(k, (rows, features), dtype))(jax.random.split(key, gates))
    return blocks.transpose(1, 0, 2).reshape(rows, gates * features)


def floating_dtype(tree: Any) -> Any:
    """The promotion of the dtypes of the floating-point leaves; float32 if there are none.

    >>> floating_dtype({"index": jnp.zeros(2, int), "weight": jnp.zeros(2, jnp.bfloat16)})
    dtype(bfloat16)
    """
    dtypes = [dtype for dtype in map(jnp.result_type, jax.tree.leaves(tree)) if jnp.issubdtype(dtype, jnp.floating)]
    return jnp.result_type(*dtypes or [jnp.float32])


def cast_floating(tree: Any, dtype: Any) -> Any:
    """A tree with its floating-point leaves cast to `dtype`. Other leaves are unchanged."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def at_least_float32(dtype: Any) -> Any:
    """The wider of a floating-point dtype and float32.

    `jnp.promote_types` gives the same, but not under ``jax_numpy_dtype_promotion="strict"``.
    """
    return jnp.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)
