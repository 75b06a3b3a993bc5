"""The light GRU."""

import dataclasses

import jax

from gru_jax import gates
from gru_jax.cells.ugrnn import UGRNN


@dataclasses.dataclass(frozen=True)
class LiGRU(UGRNN):
    """The light GRU, for speech: `UGRNN` with a ReLU for φ, n = max(0, x W_n + h U_n + b_n).

    The paper normalises the projections of the inputs over the batch, BN(x W), which keeps the unbounded state within
    bounds. A step does not know the statistics of a batch, so this is left to the user: normalise the inputs, or take
    `gru_jax.cells.LayerNormGRU`.

    Reference:
      M. Ravanelli, P. Brakel, M. Omologo, Y. Bengio: Light gated recurrent units for speech recognition, IEEE
      Transactions on Emerging Topics in Computational Intelligence 2018 (arXiv:1803.10225); the paper itself was not at
      hand.

    >>> import jax.numpy as jnp
    >>> cell = LiGRU()
    >>> params = cell.init(jax.random.key(0), in_features=3, features=4)
    >>> bool((cell.step(params, jnp.zeros((2, 4)), jnp.ones((2, 3))) >= 0).all())
    True
    """

    candidate: gates.Activation = jax.nn.relu
