"""Where a call, and an episode within it, begins, and what comes back: forms and types of carries, for both APIs."""

import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import gru_jax
from gru_jax import carries
from gru_jax.cells import LSTM, LSTMState
from tests import compared
from tests.cases import CELLS
from tests.models import inputs, model

BATCH, TIME, IN_FEATURES, FEATURES = 3, 6, 2, 4
RESETS = np.array([[0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]], bool)
STACKS = {"one": {}, "two": {"num_layers": 2}, "both ways": {"num_layers": 2, "bidirectional": True}}
SHORT = ("nnx", "two"), ("linen", "one")
NORMAL = jax.nn.initializers.normal(1.0)

each_api = pytest.mark.parametrize("api", ["nnx", "linen"])
each_stack = pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)


def made(options, dtype="float64"):
    return model(gru_jax.CUDNN, IN_FEATURES, FEATURES, dtype=dtype, **options)


def module(api, one, method=None, **changes):
    """A layer of one API with the weights of a model, as a function; or its method."""
    if api == "nnx":
        layer = gru_jax.nnx.GRU.from_model(one, **changes)
        return layer if method is None else getattr(layer, method)
    layer, variables = gru_jax.linen.GRU.from_model(one, **changes)
    return functools.partial(layer.apply, variables, method=method)


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def assert_same(ours, theirs, atol=1e-12):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=atol, rtol=0), ours, theirs)


# --- Episodes ---------------------------------------------------------------------------------------------------------


def by_episode(one, x, resets, initial, start):
    """(carry, outputs) of one sequence (time, in_features), each episode of each layer and direction on its own.

    Args:
      resets: (time,), known. initial, start: the state of each cell with which the call, and an episode, begins.
    """
    edges = [0, *(t for t in range(1, TIME) if resets[t]), TIME]
    carry, cells = [], iter(zip(one.params, initial, start, strict=True))
    for _ in range(one.stack.num_layers):
        directions = []
        for backward in (False, True)[: one.stack.directions]:
            params, h_0, reset_state = next(cells)
            states, parts = [], []
            for begin, end in itertools.pairwise(edges):
                is_first = end == TIME if backward else begin == 0 and not resets[0]
                begins = h_0 if is_first else reset_state
                h_T, hs = gru_jax.unroll(one.stack.cell, params, x[begin:end], begins, reverse=backward, method="scan")
                states.append(h_T)
                parts.append(hs)
            carry.append(states[0 if backward else -1])
            directions.append(jnp.concatenate(parts))
        x = jnp.concatenate(directions, axis=-1)
    return jnp.stack(carry), x


@pytest.mark.parametrize(
    ("api", "options"),
    [
        pytest.param(api, options, id=f"{api}-{name}", marks=() if (api, name) in SHORT else pytest.mark.long)
        for api in ("nnx", "linen")
        for name, options in STACKS.items()
    ],
)
def test_an_episode_begins_with_reset_state(api, options):
    """In the middle of a call that goes on from a carry; backwards reset_state follows its last step."""
    one = made(options)
    count = len(one.params)
    x, initial = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME), random(0, count, BATCH, FEATURES)
    start = random(1, count, BATCH, FEATURES)
    layer = module(api, one, return_carry=True)
    single = random(2, FEATURES)
    weight = random(3, BATCH, TIME, one.stack.directions * FEATURES)

    def ours(start):
        carry, outputs = layer(x, initial_carry=initial, resets=RESETS, reset_state=start)
        return (carry, outputs), (weight * outputs).sum()

    def theirs(start):
        start = jnp.broadcast_to(start, (count, BATCH, FEATURES))
        each = [by_episode(one, x[b], RESETS[b], initial[:, b], start[:, b]) for b in range(BATCH)]
        carry, outputs = jnp.stack([c for c, _ in each], axis=1), jnp.stack([o for _, o in each])
        return (carry, outputs), (weight * outputs).sum()

    @jax.jit
    def run(start):
        as_tuple = tuple(start)
        forms = [ours(start)[0], ours(as_tuple)[0], ours(single)[0], ours(None)[0]]
        expected = [theirs(start)[0], theirs(start)[0], theirs(single)[0], theirs(jnp.zeros(FEATURES))[0]]
        grads = [jax.grad(lambda s, f=f: f(s)[1])(single) for f in (ours, theirs)]
        return forms, expected, grads

    forms, expected, grads = run(start)
    assert_same(forms, expected)
    assert_same(*grads)
    assert grads[0].any()


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"reverse": True}])
def test_an_episode_that_begins_in_the_padding_is_none(options):
    """Backwards, too, where what would begin there would end at the last step that counts."""
    layer = module("nnx", made(options), return_carry=True)
    x, lengths = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME), jnp.full(BATCH, 3)
    given = {"initial_carry": random(0, 1 + ("bidirectional" in options), BATCH, FEATURES)}

    @jax.jit
    def run(x, resets):
        padded = layer(x, seq_lengths=lengths, resets=resets, reset_state=random(1, FEATURES), **given)
        return padded, layer(x[:, :3], **given)

    (carry, outputs), expected = run(x, jnp.zeros((BATCH, TIME)).at[:, 3:5].set(1))
    assert_same((carry, outputs[:, :3]), expected)


