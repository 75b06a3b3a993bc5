"""What a call begins with and what comes back: forms, types and initial values of carries, for both APIs."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

import gru_jax
from gru_jax import carries
from gru_jax.cells import LSTM, LSTMState
from tests.flax_layers import each_api
from tests.from_models import BATCH, FEATURES, IN_FEATURES, RESETS, TIME, made, module, sequences
from tests.sequences import assert_close, normal

STACKS = {"one": {}, "two": {"num_layers": 2}, "both ways": {"num_layers": 2, "bidirectional": True}}
NORMAL = jax.nn.initializers.normal(1.0)
each_stack = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)


# --- Forms and types --------------------------------------------------------------------------------------------------


@each_api
@each_stack
def test_a_carry_comes_back_in_the_form_in_which_it_came(api, options):
    one = made(options)
    count, x = len(one.params), sequences()
    stacked = normal(0, count, BATCH, FEATURES)
    layer = module(api, one, return_carry=True)

    @jax.jit
    def run(stacked):
        forms = {"stacked": stacked, "tuple": tuple(stacked), "list": list(stacked)}
        if count == 1:
            forms["single"] = stacked[0]
        started = stacked[:, :1]  # one start for all sequences, and the same spelt out
        learnt = [layer(x, initial_carry=c) for c in (started, tuple(s[0] for s in started), 0 * stacked + started)]
        return {form: layer(x, initial_carry=carry) for form, carry in forms.items()}, learnt, forms

    results, learnt, forms = run(stacked)
    for form, (carry, outputs) in results.items():
        assert jax.tree.structure(carry) == jax.tree.structure(forms[form])
        assert_close(outputs, results["tuple"][1])
        assert_close(jnp.stack(jax.tree.leaves(carry)).reshape(stacked.shape), results["stacked"][0])
    for carry, outputs in learnt:
        assert_close(outputs, learnt[-1][1])
        assert_close(jnp.stack(jax.tree.leaves(carry)).reshape(stacked.shape), learnt[-1][0])


def test_the_parts_of_an_lstm_s_state_are_stacked_each():
    """As PyTorch's h_n and c_n; one that has the axis in a single part is refused."""
    zero = LSTMState(jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, FEATURES)))
    stacked = LSTMState(normal(0, 2, BATCH, FEATURES), normal(1, 2, 1, FEATURES).astype(jnp.bfloat16))
    states = carries.split("carry", stacked, zero, 2)
    for i, state in enumerate(states):
        assert_close(state, LSTMState(stacked.h[i], jnp.broadcast_to(stacked.c[i], (BATCH, FEATURES))), 0)
        assert state.c.dtype == jnp.bfloat16
    assert_close(
        carries.join(states, stacked, zero), LSTMState(*(jnp.stack(part) for part in zip(*states, strict=True))), 0
    )
    assert carries.join(states, tuple(states), zero) == tuple(states)
    with pytest.raises(
        ValueError, match=r"carry must have shape \(layers·directions, \*batch, features\) = \(2, 3, 4\)"
    ):
        carries.split("carry", stacked._replace(c=stacked.c[0]), zero, 2)


