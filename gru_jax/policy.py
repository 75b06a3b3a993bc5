"""What is faster where, as measured: every constant that the choice of a form hangs on, with its figure and command.

`B` of T, B, D, H are the sequences. "Uses" of weights are steps times sequences. Two cores, unless said otherwise; a
ratio varies by a tenth from run to run.
"""

import math
from typing import Any

import jax

from gru_jax.settings import config

# --- The native kernels, or XLA ---------------------------------------------------------------------------------------

KERNEL_MAX_WEIGHTS = 1 << 18
KERNEL_MAX_WEIGHTS_PER_USE = {"gru_states": 50_000, "gru_states_vjp": 30_000}
"""A recurrence is left to XLA if W and U hold more numbers than the first, and more than the second for each use: the
kernels begin with a copy of the weights in an order of their own, and their gradient ends with a sum of the parts'
(README, "Speed")."""
KERNEL_MAX_WEIGHTS_OF_SEVERAL = 3 << 17
"""The first for the states of several sequences: of four sequences within a `lax.scan` of 128 calls of one step, D = H
= 256, the kernel is 1.24 times as fast as Flax' cell, XLA 0.99 (`python -m experiments bench --rollout --rounds 3
--sample-ms 10`, first table, medians of three processes, AVX2)."""
KERNEL_MAX_WEIGHTS_PER_USE_OF_ONE = 20_000
"""The second for the states of one sequence, whose steps are too short for the kernels' two threads to share well:
D = H = 256, T = 16 and 32: 0.8, 1.2 times as fast as XLA; 512, T = 32 and 64: 0.4, 1.2. Of two sequences 1.3 and more
from 50,000 on (one run, AVX2)."""
KERNEL_MIN_USES = 4
"""The states of fewer uses are left to XLA: a call of a kernel then takes longer than all else. One step of one
sequence within a `lax.scan` of 128 calls, D = H = 32, 128, 256: 0.66, 0.84, 0.45 times as fast as Flax' cell by the
kernel, 1.21, 0.95, 1.02 by XLA; of four sequences 1.33, 1.23, 1.24 and 1.10, 1.04, 0.99 (as above).

A call alone of one step and one sequence, D = H = 32, 128, 256, 512: 1.8, 1.6, 1.3, 1.7 times as fast by the kernel as
by XLA (table "T = 1, alone" of the same command, medians of five processes). But a lowering cannot tell whether it lies
within a `lax.scan`: JAX lowers a primitive's rule as a function of its own, cached by the types of its operands and by
its parameters, with an empty name stack (jax 0.10.2 and 0.12, `_emit_lowering_rule_as_fun`). So one choice serves
both."""
KERNEL_MAX_WEIGHTS_OF_ONE_STEP = 1 << 20
"""A single step with more weights than this is left to XLA, for however many sequences: they leave the caches. Within a
scan of 128 calls, D = H = 512 and 4, 16, 64, 256 sequences: 0.71, 0.76, 0.97, 0.97 times as fast as Flax' cell by the
kernel, 1.16, 1.05, 1.00, 0.95 by XLA (as above)."""


def kernel_pays(recurrence: str, weights: int, steps: int, sequences: int) -> bool:
    """Whether a kernel is faster than XLA.

    Args:
      recurrence: "gru_states" or "gru_states_vjp".
      weights: the numbers in W and U.
      steps, sequences: how often they are used.
    """
    uses = steps * sequences
    most, per_use = KERNEL_MAX_WEIGHTS, KERNEL_MAX_WEIGHTS_PER_USE[recurrence]
    if recurrence == "gru_states":
        if uses < KERNEL_MIN_USES or (steps == 1 and weights > KERNEL_MAX_WEIGHTS_OF_ONE_STEP):
            return False
        if sequences == 1:
            per_use = KERNEL_MAX_WEIGHTS_PER_USE_OF_ONE
        else:
            most = KERNEL_MAX_WEIGHTS_OF_SEVERAL
    return weights <= max(most, per_use * uses)


# --- A GRU's loops of XLA on a CPU ------------------------------------------------------------------------------------

