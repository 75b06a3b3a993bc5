"""Which form of the two recurrences of any cell is faster where, as measured.

The figures are gradients of an LSTM, as multiples of the faster of Flax' two LSTM cells (T, B, D, H): by autodiff of
the plain scan, by the two recurrences, and by these with saved products (one run, 2 cores, AVX2; a ratio varies by a
tenth from run to run).

    100,   8,  64, 128      0.88  1.50  1.63
    2000,  1,  64, 128      1.00  1.20  1.50
    1000,  4,  32,  64      1.02  1.35  1.47
    100,  32,  64, 128      0.75  1.00  0.85
    1000, 16,  32,  64      1.04  1.08  0.87
    50,  256,  32,  32      1.02  0.96  1.03
    100, 128, 128, 256      0.98  0.68  0.97
    100,  64, 512, 512      1.19  0.94  1.06
"""

import math
from typing import Any

import jax

from gru_jax.settings import config

FEW_SEQUENCES = 8
"""Up to so many the step is bound by what surrounds its products, of which the two recurrences have least."""
MANY_WEIGHTS = 1 << 17
"""With more numbers in the parameters, a product more in every step costs more than memory does."""


def saves_products(params: Any, batch: tuple[int, ...]) -> bool:
    """Whether a gradient is faster on a CPU if products of the state with weights are saved for it."""
    if not config.keep_residuals or jax.default_backend() != "cpu":
        return False
    return _few(batch) or _many(params)


def scans(params: Any, batch: tuple[int, ...]) -> bool:
    """Whether autodiff of the plain scan is faster on a CPU, though it keeps several times as much for a gradient."""
    return jax.default_backend() == "cpu" and not _few(batch) and _many(params)


def _few(batch: tuple[int, ...]) -> bool:
    sequences = math.prod(batch)
    return isinstance(sequences, int) and sequences <= FEW_SEQUENCES  # no int in an export for any size


def _many(params: Any) -> bool:
    return sum(leaf.size for leaf in jax.tree.leaves(params)) > MANY_WEIGHTS