@each_api
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_rollout_step_by_step_is_the_sequence(api, num_layers):
    """In two calls, the second of which begins within an episode, and by steps."""
    one = made({"num_layers": num_layers})
    x, start = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME), random(1, num_layers, BATCH, FEATURES)
    layer, step = module(api, one, return_carry=True), module(api, one, method="step")

    @jax.jit
    def run(carry):
        given = {"reset_state": start}
        whole = layer(x, initial_carry=carry, resets=RESETS, **given)
        middle, first = layer(x[:, :3], initial_carry=carry, resets=RESETS[:, :3], **given)
        end, second = layer(x[:, 3:], initial_carry=middle, resets=RESETS[:, 3:], **given)
        outputs = []
        for t in range(TIME):
            carry, output = step(carry, x[:, t], resets=RESETS[:, t], **given)
            outputs.append(output)
        return whole, (end, jnp.concatenate([first, second], axis=1)), (carry, jnp.stack(outputs, axis=1))

    whole, parts, steps = run(random(0, num_layers, BATCH, FEATURES))
    assert_same(parts, whole)
    assert_same(steps, whole)


@each_api
def test_the_flax_cells_take_resets(api):
    one = made({})
    x, carry, start = random(0, BATCH, IN_FEATURES), random(1, BATCH, FEATURES), random(2, FEATURES)
    if api == "nnx":
        cell = gru_jax.nnx.GRU.from_model(one).cells[0]
    else:
        _, variables = gru_jax.linen.GRU.from_model(one)
        cell = functools.partial(gru_jax.linen.GRUCell(FEATURES).apply, {"params": variables["params"]["cell"]})
    resets = jnp.array([True, False, True])

    @jax.jit
    def run(carry):
        begun = jnp.where(resets[:, None], start, carry)
        zero = jnp.where(resets[:, None], 0, carry)
        return [
            (cell(carry, x, resets=resets, reset_state=start), cell(begun, x)),
            (cell(carry, x, resets=resets), cell(zero, x)),
        ]

    for ours, theirs in run(carry):
        assert_same(ours, theirs)


EVERY = {name: (cell, None) for name, cell in CELLS.items()} | {
    name: (case.cell, case) for name, case in compared.CASES.items()
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("cudnn", "lstm", "mingru") else pytest.mark.long) for name in EVERY],
)
def test_step_of_every_cell_takes_resets(name):
    cell, case = EVERY[name]
    if case is None:
        params, xs, state = made({}).params[0], random(0, TIME, BATCH, IN_FEATURES), random(1, BATCH, FEATURES)
        params = params if cell.reset_after else params._replace(recurrent_bias=None)
    else:
        params, xs, state = compared.problem(case)
    start = jax.tree.map(lambda leaf: leaf[0] / 2, state)

    @jax.jit
    def run(state):
        results = []
        for reset_state in (start, None):
            given = {"resets": jnp.asarray(RESETS.T, jnp.float32), "reset_state": reset_state}
            whole = gru_jax.unroll(cell, params, xs, state, method="scan", **given)
            carry, outputs = state, []
            for t in range(TIME):
                carry = cell.step(params, carry, xs[t], resets=given["resets"][t], reset_state=reset_state)
                outputs.append(cell.output(carry))
            results.append((whole, (carry, jnp.stack(outputs))))
        return results

    for whole, steps in run(state):
        assert_same(steps, whole)


# --- Forms and types --------------------------------------------------------------------------------------------------


@each_api
@each_stack
def test_a_carry_comes_back_in_the_form_in_which_it_came(api, options):
    one = made(options)
    count, x = len(one.params), inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)
    stacked = random(0, count, BATCH, FEATURES)
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
        assert_same(outputs, results["tuple"][1])
        assert_same(jnp.stack(jax.tree.leaves(carry)).reshape(stacked.shape), results["stacked"][0])
    for carry, outputs in learnt:
        assert_same(outputs, learnt[-1][1])
        assert_same(jnp.stack(jax.tree.leaves(carry)).reshape(stacked.shape), learnt[-1][0])


