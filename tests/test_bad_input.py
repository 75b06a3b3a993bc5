"""What does not fit is refused before any compute, with the argument's name, what was expected and what came."""

import jax
import jax.numpy as jnp
import pytest

import gru_jax
from tests.cases import BATCH, FEATURES, IN_FEATURES, STEPS, problem

P = problem(gru_jax.CUDNN)
UNROLL = {
    "cell": (dict(cell="gru"), TypeError, r"cell must be a gru_jax.GRU or another of gru_jax.cells, got str"),
    "method": (dict(method="fast"), ValueError, r"method must be one of 'auto', 'scan', 'fused', 'native', got 'fast'"),
    "params": (dict(params=tuple(P.params)), TypeError, r"params must be gru_jax.cells.Params.*got tuple"),
    "kernel": (
        dict(params=P.params._replace(kernel=jnp.zeros((IN_FEATURES, 5)))),
        ValueError,
        r"params.kernel must have shape \(in_features, 3·features\) = \(2, 12\), got \(2, 5\)",
    ),
    "recurrent kernel": (
        dict(params=P.params._replace(recurrent_kernel=jnp.zeros((4, 4)))),
        ValueError,
        r"params.recurrent_kernel must have shape .* = \(4, 12\), got \(4, 4\)",
    ),
    "bias": (dict(params=P.params._replace(bias=jnp.zeros(4))), ValueError, r"params.bias .* \(12,\), got \(4,\)"),
    "recurrent bias": (
        dict(params=P.params._replace(recurrent_bias=jnp.zeros(12))),
        ValueError,
        r"params.recurrent_bias must have shape \(features,\) = \(4,\), got \(12,\)",
    ),
    "recurrent bias of a cell without": (
        dict(cell=gru_jax.CHO2014),
        ValueError,
        r"params.recurrent_bias must be None: this GRU has none",
    ),
    "xs without time": (dict(xs=jnp.zeros(IN_FEATURES)), ValueError, r"xs must have shape \(T, \*batch, in_features\), got \(2,\)"),
    "xs features": (
        dict(xs=jnp.zeros((STEPS, BATCH, 7))),
        ValueError,
        r"xs must have shape \(T, \*batch, in_features\) = \(6, 3, 2\), got \(6, 3, 7\)",
    ),
    "xs complex": (dict(xs=P.xs * 1j), TypeError, r"xs must be real floating point, got dtype complex128"),
    "xs text": (dict(xs="text"), TypeError, r"xs must be an array, got str"),
    "h_0": (dict(h_0=jnp.zeros((BATCH, 9))), ValueError, r"h_0 must broadcast to \(\*batch, features\) = \(3, 4\), got shape \(3, 9\)"),
    "h_0 of another batch": (dict(h_0=jnp.zeros((2, FEATURES))), ValueError, r"h_0 .* = \(3, 4\), got shape \(2, 4\)"),
    "h_0 with more axes": (dict(h_0=jnp.zeros((1, BATCH, FEATURES))), ValueError, r"h_0 .* = \(3, 4\), got shape \(1, 3, 4\)"),
    "lengths shape": (dict(lengths=jnp.zeros(5, int)), ValueError, r"lengths must have shape \(\*batch,\) = \(3,\), got \(5,\)"),
    "lengths dtype": (dict(lengths=jnp.zeros(3)), TypeError, r"lengths must have an integer dtype, got float64"),
    "lengths beyond": (dict(lengths=jnp.array([1, 2, 7])), ValueError, r"lengths must lie in \[0, T\] = \[0, 6\], got values in \[1, 7\]"),
    "lengths negative": (dict(lengths=jnp.array([-1, 2, 3])), ValueError, r"lengths must lie in \[0, T\].*\[-1, 3\]"),
    "mask dtype": (dict(mask=jnp.ones((STEPS, BATCH), complex)), TypeError, r"mask must be bool, integer or floating point, got dtype complex128"),
    "mask shape": (dict(mask=jnp.ones((BATCH, STEPS), bool)), ValueError, r"mask must have shape \(T, \*batch\) = \(6, 3\), got \(3, 6\)"),
    "resets of keys": (dict(resets=jax.random.split(jax.random.key(0), (STEPS, BATCH))), TypeError, r"resets must be bool, integer or floating point, got dtype key"),
    "resets shape": (dict(resets=jnp.ones(STEPS, bool)), ValueError, r"resets must have shape \(T, \*batch\) = \(6, 3\), got \(6,\)"),
    "dropout": (
        dict(recurrent_dropout_mask=jnp.ones((1, FEATURES))),
        ValueError,
        r"recurrent_dropout_mask must have shape \(\*batch, features\) = \(3, 4\), got \(1, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", UNROLL)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_unroll(case, compiled):
    changed, error, message = UNROLL[case]
    if compiled and case in ("lengths beyond", "lengths negative"):
        pytest.skip("values are not known while tracing")
    arguments = {"cell": gru_jax.CUDNN, "params": P.params, "xs": P.xs, "h_0": P.h_0, **changed}
    static = {name: value for name, value in arguments.items() if isinstance(value, str | gru_jax.GRU)}
    arrays = {name: value for name, value in arguments.items() if name not in static}
    run = (
        jax.jit(lambda arrays: gru_jax.unroll(**arrays, **static))
        if compiled
        else lambda a: gru_jax.unroll(**a, **static)
    )
    with pytest.raises(error, match=message):
        run(arrays)


STEP = {
    "h_tm1": (dict(h_tm1=jnp.zeros((BATCH, 9))), ValueError, r"h_tm1 must broadcast to \(\*batch, features\) = \(3, 4\), got shape \(3, 9\)"),
    "resets": (dict(resets=jnp.zeros((1, BATCH), bool)), ValueError, r"resets must have shape \(\*batch,\) = \(3,\), got \(1, 3\)"),
    "resets text": (dict(resets="none"), TypeError, r"resets must be an array, got str"),
    "reset_state": (dict(resets=jnp.zeros(BATCH), reset_state=jnp.zeros(9)), ValueError, r"reset_state must broadcast to .* = \(3, 4\), got shape \(9,\)"),
    "x_t": (dict(x_t=jnp.zeros((BATCH, 9))), ValueError, r"x_t must have shape \(\*batch, in_features\) = \(3, 2\), got \(3, 9\)"),
    "params": (dict(params=None), TypeError, r"params must be gru_jax.cells.Params"),
    "dropout": (dict(recurrent_dropout_mask=jnp.zeros(4)), ValueError, r"recurrent_dropout_mask .* = \(3, 4\), got \(4,\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEP)
def test_step(case):
    changed, error, message = STEP[case]
    with pytest.raises(error, match=message):
        gru_jax.CUDNN.step(**{"params": P.params, "h_tm1": P.h_0, "x_t": P.xs[0], **changed})


CONSTRUCTION = {
    "reset_after": (lambda: gru_jax.GRU(reset_after="yes"), TypeError, r"reset_after must be a bool, got 'yes'"),
    "gate": (lambda: gru_jax.GRU(gate="sigmoid"), TypeError, r"gate must be callable, got 'sigmoid'"),
    "candidate": (lambda: gru_jax.GRU(candidate=None), TypeError, r"candidate must be callable, got None"),
    "in_features": (lambda: gru_jax.CUDNN.init(jax.random.key(0), 0, 4), ValueError, r"in_features must be at least 1, got 0"),
    "features": (lambda: gru_jax.CUDNN.init(jax.random.key(0), 2, 4.0), TypeError, r"features must be an integer, got 4.0"),
    "kernel_init": (
        lambda: gru_jax.CUDNN.init(jax.random.key(0), 2, 4, kernel_init="glorot"),
        TypeError,
        r"kernel_init must be callable, got 'glorot'",
    ),
    "update_bias_init": (
        lambda: gru_jax.CUDNN.init(jax.random.key(0), 2, 4, use_bias=False, update_bias_init=gru_jax.initializers.chrono(9)),
        ValueError,
        r"update_bias_init needs use_bias=True",
    ),
    "chrono": (lambda: gru_jax.initializers.chrono(2), ValueError, r"max_time must be at least 3, got 2"),
    "module": (lambda: gru_jax.lstm, AttributeError, r"module 'gru_jax' has no attribute 'lstm'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_construction(case):
    make, error, message = CONSTRUCTION[case]
    with pytest.raises(error, match=message):
        make()
