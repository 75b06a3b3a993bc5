"""Where an episode within a call begins: resets and reset_state, in functions, layers and steps of both APIs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

import gru_jax
from gru_jax.cells import LSTM, LSTMState
from tests import compared
from tests.cases import CELLS
from tests.flax_layers import each_api
from tests.from_models import BATCH, FEATURES, IN_FEATURES, RESETS, TIME, made, module, sequences
from tests.sequences import assert_close, normal

STACKS = {"one": {}, "two": {"num_layers": 2}, "both ways": {"num_layers": 2, "bidirectional": True}}
SHORT = ("nnx", "two"), ("linen", "one")


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


@functools.cache
def episodes(stack):
    """Weights, inputs (batch, time, in_features) and carry; and what they give for a start of every cell and sequence.

    That is the carry and outputs, and the gradient of their sum weighed by `weights`.
    """
    one, x = made(STACKS[stack]), sequences()
    initial = normal(0, len(one.params), BATCH, FEATURES)

    def loss(start):
        each = [by_episode(one, x[b], RESETS[b], initial[:, b], start[:, b]) for b in range(BATCH)]
        carry, outputs = jnp.stack([c for c, _ in each], axis=1), jnp.stack([o for _, o in each])
        return weighed(outputs), (carry, outputs)

    return one, x, initial, jax.jit(jax.value_and_grad(loss, has_aux=True))


def weighed(outputs):
    return (normal(3, *outputs.shape) * outputs).sum()


@pytest.mark.parametrize(
    ("api", "stack"),
    [
        pytest.param(api, stack, marks=() if (api, stack) in SHORT else pytest.mark.long)
        for api in ("nnx", "linen")
        for stack in STACKS
    ],
)
def test_an_episode_begins_with_reset_state(api, stack):
    """In the middle of a call that goes on from a carry; backwards reset_state follows its last step."""
    one, x, initial, theirs = episodes(stack)
    start, single = normal(1, *initial.shape), normal(2, FEATURES)
    layer = module(api, one, return_carry=True)

    @jax.jit
    def run(start):
        ours = functools.partial(layer, x, initial_carry=initial, resets=RESETS)
        forms = [ours(reset_state=form) for form in (start, tuple(start), single, None)]
        return forms, jax.grad(lambda single: weighed(ours(reset_state=single)[1]))(single)

    forms, gradient = run(start)
    wide = jnp.broadcast_to(single, start.shape)
    ((_, given), _), ((_, of_single), gradients), ((_, of_zero), _) = map(theirs, (start, wide, 0 * start))
    assert_close(forms, [given, given, of_single, of_zero])
    assert_close(gradient, gradients.sum((0, 1)))
    assert gradient.any()


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"reverse": True}])
def test_an_episode_that_begins_in_the_padding_is_none(options):
    """Backwards, too, where what would begin there would end at the last step that counts."""
    layer = module("nnx", made(options), return_carry=True)
    x, lengths = sequences(), jnp.full(BATCH, 3)
    given = {"initial_carry": normal(0, 1 + ("bidirectional" in options), BATCH, FEATURES)}

    @jax.jit
    def run(x, resets):
        padded = layer(x, seq_lengths=lengths, resets=resets, reset_state=normal(1, FEATURES), **given)
        return padded, layer(x[:, :3], **given)

    (carry, outputs), expected = run(x, jnp.zeros((BATCH, TIME)).at[:, 3:5].set(1))
    assert_close((carry, outputs[:, :3]), expected)


@each_api
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_rollout_step_by_step_is_the_sequence(api, num_layers):
    """In two calls, the second of which begins within an episode, and by steps."""
    one = made({"num_layers": num_layers})
    x, start = sequences(), normal(1, num_layers, BATCH, FEATURES)
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

    whole, parts, steps = run(normal(0, num_layers, BATCH, FEATURES))
    assert_close(parts, whole)
    assert_close(steps, whole)


@each_api
def test_the_flax_cells_take_resets(api):
    one = made({})
    x, carry, start = normal(0, BATCH, IN_FEATURES), normal(1, BATCH, FEATURES), normal(2, FEATURES)
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
        assert_close(ours, theirs)


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
        params, xs, state = made({}).params[0], normal(0, TIME, BATCH, IN_FEATURES), normal(1, BATCH, FEATURES)
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

            def step(carry, now, reset_state=reset_state):
                carry = cell.step(params, carry, now[0], resets=now[1], reset_state=reset_state)
                return carry, cell.output(carry)

            results.append((whole, jax.lax.scan(step, state, (xs, given["resets"]))))
        return results

    for whole, steps in run(state):
        assert_close(steps, whole)


# --- Flags as numbers -------------------------------------------------------------------------------------------------


def test_flags_may_be_numbers():
    """Wherever there are flags, what is not 0 is True, NaN too."""
    one, cells = made({"num_layers": 2}), made({})
    x, carry = sequences(), normal(0, BATCH, FEATURES)
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
        assert_close(everything(mask, resets), expected, 0)
    assert_close(everything(jnp.where(RESETS, -0.0, jnp.nan), nan), expected, 0)