def test_the_parts_of_an_lstm_s_state_are_stacked_each():
    """As PyTorch's h_n and c_n; one that has the axis in a single part is refused."""
    zero = LSTMState(jnp.zeros((BATCH, FEATURES)), jnp.zeros((BATCH, FEATURES)))
    stacked = LSTMState(random(0, 2, BATCH, FEATURES), random(1, 2, 1, FEATURES).astype(jnp.bfloat16))
    states = carries.split("carry", stacked, zero, 2)
    for i, state in enumerate(states):
        assert_same(state, LSTMState(stacked.h[i], jnp.broadcast_to(stacked.c[i], (BATCH, FEATURES))), 0)
        assert state.c.dtype == jnp.bfloat16
    assert_same(
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
    xs, start = random(0, steps, 2, BATCH, IN_FEATURES), random(1, FEATURES)

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
        assert_same(h_T, expected)
        assert_same(gradient, whole.sum(axes, keepdims=len(axes) == 1))


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
    assert_same(same, hs, 0)
    assert_same(narrow, h_T.astype(jnp.bfloat16), 0)
    assert carry.dtype == jnp.bfloat16
    assert 5e-4 < jnp.abs(stepwise - hs)[-1].max() < 0.02


# --- Flags as numbers -------------------------------------------------------------------------------------------------


def test_flags_may_be_numbers():
    """Wherever there are flags, what is not 0 is True, NaN too."""
    one, cells = made({"num_layers": 2}), made({})
    x, carry = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME), random(0, BATCH, FEATURES)
    layers, steps = ([module(api, one, method=method) for api in ("nnx", "linen")] for method in (None, "step"))
    _, variables = gru_jax.linen.GRU.from_model(cells)
    flax_cells = [
        functools.partial(gru_jax.linen.GRUCell(FEATURES).apply, {"params": variables["params"]["cell"]}),
        gru_jax.nnx.GRU.from_model(cells).cells[0],
    ]
    lstm = LSTM().init(jax.random.key(0), IN_FEATURES, FEATURES, dtype=jnp.float64)
    state = LSTMState(carry, carry)

    def everything(mask, resets):
        given = {"mask": mask, "resets": resets}
        major = {name: flag.T for name, flag in given.items()}
        return [
            gru_jax.unroll(gru_jax.CUDNN, cells.params[0], x.swapaxes(0, 1), carry, method="scan", **major),
            gru_jax.unroll(LSTM(), lstm, x.swapaxes(0, 1), state, **major),
            [layer(x, **given) for layer in layers],
            [step((carry, carry), x[:, 0], resets=resets[:, 0]) for step in steps],
            [cell(carry, x[:, 0], resets=resets[:, 0]) for cell in flax_cells],
            gru_jax.CUDNN.step(cells.params[0], carry, x[:, 0], resets=resets[:, 0]),
            LSTM().step(lstm, state, x[:, 0], resets=resets[:, 0]),
        ]

    everything = jax.jit(everything)
    expected = everything(jnp.asarray(~RESETS), jnp.asarray(RESETS))
    nan = jnp.where(RESETS, jnp.nan, 0.0)
    numbers = [jnp.asarray(RESETS, dtype) for dtype in ("int32", "uint8", "float32", "bfloat16")]
    for resets in [*numbers, -3 * numbers[0], nan, 0.25 * numbers[2]]:
        mask = (1 - RESETS).astype(resets.dtype)
        assert_same(everything(mask, resets), expected, 0)
    assert_same(everything(jnp.where(RESETS, -0.0, jnp.nan), nan), expected, 0)


# --- Initial carries --------------------------------------------------------------------------------------------------


@each_api
def test_a_zero_carry_draws_nothing(api):
    one, x = made({"num_layers": 2}), inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)
    layer = module(api, one, carry_init=gru_jax.initializers.zeros)
    assert "random" not in str(jax.make_jaxpr(lambda x: layer(x, resets=RESETS))(x))
    assert_same(layer(x), module(api, one)(x), 0)


def test_the_linen_layer_draws_the_carries_of_flax():
    """With `init_key` as `nn.RNN` and `nn.Bidirectional` do; without it the latter starts both directions alike."""
    x = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)
    call = {"init_key": jax.random.key(7)}
    for options in ({}, {"bidirectional": True}):
        layer, variables = gru_jax.linen.GRU.from_model(made(options), carry_init=NORMAL, return_carry=True)
        rnns = [
            nn.RNN(nn.GRUCell(FEATURES, carry_init=NORMAL, param_dtype=jnp.float64), return_carry=True)
            for _ in range(len(options) + 1)
        ]
        flax = nn.Bidirectional(*rnns, return_carry=True) if options else rnns[0]
        for given in (call,) if options else ({}, call):
            assert_same(layer.apply(variables, x, **given), flax.apply(variables, x, **given))
    assert (layer.apply(variables, x)[1] != layer.apply(variables, x, **call)[1]).any()


