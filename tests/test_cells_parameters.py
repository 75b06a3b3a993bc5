"""The cells that the GRU is compared with: their parameters, as values, and bad input."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import initializers
from gru_jax.cells import LSTM, MGU, BlockGRU, DiagonalGRU, Elman, LayerNormGRU, Leaky, LSTMState, MinGRU
from tests.cases import BATCH, FEATURES, IN_FEATURES
from tests.compared import CASES, KEY, each_case, problem

# --- Parameters -------------------------------------------------------------------------------------------------------

D, H = IN_FEATURES, FEATURES
COUNTS = {
    "lstm": 4 * (D * H + H**2 + H),
    "elman": D * H + H**2 + H,
    "leaky_fixed": D * H + H**2 + H,
    "leaky_learned": D * H + H**2 + 2 * H,
    "mgu": 2 * (D * H + H**2 + H),
    "mingru": 2 * (D * H + H),
    "refine": 4 * (D * H + H**2 + H) + H,
    "ugrnn": 2 * (D * H + H**2 + H),
    "ligru": 2 * (D * H + H**2 + H),
    "cfn": 3 * (D * H + H) + 2 * H**2,
    "mut1": 3 * (D * H + H) + 2 * H**2,
    "mut2": 3 * (D * H + H**2 + H),
    "mut3": 3 * (D * H + H**2 + H),
    "dreamer": 3 * (D * H + H**2) + 6 * H,
    "ba2016": 3 * (D * H + H**2) + 10 * H,
    "block": 3 * (D * H + H**2 // 2 + H) + H,
    "diagonal": 3 * (D * H + 2 * H),
}


@each_case
def test_parameters(case):
    cell = CASES[case].cell
    shapes = jax.eval_shape(lambda: cell.init(KEY, D, H))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[case]
    half = jax.eval_shape(lambda: cell.init(KEY, D, H, use_bias=False, dtype="bfloat16"))
    assert half.bias is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    params, xs, state_0 = problem(CASES[case])
    biases = {name: getattr(params, name) for name in ("bias", "recurrent_bias") if hasattr(params, name)}
    without = params._replace(**dict.fromkeys(biases))
    zero = params._replace(**{name: None if b is None else 0 * b for name, b in biases.items()})
    chex.assert_trees_all_equal(*(cell.step(p, state_0, xs[0]) for p in (without, zero)))


def test_each_gate_is_drawn_on_its_own():
    kernel, recurrent_kernel, bias, _ = LSTM().init(KEY, 200, H, kernel_init=initializers.glorot_uniform)
    blocks = np.split(kernel, 4, axis=1)
    assert len({float(block[0, 0]) for block in blocks}) == 4
    for block in blocks:
        np.testing.assert_allclose(np.abs(block).max(), (6 / (200 + H)) ** 0.5, rtol=0.02)
    for block in np.split(recurrent_kernel, 4, axis=1):
        np.testing.assert_allclose(block.T @ block, np.eye(H), atol=1e-6)
    assert not bias.any()


def test_cells_are_values():
    cells = [case.cell for case in CASES.values()]
    assert len(set(cells)) == len(cells)
    assert (LSTM(), Leaky(3.0)) == (LSTM(), Leaky(3.0))
    assert hash(Leaky((1.0, 2.0))) == hash(Leaky((1.0, 2.0)))
    assert all(isinstance(cell, gru_jax.cells.Cell) for cell in (*cells, gru_jax.CUDNN))


def gate_of(case, bias, letter):
    letters = [name[-1] for name in CASES[case].letters.split()]
    return np.split(np.asarray(bias), len(letters))[letters.index(letter)]


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith(("elman", "leaky"))])
def test_update_bias_init_is_for_the_gate_that_keeps(case):
    cell = CASES[case].cell
    options = {"recurrent_kernel_init": initializers.zeros, "update_bias_init": initializers.forget_bias}
    params = cell.init(KEY, D, 6, **options)
    for name, b in zip(cell.order, np.split(np.asarray(params.bias), len(cell.order)), strict=True):
        np.testing.assert_array_equal(b, {cell.update_gate: 1, "s": -1}.get(name, 0))


def test_blocks_are_drawn_on_their_own():
    kernel = BlockGRU(4).init(KEY, D, 32).recurrent_kernel
    for block in kernel.reshape(4, 8, 3, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8):
        np.testing.assert_allclose(block.T @ block, np.eye(8), atol=1e-6)
    assert len({float(value) for value in kernel[:, 0, ::8].ravel()}) == 12
    diagonal = DiagonalGRU().init(KEY, D, 32).recurrent_kernel
    np.testing.assert_allclose(np.abs(diagonal), 1, atol=1e-6)
    assert 0.2 < (diagonal > 0).mean() < 0.8


def test_initial_time_constants():
    options = {"recurrent_kernel_init": initializers.zeros, "update_bias_init": initializers.chrono(50)}
    b = LSTM().init(KEY, 1, 1000, **options, opposed_input_gate=True).bias
    np.testing.assert_array_equal(gate_of("lstm", b, "i"), -gate_of("lstm", b, "f"))
    params = Leaky().init(KEY, 1, 1000, **options)
    assert not params.bias.any()
    for keep in (gate_of("lstm", b, "f"), params.leak):
        times = 1 + np.exp(keep.astype(float))
        assert 2 <= times.min()
        assert times.max() <= 50 + 1e-3
        np.testing.assert_allclose(times.mean(), 26, rtol=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uniform_gate(dtype):
    features = 4000
    b = initializers.uniform_gate(KEY, (features,), dtype)
    assert b.dtype == dtype
    u = np.sort(jax.nn.sigmoid(b.astype(jnp.float64)))
    rounding = float(jnp.finfo(dtype).eps)
    assert 1 / features * (1 - 20 * rounding) <= u[0]
    assert u[-1] <= 1 - 1 / features * (1 - 20 * rounding)
    # Kolmogorov and Smirnov: a uniform sample of this size stays within 1.95/√n with probability 0.999.
    assert np.abs(u - (np.arange(features) + 0.5) / features).max() < 1.95 / features**0.5
    assert bool((initializers.uniform_gate(KEY, (1,)) == 0).all())


# --- Bad input --------------------------------------------------------------------------------------------------------

P = {name: problem(case) for name, case in CASES.items()}


def zoned(case, zoneout, mask=None, **options):
    return gru_jax.unroll(CASES[case].cell, *P[case][:2], zoneout=zoneout, zoneout_mask=mask, **options)


BAD = {
    "a method without": (lambda: gru_jax.unroll(LSTM(), *P["lstm"][:3], method="native"), ValueError, r"method must be one of 'auto', 'scan', 'fused', got 'native'"),
    "a method of another": (lambda: gru_jax.unroll(gru_jax.CUDNN, *P["lstm"][:2], method="parallel"), ValueError, r"method must be .*got 'parallel'"),
    "a class": (lambda: gru_jax.unroll(LSTM, *P["lstm"][:2]), TypeError, r"cell must be a gru_jax.GRU or another of gru_jax.cells, got type"),
    "dropout": (
        lambda: gru_jax.unroll(LSTM(), *P["lstm"][:3], recurrent_dropout_mask=jnp.ones((BATCH, FEATURES))),
        ValueError,
        r"recurrent_dropout_mask must be None: the step of LSTM does not take it",
    ),
    "a state of another": (lambda: gru_jax.unroll(LSTM(), *P["lstm"][:2], P["mgu"][2]), TypeError, r"h_0 must be a LSTMState\('h', 'c'\), got ArrayImpl"),
    "a part of a state": (
        lambda: gru_jax.unroll(LSTM(), *P["lstm"][:2], LSTMState(jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, 9)))),
        ValueError,
        r"h_0.c must broadcast to \(\*batch, features\) = \(3, 4\), got shape \(3, 9\)",
    ),
    "a state in step": (lambda: MGU().step(P["mgu"][0], jnp.zeros(9), P["mgu"][1][0]), ValueError, r"h_tm1 must broadcast to .* = \(3, 4\), got shape \(9,\)"),
    "parameters of another": (lambda: gru_jax.unroll(MinGRU(), *P["mgu"][:2]), TypeError, r"params must be gru_jax.cells.MinGRUParams.*got Params"),
    "gates of another": (lambda: gru_jax.unroll(LSTM(), *P["mgu"][:2]), ValueError, r"params.recurrent_kernel must have shape \(features, 4·features\) = \(4, 16\), got \(4, 8\)"),
    "a bias too many": (lambda: gru_jax.unroll(LSTM(), *P["refine"][:2]), ValueError, r"params.recurrent_bias must be None: this LSTM has none"),
    "no leak": (lambda: gru_jax.unroll(Leaky(), *P["leaky_fixed"][:2]), TypeError, r"params.leak must be an array .*\(features,\), got None"),
    "a leak too many": (lambda: gru_jax.unroll(Leaky(3.0), *P["leaky_learned"][:2]), ValueError, r"params.leak must be None: this Leaky has none"),
    "units": (lambda: gru_jax.unroll(Leaky((1.0, 2.0)), *P["leaky_fixed"][:2]), ValueError, r"time_constant must have features = 4 numbers, got 2"),
    "units of init": (lambda: Leaky((1.0, 2.0)).init(KEY, 2, 3), ValueError, r"time_constant must have features = 3 numbers, got 2"),
    "time constant": (lambda: Leaky(0.5), ValueError, r"time_constant must be at least 1 and finite, got 0.5"),
    "time constants": (lambda: Leaky([1.0]), TypeError, r"time_constant must be a number, a tuple of numbers or None, got \[1.0\]"),
    "candidate": (lambda: Elman("tanh"), TypeError, r"candidate must be callable, got 'tanh'"),
    "no gate that keeps": (lambda: Elman().init(KEY, 2, 3, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init must be None: Elman has no gate that keeps"),
    "fixed": (lambda: Leaky(3.0).init(KEY, 2, 3, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init must be None with time_constant=3.0"),
    "no bias": (lambda: MGU().init(KEY, 2, 3, use_bias=False, update_bias_init=initializers.forget_bias), ValueError, r"update_bias_init needs use_bias=True"),
    "heads": (lambda: BlockGRU(0), ValueError, r"heads must be at least 1, got 0"),
    "heads that do not divide": (lambda: BlockGRU(3).init(KEY, 2, 4), ValueError, r"features must be a multiple of heads = 3, got 4"),
    "other heads": (lambda: gru_jax.unroll(BlockGRU(4), *P["block"][:2]), ValueError, r"params.recurrent_kernel must have shape \(heads, features/heads, 3·features/heads\) = \(4, 1, 3\), got \(2, 2, 6\)"),
    "separate": (lambda: LayerNormGRU(separate=1), TypeError, r"separate must be a bool, got 1"),
    "update bias": (lambda: LayerNormGRU(update_bias="-1"), TypeError, r"update_bias must be a number, got '-1'"),
    "epsilon": (lambda: LayerNormGRU(epsilon=0), ValueError, r"epsilon must be finite, and above 0, got 0"),
    "no gain": (lambda: gru_jax.unroll(LayerNormGRU(), P["dreamer"][0]._replace(gain=None), P["dreamer"][1]), TypeError, r"params.gain must be an array .*\(3·features,\), got None"),
    "a gain too many": (lambda: gru_jax.unroll(LayerNormGRU(), *P["ba2016"][:2]), ValueError, r"params.recurrent_bias must be None: this LayerNormGRU has none"),
    "one rate too large": (lambda: zoned("lstm", LSTMState(0.5, 1.0)), ValueError, r"zoneout.c must lie in \[0, 1\), got 1.0"),
    "a rate of another": (lambda: zoned("mgu", LSTMState(0.5, 0.1)), TypeError, r"zoneout must be a number in \[0, 1\), got LSTMState"),
    "rates in another form": (lambda: zoned("lstm", (0.5, 0.1)), TypeError, r"zoneout must be a number in \[0, 1\), got \(0.5, 0.1\)"),
    "a zoneout mask of one step": (lambda: zoned("mgu", None, jnp.ones((BATCH, FEATURES))), ValueError, r"zoneout_mask must have shape \(T, \*batch, features\) = \(6, 3, 4\), got \(3, 4\)"),
    "a part of a zoneout mask": (lambda: zoned("lstm", None, LSTMState(jnp.ones((6, BATCH, FEATURES)), jnp.ones(6))), ValueError, r"zoneout_mask.c must have shape .*got \(6,\)"),
    "a text as zoneout mask": (lambda: zoned("mgu", None, "text"), TypeError, r"zoneout_mask must be an array, got str"),
    "zoneout in parallel": (lambda: zoned("mingru", 0.1, method="parallel"), ValueError, r"method='parallel' has no zoneout"),
    "no bias to oppose": (lambda: LSTM().init(KEY, 2, 3, use_bias=False, opposed_input_gate=True), ValueError, r"opposed_input_gate=True needs use_bias=True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
