"""The table of the cells that the GRU is compared with: their steps in the oracle, and a random problem each."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import initializers
from gru_jax.cells import (
    BA2016,
    CFN,
    DREAMER,
    LSTM,
    MGU,
    MUT1,
    MUT2,
    MUT3,
    UGRNN,
    BlockGRU,
    DiagonalGRU,
    Elman,
    Leaky,
    LiGRU,
    MinGRU,
    RefineGRU,
)
from tests import oracle
from tests.cases import BATCH, FEATURES, IN_FEATURES, STEPS, flags, normal_init

TAU = (1.0, 3.0, 10.0, 50.0)


class Case(NamedTuple):
    """A cell and its step in the oracle.

    Attributes:
      letters: the paper's for its gates; after a minus its gate has the other sign.
      recurrent_letters: of the gates with recurrent weights, where not all have them.
      signed: the parameters whose sign changes with that of the gate.
    """

    cell: gru_jax.cells.Cell
    step: Callable
    letters: str
    recurrent_letters: str = ""
    signed: tuple[str, ...] = ("kernel", "recurrent_kernel", "bias")


NORMALISED = ("bias", "gain", "recurrent_gain")
CASES = {
    "lstm": Case(LSTM(), oracle.lstm, "i f g o"),
    "elman": Case(Elman(), oracle.leaky, "n"),
    "leaky_fixed": Case(Leaky(TAU), oracle.leaky, "n"),
    "leaky_learned": Case(Leaky(), oracle.leaky, "n"),
    "mgu": Case(MGU(), oracle.mgu, "-f n"),
    "mingru": Case(MinGRU(), oracle.mingru, "-z n"),
    "refine": Case(RefineGRU(), oracle.refine_gru, "r f s n"),
    "ugrnn": Case(UGRNN(), oracle.ugrnn, "g c"),
    "ligru": Case(LiGRU(), oracle.ligru, "g c"),
    "cfn": Case(CFN(), oracle.cfn, "θ η n", "θ η"),
    "mut1": Case(MUT1(), oracle.mut1, "r -z n", "r n"),
    "mut2": Case(MUT2(), oracle.mut2, "r -z n"),
    "mut3": Case(MUT3(), oracle.mut3, "r -z n"),
    "dreamer": Case(DREAMER, oracle.dreamer, "r -u n", signed=NORMALISED),
    "ba2016": Case(BA2016, oracle.layer_norm_gru, "r -u n", signed=NORMALISED),
    "block": Case(BlockGRU(2), oracle.block_gru, "r z n"),
    "diagonal": Case(DiagonalGRU(), oracle.diagonal_gru, "r z n"),
}
KEY = jax.random.key(0)

SHORT = ("lstm", "mingru", "dreamer")
"""Of these cells the tables run with the short tests: a state of two arrays, a form in parallel, statistics."""

each_case = pytest.mark.parametrize("case", CASES)
each_run = pytest.mark.parametrize(
    ("case", "method"),
    [
        pytest.param(name, method, marks=() if name in SHORT else pytest.mark.long)
        for name, case in CASES.items()
        for method in case.cell.methods
        # Of the others "fused" is held against the scan by the tests of the engine.
        if method != "auto" and (method != "fused" or name in SHORT)
    ],
)


def weights(case, params):
    """The oracle's weights, in the paper's letters and signs."""
    w = {"tau": 1.0}
    fields = {"kernel": "W", "recurrent_kernel": "U", "bias": "b", "gain": "g", "recurrent_gain": "k"}
    for field, name in fields.items():
        if (packed := getattr(params, field, None)) is not None:
            recurrent = case.recurrent_letters if field == "recurrent_kernel" else ""
            letters = (recurrent or case.letters).split()
            for letter, block in zip(letters, np.split(np.asarray(packed, np.float64), len(letters), -1), strict=True):
                w[f"{name}_{letter[-1]}"] = -block if letter[0] == "-" and field in case.signed else block
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
    for i, name in enumerate(("gain", "recurrent_gain")):
        if getattr(params, name, None) is not None:
            params = params._replace(**{name: normal_init(jax.random.key(i), (3 * FEATURES,), jnp.float64)})
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
    leaves, structure = jax.tree.flatten(state_0)
    rates, masks = (0.3, 0.6)[: len(leaves)], jax.random.bernoulli(KEY, 0.4, (len(leaves), steps, *leaves[0].shape))
    every |= {
        "zoneout": jax.tree.unflatten(structure, rates),
        "zoneout_mask": jax.tree.unflatten(structure, masks),
    }
    start = {"reset_state": jax.tree.map(lambda part: part[::-1] / 2, state_0)} if "resets" in options else {}
    return start | {name: every[name] for name in options if name in every}


def expected(case, params, xs, state_0, options):
    mask, resets = (None if flag is None else np.asarray(flag) for flag in flags(options))
    parts = tuple(np.asarray(part, np.float64) for part in jax.tree.leaves(state_0))
    everything = {"mask": mask, "resets": resets, "reverse": options.get("reverse", False)}
    for name in ("reset_state", "zoneout", "zoneout_mask"):
        if name in options:
            everything[name] = tuple(map(np.asarray, jax.tree.leaves(options[name])))
    return oracle.run(case.step, weights(case, params), np.asarray(xs, np.float64), parts, **everything)


def flat(result):
    """(state_T, hs) as the oracle has it, in float64."""
    state_T, hs = jax.tree.map(lambda part: np.asarray(part, np.float64), result)
    return tuple(jax.tree.leaves(state_T)), hs
