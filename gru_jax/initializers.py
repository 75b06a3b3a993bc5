"""Initial values of a GRU's weights, in the form of `jax.nn.initializers`: ``init(key, shape, dtype) -> array``.

A GRU's matrices hold three gates. An initializer of this package or of `jax.nn.initializers` is applied to each gate on
its own, so that fans and orthogonality mean what they mean for a single matrix, however the gates are stored.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gru_jax import checks

Initializer = Callable[..., jax.Array]

glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()
lecun_normal: Initializer = jax.nn.initializers.lecun_normal()
zeros: Initializer = jax.nn.initializers.zeros


def orthogonal(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """`jax.nn.initializers.orthogonal()`, drawn in float32 for half precision, where JAX has no QR decomposition.

    >>> orthogonal(jax.random.key(0), (3, 3), jnp.bfloat16).dtype
    dtype(bfloat16)
    """
    return jax.nn.initializers.orthogonal()(key, shape, jnp.promote_types(dtype, jnp.float32)).astype(dtype)


def chrono(max_time: int) -> Initializer:
    """Bias of the update gate for memories as long as `max_time` steps: b_z = ln U[1, max_time − 1].

    A unit whose update gate stays at σ(b_z) forgets with time constant 1 + exp(b_z), which this spreads uniformly over
    [2, max_time].

    Args:
      max_time: the longest dependency expected, in steps; at least 3.

    Returns:
      An initializer for one gate's bias; pass it as ``update_bias_init``.

    Raises:
      ValueError: if max_time is below 3.

    Reference:
      C. Tallec, Y. Ollivier: Can recurrent neural networks warp time? ICLR 2018 (arXiv:1804.11188), there for the
      forget gate of an LSTM; here the GRU's update gate, in the form that keeps, takes its place.

    >>> b_z = chrono(100)(jax.random.key(0), (1000,))
    >>> bool((b_z >= 0).all() and (b_z <= jnp.log(99.)).all())
    True
    """
    checks.integer("max_time", max_time, at_least=3)

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.log(jax.random.uniform(key, shape, dtype, minval=1.0, maxval=max_time - 1.0))

    return init


def per_gate(init: Initializer, key: jax.Array, rows: int, features: int, dtype: Any) -> jax.Array:
    """A packed matrix (rows, 3·features) whose three blocks r, z, n are drawn from `init` one by one.

    The blocks are drawn by one `vmap`: one compiled decomposition for an orthogonal `init` instead of three.
    """
    blocks = jax.vmap(lambda k: init(k, (rows, features), dtype))(jax.random.split(key, 3))
    return blocks.transpose(1, 0, 2).reshape(rows, 3 * features)