def types(tree):
    """(shape, dtype, weak type) of the leaves of what `jax.eval_shape` returns."""
    return [(leaf.shape, leaf.dtype.name, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


CARRIES = {
    "bfloat16": jnp.zeros((BATCH, FEATURES), jnp.bfloat16),
    "float16": jnp.zeros((BATCH, FEATURES), jnp.float16),
    "float32": jnp.zeros((BATCH, FEATURES), jnp.float32),
    "float64": jnp.zeros((BATCH, FEATURES), jnp.float64),
    "weak": jnp.broadcast_to(jnp.asarray(0.0), (BATCH, FEATURES)),
}


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("given", CARRIES)
def test_a_scan_may_carry_what_it_was_given(given, compute):
    """Over calls of functions, of layers in all forms, of steps and of cells: types in are types out."""
    single = CARRIES[given]
    xs = jnp.zeros((2, BATCH, TIME, IN_FEATURES), compute)
    lstm = LSTM().init(jax.random.key(0), IN_FEATURES, FEATURES, dtype=compute)
    one, two = (made({"num_layers": n}, compute) for n in (1, 2))

    def functional(cell, params):
        return lambda carry, x: gru_jax.unroll(cell, params, jnp.swapaxes(x, 0, 1), carry)

    def in_parts(state):
        return LSTMState(state, state.astype(jnp.float32))

    runs = [(functional(gru_jax.CUDNN, one.params[0]), single), (functional(LSTM(), lstm), in_parts(single))]
    for api in ("nnx", "linen"):
        layer, layers = (module(api, m, return_carry=True) for m in (one, two))
        step = module(api, two, method="step")
        runs.append((lambda c, x, layer=layer: layer(x, initial_carry=c), single))
        runs.append((lambda c, x, layers=layers: layers(x, initial_carry=c), (single, jnp.zeros_like(single))))
        runs.append((lambda c, x, layers=layers: layers(x, initial_carry=c), jnp.stack([single, single])))
        runs.append((lambda c, x, step=step: step(c, x[:, 0]), [single, single]))
    _, variables = gru_jax.linen.GRU.from_model(one)
    cell = gru_jax.linen.GRUCell(FEATURES)
    runs.append((lambda c, x: cell.apply({"params": variables["params"]["cell"]}, c, x[:, 0]), single))
    runs.append((lambda c, x: gru_jax.nnx.GRU.from_model(one).cells[0](c, x[:, 0]), single))
    for run, carry in runs:
        wanted = types(jax.eval_shape(lambda carry=carry: carry))
        out, outputs = jax.eval_shape(run, carry, xs[0])
        assert types(out) == wanted
        assert jax.tree.structure(out) == jax.tree.structure(carry)
        assert jax.tree.leaves(outputs)[0].dtype == compute
        assert types(jax.eval_shape(functools.partial(jax.lax.scan, run), carry, xs)[0]) == wanted


def test_without_a_carry_it_is_float32_where_the_computation_is_narrower():
    half, x = made({"num_layers": 2}, "bfloat16"), jnp.zeros((BATCH, TIME, IN_FEATURES), jnp.bfloat16)
    layer, (linen, variables) = gru_jax.nnx.GRU.from_model(half), gru_jax.linen.GRU.from_model(half)
    found = jax.eval_shape(
        lambda: [
            gru_jax.unroll(gru_jax.CUDNN, half.params[0], x.swapaxes(0, 1))[0],
            layer(x, return_carry=True)[0],
            linen.apply(variables, x, return_carry=True)[0],
            layer.initialize_carry((BATCH, IN_FEATURES)),
            linen.initialize_carry(None, (BATCH, IN_FEATURES)),
        ]
    )
    assert set(types(found)) == {((BATCH, FEATURES), "float32", False)}


@pytest.mark.parametrize("steps", [0, TIME])
@pytest.mark.parametrize("method", ["scan", "fused"])
def test_a_start_broadcasts_and_is_learnt(method, steps):
    one = made({})
    xs, start = normal(0, steps, 2, BATCH, IN_FEATURES), normal(1, FEATURES)

    @jax.jit
    def run(start):
        def loss(h_0):
            h_T, hs = gru_jax.unroll(gru_jax.CUDNN, one.params[0], xs, h_0, method=method)
            return (hs**2).sum() + (h_T**3).sum(), h_T

        wide = jnp.broadcast_to(start, (2, BATCH, FEATURES))
        every = [jax.grad(loss, has_aux=True)(h_0) for h_0 in (start, wide[:, :1], wide)]
        return every, gru_jax.unroll(gru_jax.CUDNN, one.params[0], xs, 0.5, method=method)[0]

    every, scalar = run(start)
    assert scalar.shape == (2, BATCH, FEATURES)
    (_, expected), whole = every[2], every[2][0]
    for (gradient, h_T), axes in zip(every, [(0, 1), (1,), ()], strict=True):
        assert_close(h_T, expected)
        assert_close(gradient, whole.sum(axes, keepdims=len(axes) == 1))


def test_a_bfloat16_carry_is_rounded_between_calls_alone():
    """What `unroll` says of it: 0.004 after 200 calls of one step, and nothing within one call."""
    cell = gru_jax.CUDNN
    keys = jax.random.split(jax.random.key(0))
    params = cell.init(keys[0], 16, 64, recurrent_kernel_init=jax.nn.initializers.lecun_normal(), dtype=jnp.float32)
    xs = jax.random.normal(keys[1], (200, 8, 16), jnp.float32)
    zero = jnp.zeros((8, 64), jnp.bfloat16)

    @jax.jit
    def run(params, xs):
        def call(carry, x_t):
            carry, hs = gru_jax.unroll(cell, params, x_t[None], carry, method="scan")
            return carry, hs[0]

        whole = [gru_jax.unroll(cell, params, xs, h_0, method="scan") for h_0 in (None, zero)]
        return whole, jax.lax.scan(call, zero, xs)

    ((h_T, hs), (narrow, same)), (carry, stepwise) = run(params, xs)
    assert_close(same, hs, 0)
    assert_close(narrow, h_T.astype(jnp.bfloat16), 0)
    assert carry.dtype == jnp.bfloat16
    assert 5e-4 < jnp.abs(stepwise - hs)[-1].max() < 0.02


# --- Initial carries --------------------------------------------------------------------------------------------------


@each_api
def test_a_zero_carry_draws_nothing(api):
    one, x = made({"num_layers": 2}), sequences()
    layer = module(api, one, carry_init=gru_jax.initializers.zeros)
    assert "random" not in str(jax.make_jaxpr(lambda x: layer(x, resets=RESETS))(x))
    assert_close(layer(x), module(api, one)(x), 0)


def test_the_linen_layer_draws_the_carries_of_flax():
    """With `init_key` as `nn.RNN` and `nn.Bidirectional` do; without it the latter starts both directions alike."""
    x = sequences()
    call = {"init_key": jax.random.key(7)}
    for options in ({}, {"bidirectional": True}):
        layer, variables = gru_jax.linen.GRU.from_model(made(options), carry_init=NORMAL, return_carry=True)
        rnns = [
            nn.RNN(nn.GRUCell(FEATURES, carry_init=NORMAL, param_dtype=jnp.float64), return_carry=True)
            for _ in range(len(options) + 1)
        ]
        flax = nn.Bidirectional(*rnns, return_carry=True) if options else rnns[0]
        for given in (call,) if options else ({}, call):
            assert_close(layer.apply(variables, x, **given), flax.apply(variables, x, **given))
    assert (layer.apply(variables, x)[1] != layer.apply(variables, x, **call)[1]).any()


def test_the_nnx_layer_draws_its_carries_from_a_stream():
    x = sequences()
    one = made({"num_layers": 2})
    layer = gru_jax.nnx.GRU.from_model(one, carry_init=NORMAL, rngs=nnx.Rngs(carry=1, params=0))
    first, second = layer(x), layer(x)
    assert (first != second).any()
    shape = (BATCH, IN_FEATURES)
    for rngs in (lambda: nnx.Rngs(carry=3), lambda: nnx.Rngs(3).carry, lambda: jax.random.key(3)):
        carry = layer.initialize_carry(shape, rngs())
        assert (carry[0] != carry[1]).any()
        assert_close(layer(x, rngs=rngs()), layer(x, initial_carry=carry), 0)
    zero = layer.initialize_carry(shape, carry_init=gru_jax.initializers.zeros)
    assert_close(layer(x, initial_carry=zero), gru_jax.nnx.GRU.from_model(one)(x), 0)
    # A key serves both, and not twice.
    both = gru_jax.nnx.GRU.from_model(one, carry_init=NORMAL, recurrent_dropout=0.5, rngs=nnx.Rngs(0))
    with jax.debug_key_reuse(True):
        assert_close(both(x, rngs=jax.random.key(3)), both(x, rngs=jax.random.key(3)), 0)
    with pytest.raises(ValueError, match="rngs must have a stream 'carry'"):
        gru_jax.nnx.GRU(2, 4, carry_init=NORMAL, rngs=nnx.Rngs(params=0))


@each_api
def test_a_random_carry_needs_a_reset_state(api):
    one, x = made({}), sequences()
    layer, step = (module(api, one, method=method, carry_init=NORMAL) for method in (None, "step"))
    carry, start = normal(0, BATCH, FEATURES), normal(1, FEATURES)
    cell = {
        "nnx": lambda: gru_jax.nnx.GRUCell(IN_FEATURES, FEATURES, carry_init=NORMAL, rngs=nnx.Rngs(0)),
        "linen": lambda: gru_jax.linen.GRUCell(FEATURES, carry_init=NORMAL).bind({}),
    }[api]()
    for call in (
        lambda **given: layer(x, resets=RESETS, **given),
        lambda **given: step(carry, x[:, 0], resets=RESETS[:, 0], **given),
    ):
        with pytest.raises(ValueError, match="reset_state must be given with resets where carry_init is not zeros"):
            call()
        call(reset_state=start)
    with pytest.raises(ValueError, match="reset_state must be given with resets where carry_init is not zeros"):
        cell(carry, x[:, 0], resets=RESETS[:, 0])
    if api == "linen":
        rnn = gru_jax.linen.RNN(gru_jax.linen.GRUCell(FEATURES, carry_init=NORMAL))
        with pytest.raises(ValueError, match="reset_state must be given with resets where carry_init is not zeros"):
            rnn.apply({}, x, resets=RESETS)
    with pytest.raises(TypeError, match="carry_init must be callable, got 'zeros'"):
        module(api, one, carry_init="zeros")
