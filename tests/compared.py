"""The table of the cells that the GRU is compared with: their steps in the oracle, and a random problem each."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import initializers
from gru_jax.cells import LSTM, MGU, Elman, Leaky, MinGRU, RefineGRU
from tests import oracle
from tests.cases import BATCH, FEATURES, IN_FEATURES, STEPS, flags, normal_init

TAU = (1.0, 3.0, 10.0, 50.0)


class Case(NamedTuple):
    """A cell, its step in the oracle, the paper's letters for its gates; after a minus its gate has the other sign."""

    cell: gru_jax.cells.Cell
    step: Callable
    letters: str


CASES = {
    "lstm": Case(LSTM(), oracle.lstm, "i f g o"),
    "elman": Case(Elman(), oracle.leaky, "n"),
    "leaky_fixed": Case(Leaky(TAU), oracle.leaky, "n"),
    "leaky_learned": Case(Leaky(), oracle.leaky, "n"),
    "mgu": Case(MGU(), oracle.mgu, "-f n"),
    "mingru": Case(MinGRU(), oracle.mingru, "-z n"),
    "refine": Case(RefineGRU(), oracle.refine_gru, "r f s n"),
}
KEY = jax.random.key(0)

each_case = pytest.mark.parametrize("case", CASES)
each_run = pytest.mark.parametrize(
    ("case", "method"),
    [(name, method) for name, case in CASES.items() for method in case.cell.methods if method != "auto"],
)


def weights(case, params):
    """The oracle's weights, in the paper's letters and signs."""
    w = {"tau": 1.0}
    letters = case.letters.split()
    for field, name in (("kernel", "W"), ("recurrent_kernel", "U"), ("bias", "b")):
        if (packed := getattr(params, field, None)) is not None:
            for letter, block in zip(letters, np.split(np.asarray(packed, np.float64), len(letters), -1), strict=True):
                w[f"{name}_{letter[-1]}"] = -block if letter[0] == "-" else block
    if getattr(params, "recurrent_bias", None) is not None:
        w["c_n"] = np.asarray(params.recurrent_bias, np.float64)
    if isinstance(case.cell, Leaky):
        w["tau"] = TAU if params.leak is None else 1 + np.exp(np.asarray(params.leak, np.float64))
    return w


def problem(case, *, dtype=jnp.float64, steps=STEPS):
    """Random parameters, inputs and initial state."""
    keys = jax.random.split(KEY, 3)
    # Not orthogonal: a QR decomposition takes longer to compile than all the rest.
    params = case.cell.init(
        keys[0],
        IN_FEATURES,
        FEATURES,
        bias_init=normal_init,
        recurrent_kernel_init=initializers.lecun_normal,
        dtype=jnp.float64,
    )
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    zero = case.cell.initial_state(params, (BATCH,))
    leaves, structure = jax.tree.flatten(zero)
    state_0 = jax.tree.unflatten(
        structure, jax.random.normal(keys[1], (len(leaves), *leaves[0].shape), leaves[0].dtype)
    )
    return params, jax.random.normal(keys[2], (steps, BATCH, IN_FEATURES), dtype), state_0


def chosen(options, state_0, steps=STEPS):
    """The arguments of `unroll` that a row of the table names; of `resets` a reset_state besides, unlike state_0."""
    keys = jax.random.split(KEY)
    every = {
        "mask": jax.random.bernoulli(keys[0], 0.7, (steps, BATCH)),
        "lengths": jnp.arange(steps, steps - 2 * BATCH, -2)[:BATCH],
        "resets": jax.random.bernoulli(keys[1], 0.3, (steps, BATCH)),
        "reverse": True,
    }
    start = {"reset_state": jax.tree.map(lambda part: part[::-1] / 2, state_0)} if "resets" in options else {}
    return start | {name: every[name] for name in options if name in every}


def expected(case, params, xs, state_0, options):
    mask, resets = (None if flag is None else np.asarray(flag) for flag in flags(options))
    parts = tuple(np.asarray(part, np.float64) for part in jax.tree.leaves(state_0))
    start = jax.tree.map(np.asarray, options.get("reset_state"))
    everything = {
        "mask": mask,
        "resets": resets,
        "reset_state": None if start is None else tuple(jax.tree.leaves(start)),
        "reverse": options.get("reverse", False),
    }
    return oracle.run(case.step, weights(case, params), np.asarray(xs, np.float64), parts, **everything)


def flat(result):
    """(state_T, hs) as the oracle has it, in float64."""
    state_T, hs = jax.tree.map(lambda part: np.asarray(part, np.float64), result)
    return tuple(jax.tree.leaves(state_T)), hs