SAVED_PREACTIVATIONS_MIN_WEIGHTS = 1 << 16
"""Preactivations are saved for the gradient if W and U hold more numbers than this (README, "Speed")."""
SAVED_PREACTIVATIONS_MAX_ELEMENTS = 1 << 21
"""With fewer weights they are saved if a kernel computes them and they are no more numbers than this, 8 MB: gradients
are 1.02 to 1.19 times as fast then. From 24 MB on they are slower, 0.7 to 0.9 times: the arrays leave the caches and
lie on fresh, zero-filled pages. Loops of XLA are slower with them at any size."""
HOISTED_PROJECTION_MAX_ELEMENTS = 1 << 23
"""XLA projects inputs within its loop if the projected ones would be more numbers than this, 32 MB: such an array has
left the caches when the loop reads it, and has fresh pages at every call. A gradient would gain nothing."""
ONE_PROJECTION_MAX_ROWS = 64
"""For no more rows of x than this, and for one step, x W is one product that is split: for a product of each gate its
part of W would be copied first. One product is 1.2 to 2.5 times as fast for D = H = 64 to 512 and up to 64 rows, and
0.9 to 1.2 times for 256 (AVX2)."""


def saves_preactivations(weights: int, elements: int, native: bool) -> bool:
    """Whether a gradient is faster on a CPU if the preactivations are saved for it.

    Args:
      weights: the numbers in W and U.
      elements: those in all the preactivations.
      native: whether a kernel computes them.
    """
    if not config.keep_residuals or not isinstance(weights + elements, int):  # no int in an export for any size
        return False
    few = native and elements <= SAVED_PREACTIVATIONS_MAX_ELEMENTS
    return few or weights > SAVED_PREACTIVATIONS_MIN_WEIGHTS


def hoists_projection(elements: int) -> bool:
    """Whether XLA is faster on a CPU if it projects all inputs, to so many numbers, before its loop."""
    return elements <= HOISTED_PROJECTION_MAX_ELEMENTS


# --- Any cell ---------------------------------------------------------------------------------------------------------

# Gradients of an LSTM, as multiples of the faster of Flax' two LSTM cells (T, B, D, H): by autodiff of the plain scan,
# by the two recurrences, and by these with saved products (one run of a script that was not kept, AVX2;
# `python -m experiments bench --cells` has the first two, and the third where it is chosen).
#
#     100,   8,  64, 128      0.88  1.50  1.63
#     2000,  1,  64, 128      1.00  1.20  1.50
#     1000,  4,  32,  64      1.02  1.35  1.47
#     100,  32,  64, 128      0.75  1.00  0.85
#     1000, 16,  32,  64      1.04  1.08  0.87
#     50,  256,  32,  32      1.02  0.96  1.03
#     100, 128, 128, 256      0.98  0.68  0.97
#     100,  64, 512, 512      1.19  0.94  1.06

STEP_OVERHEAD_MAX_SEQUENCES = 8
"""Up to so many the step is bound by what surrounds its products, of which the two recurrences have least."""
SAVED_PRODUCTS_MIN_WEIGHTS = 1 << 17
"""With more numbers in the parameters, a product more in every step costs more than memory does."""


def saves_products(params: Any, batch: tuple[int, ...]) -> bool:
    """Whether a gradient by the two recurrences is faster on a CPU if products of the state with weights are saved."""
    return config.keep_residuals and (_few(batch) or _many(params))


def scan_pays(params: Any, batch: tuple[int, ...]) -> bool:
    """Whether autodiff of the plain scan is faster on a CPU, though it saves several times as much for a gradient."""
    return not _few(batch) and _many(params)


def _few(batch: tuple[int, ...]) -> bool:
    sequences = math.prod(batch)
    return isinstance(sequences, int) and sequences <= STEP_OVERHEAD_MAX_SEQUENCES


def _many(params: Any) -> bool:
    return sum(leaf.size for leaf in jax.tree.leaves(params)) > SAVED_PRODUCTS_MIN_WEIGHTS