def test_the_nnx_layer_draws_its_carries_from_a_stream():
    x = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)
    one = made({"num_layers": 2})
    layer = gru_jax.nnx.GRU.from_model(one, carry_init=NORMAL, rngs=nnx.Rngs(carry=1, params=0))
    first, second = layer(x), layer(x)
    assert (first != second).any()
    shape = (BATCH, IN_FEATURES)
    for rngs in (lambda: nnx.Rngs(carry=3), lambda: nnx.Rngs(3).carry, lambda: jax.random.key(3)):
        carry = layer.initialize_carry(shape, rngs())
        assert (carry[0] != carry[1]).any()
        assert_same(layer(x, rngs=rngs()), layer(x, initial_carry=carry), 0)
    zero = layer.initialize_carry(shape, carry_init=gru_jax.initializers.zeros)
    assert_same(layer(x, initial_carry=zero), gru_jax.nnx.GRU.from_model(one)(x), 0)
    # A key serves both, and not twice.
    both = gru_jax.nnx.GRU.from_model(one, carry_init=NORMAL, recurrent_dropout=0.5, rngs=nnx.Rngs(0))
    with jax.debug_key_reuse(True):
        assert_same(both(x, rngs=jax.random.key(3)), both(x, rngs=jax.random.key(3)), 0)
    with pytest.raises(ValueError, match="rngs must have a stream 'carry'"):
        gru_jax.nnx.GRU(2, 4, carry_init=NORMAL, rngs=nnx.Rngs(params=0))


@each_api
def test_a_random_carry_needs_a_reset_state(api):
    one, x = made({}), inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME)
    layer, step = (module(api, one, method=method, carry_init=NORMAL) for method in (None, "step"))
    carry, start = random(0, BATCH, FEATURES), random(1, FEATURES)
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


# --- Outputs of every layer, and dropout of one -----------------------------------------------------------------------


@each_api
@pytest.mark.parametrize("time_major", [False, True])
def test_return_layers(api, time_major):
    one = made({"num_layers": 3, "bidirectional": True})
    x = inputs(IN_FEATURES, batch=BATCH, dtype="float64", time=TIME, time_major=time_major)
    layer = module(api, one, time_major=time_major)
    dropped = module(api, one, time_major=time_major, dropout=0.5, **({"rngs": nnx.Rngs(0)} if api == "nnx" else {}))
    rngs = {"rngs": {"dropout": jax.random.key(0)} if api == "linen" else jax.random.key(0)}

    @jax.jit
    def run(x):
        carry, outputs = layer(x, return_layers=True, return_carry=True)
        return carry, outputs, layer(x, return_carry=True), dropped(x, return_layers=True, **rngs)

    carry, outputs, last, under_dropout = run(x)
    assert_same((carry, outputs[-1]), last)
    assert [o.shape for o in outputs] == [(*x.shape[:2], 2 * FEATURES)] * 3
    major = outputs if time_major else [o.swapaxes(0, 1) for o in outputs]
    xs = x if time_major else x.swapaxes(0, 1)
    for i, output in enumerate(major):
        for direction in range(2):
            _, hs = gru_jax.unroll(gru_jax.CUDNN, one.params[2 * i + direction], xs, reverse=direction == 1)
            assert_same(output[..., direction * FEATURES :][..., :FEATURES], hs)
        xs = output
    assert_same(under_dropout[0], outputs[0])  # before dropout
    assert (under_dropout[1] != outputs[1]).any()
    assert (under_dropout[0] != 0).all()


@each_api
def test_dropout_of_one_layer_warns(api):
    make = {
        "nnx": functools.partial(gru_jax.nnx.GRU, IN_FEATURES, FEATURES, rngs=nnx.Rngs(params=0)),
        "linen": functools.partial(gru_jax.linen.GRU, FEATURES),
    }[api]
    with pytest.warns(UserWarning, match=r"dropout=0.9 drops nothing with num_layers=1") as caught:
        layer = make(dropout=0.9)
    assert [warning.filename for warning in caught] == [__file__]
    x = jnp.ones((2, TIME, IN_FEATURES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither a call warns, nor does what drops something
        if api == "nnx":
            assert layer(x).shape == (2, TIME, FEATURES)  # without a stream for dropout
        else:
            variables = layer.init(jax.random.key(0), x)
            assert_same(layer.apply(variables, x), layer.apply(variables, x, deterministic=True), 0)
        make(recurrent_dropout=0.0)
        if api == "linen":
            make(num_layers=2, dropout=0.5)
            make(recurrent_dropout=0.5)
