"""The cells that the GRU is compared with: against loops written from their papers; a table of cells × options."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax.cells import LSTM, Elman, Leaky, LSTMState, MinGRU, RefineGRU
from tests import cases, oracle
from tests.cases import BATCH, FEATURES, IN_FEATURES, OPTIONS, STEPS, unroll
from tests.compared import CASES, KEY, chosen, each_case, each_run, expected, flat, problem, weights
from tests.own_cells import OWN, Clock, Dropped

# --- Values -----------------------------------------------------------------------------------------------------------


@each_case
def test_one_step_and_its_gates(case):
    case = CASES[case]
    params, xs, state = problem(case)
    got, gates = jax.jit(lambda *now: (case.cell.step(*now), case.cell.gates(*now)))(params, state, xs[0])
    steps = [
        case.step(weights(case, params), tuple(np.asarray(part[b]) for part in jax.tree.leaves(state)), xs[0, b])
        for b in range(BATCH)
    ]
    desired, theirs = jax.tree.map(lambda *parts: np.stack(parts), *steps)
    chex.assert_trees_all_close(tuple(jax.tree.leaves(got)), desired, atol=1e-14)
    named = dict(zip(case.cell.order, case.letters.split(), strict=True))
    for name, values in gates.items():
        letter = named.get(name, name)
        expected = np.broadcast_to(theirs[letter[-1]].reshape(BATCH, -1), (BATCH, FEATURES))
        np.testing.assert_allclose(values, 1 - expected if letter[0] == "-" else expected, atol=1e-14)
    assert set(case.cell.order) <= set(gates)
    assert not case.cell.update_gate or case.cell.update_gate in gates


@pytest.mark.parametrize("name", cases.CELLS)
def test_gates_of_a_gru(name):
    cell, (params, xs, h, *_) = cases.CELLS[name], cases.problem(cases.CELLS[name])
    options = {"reset_after": cell.reset_after, "candidate": oracle.sigmoid if name == "goodfellow" else np.tanh}
    got = cell.gates(params, h, xs[0])
    for b in range(BATCH):
        desired = oracle.gru_gates(oracle.weights(params), np.asarray(h[b]), np.asarray(xs[0, b]), **options)
        chex.assert_trees_all_close({gate: value[b] for gate, value in got.items()}, desired, atol=1e-14)


ZONEOUT = {"zoneout": ("zoneout",), "zoned": ("zoneout_mask", "mask", "lengths", "resets", "reverse")}


@each_run
def test_options_agree_with_the_numpy_loop(case, method):
    """Every combination of options, in one compiled program."""
    case = CASES[case]
    arguments = problem(case)
    rows = {name: options for name, options in OPTIONS.items() if name != "dropout"}
    rows |= {} if method == "parallel" else ZONEOUT

    @jax.jit
    def run(params, xs, state_0):
        return {
            name: gru_jax.unroll(case.cell, params, xs, state_0, **chosen(options, state_0), method=method)
            for name, options in rows.items()
        }

    for name, result in run(*arguments).items():
        desired = expected(case, *arguments, chosen(rows[name], arguments[2]))
        chex.assert_trees_all_close(flat(result), desired, atol=1e-12)


@each_run
def test_any_batch_and_any_number_of_steps(case, method):
    """No batch axis, two, an empty one; no h_0, one step, a sequence in two parts, no steps at all."""
    case = CASES[case]
    params, xs, state_0 = problem(case)
    cell, options = case.cell, chosen(("mask", "resets"), state_0)

    @jax.jit
    def run(params, xs, state_0):
        unroll = functools.partial(gru_jax.unroll, cell, params, method=method)
        one, two = (functools.partial(jax.tree.map, f) for f in (lambda x: x[..., 1, :], lambda x: x[..., None, :, :]))
        flags = {name: options[name] for name in ("mask", "resets")}
        one_flags = {name: flag[:, 1] for name, flag in flags.items()} | {"reset_state": one(options["reset_state"])}
        # Without its new axis, which it may leave out.
        two_flags = {name: flag[:, None] for name, flag in flags.items()} | {"reset_state": options["reset_state"]}
        middle, first = unroll(xs[:1])
        end, second = unroll(xs[1:], middle)
        return (
            (unroll(one(xs), one(state_0), **one_flags), unroll(two(xs), two(state_0), **two_flags)),
            unroll(xs[:, :0]),
            (end, jnp.concatenate([first, second])),
            (middle, cell.step(params, cell.initial_state(params, (BATCH,)), xs[0])),
            unroll(xs[:0], state_0),
        )

    (one, two), empty, parts, (unrolled, stepped), none = run(params, xs, state_0)
    desired = expected(case, params, xs, state_0, options)
    chex.assert_trees_all_close(flat(one), jax.tree.map(lambda x: x[..., 1, :], desired), atol=1e-12)
    chex.assert_trees_all_close(flat(two), jax.tree.map(lambda x: x[..., None, :, :], desired), atol=1e-12)
    assert empty[1].shape == (STEPS, 0, FEATURES)
    zero = cell.initial_state(params, (BATCH,))
    chex.assert_trees_all_close(flat(parts), expected(case, params, xs, zero, {}), atol=1e-12)
    chex.assert_trees_all_close(unrolled, stepped, atol=1e-14)
    chex.assert_trees_all_equal(none, (state_0, jnp.zeros((0, BATCH, FEATURES))))


@each_run
def test_the_state_is_kept_in_float32(case, method):
    case = CASES[case]
    arguments = problem(case, dtype=jnp.bfloat16)
    state_T, hs = jax.jit(functools.partial(gru_jax.unroll, case.cell, method=method))(*arguments)
    assert {part.dtype.name for part in jax.tree.leaves((arguments[2], state_T))} == {"float32"}
    assert hs.dtype == jnp.bfloat16
    # A minGRU's candidate is not bounded by one, and neither is an LSTM's memory.
    chex.assert_trees_all_close(flat((state_T, hs)), expected(case, *arguments, {}), atol=4e-2, rtol=4e-2)


@each_run
def test_gradients_of_many_seeds_at_once(case, method):
    """vmap over weights mixes no two of them; what is masked, NaN too, has no part in a gradient."""
    cell = CASES[case].cell
    params, xs, state_0 = problem(CASES[case], steps=3)
    xs = xs.at[2:, 1].set(jnp.nan).at[:, 2].set(jnp.nan)

    def loss(params, xs):
        state_T, hs = gru_jax.unroll(cell, params, xs, state_0, lengths=jnp.array([3, 2, 0]), method=method)
        return (hs**2).sum() + sum((part**2).sum() for part in jax.tree.leaves(state_T))

    @jax.jit
    def run(params, xs, scale):
        ensemble = jax.tree.map(lambda leaf: jnp.stack([leaf, scale * leaf]), params)
        return jax.vmap(jax.grad(loss, argnums=(0, 1)), in_axes=(0, None))(ensemble, xs)

    gradients, others = run(params, xs, -0.5), run(params, xs, 1.0)
    chex.assert_tree_all_finite(gradients)
    assert not gradients[1][:, 2:, 1].any()
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients[0]))
    assert any((leaf[0] != leaf[1]).any() for leaf in jax.tree.leaves(gradients[0]))
    first, second = operator.itemgetter(0), operator.itemgetter(1)
    chex.assert_trees_all_close(jax.tree.map(first, gradients), jax.tree.map(first, others), atol=1e-12)
    chex.assert_trees_all_close(jax.tree.map(second, others), jax.tree.map(first, others), atol=1e-12)


# --- Zoneout and recurrent dropout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cudnn", "cho2014"])
def test_zoneout_of_a_gru(name):
    """By the general forms: "auto" is one of them then. A rate of zero is none."""
    cell = cases.CELLS[name]
    params, xs, h_0, start, options = cases.problem(cell, ("mask", "lengths", "resets", "reverse"))
    keep = jax.random.bernoulli(KEY, 0.4, (STEPS, BATCH, FEATURES))
    every = {"rate": {"zoneout": 0.3}, "mask": {"zoneout": 0.3, "zoneout_mask": keep}}

    @jax.jit
    def run(params, xs, h_0, start):
        return {
            (row, method): unroll(cell, params, xs, h_0, start, **options, **zoneout, method=method)
            for row, zoneout in every.items()
            for method in ("auto", "fused", "scan")
        }

    def step(w, state, x):
        gates = oracle.gru_gates(w, state[0], x, reset_after=cell.reset_after)
        return (gates["z"] * state[0] + (1 - gates["z"]) * gates["n"],), gates

    case = CASES["lstm"]._replace(cell=cell, step=step, letters="r z n")
    for (row, _), result in run(params, xs, h_0, start).items():
        zoneout = {"zoneout_mask": keep} if row == "mask" else {"zoneout": 0.3}
        desired = expected(case, params, xs, h_0, options | {"reset_state": start} | zoneout)
        chex.assert_trees_all_close(flat(result), desired, atol=1e-12)

    def primitives(**zoneout):
        return "gru_states" in str(jax.make_jaxpr(lambda: gru_jax.unroll(cell, params, xs, h_0, **zoneout))())

    assert primitives()
    assert primitives(zoneout=0.0)
    assert not primitives(zoneout=0.1)
    with pytest.raises(ValueError, match="method='native' has no zoneout"):
        gru_jax.unroll(cell, params, xs, zoneout=0.1, method="native")


def test_zoneout_of_a_state_with_integers():
    """A clock is never held by it; of one rate or mask for all, it takes no part."""
    cell, xs = OWN["clocked"], jnp.ones((STEPS, BATCH, IN_FEATURES))
    params = cell.init(KEY, IN_FEATURES, FEATURES)
    every = jnp.ones((STEPS, BATCH, FEATURES), bool)
    for zoneout in ({"zoneout": 0.5}, {"zoneout_mask": every}, {"zoneout_mask": Clock(jnp.ones(3), every)}):
        state, hs = gru_jax.unroll(cell, params, xs, **zoneout)
        assert (state.t == STEPS).all()
        assert hs.any() == ("zoneout" in zoneout)


def test_recurrent_dropout_of_a_cell_of_ones_own():
    cell, mask = Dropped(), jnp.array([2.0, 0.0, 2.0, 0.0])
    params, xs = cell.init(KEY, IN_FEATURES, FEATURES), jax.random.normal(KEY, (STEPS, IN_FEATURES))
    got = [gru_jax.unroll(cell, params, xs, recurrent_dropout_mask=mask, method=m)[1] for m in ("scan", "fused")]
    h, hs = jnp.zeros(FEATURES), []
    for x in xs:
        h = cell.step(params, h, x, recurrent_dropout_mask=mask)
        hs.append(h)
    chex.assert_trees_all_close(*got, jnp.stack(hs), atol=1e-12)
    with pytest.raises(ValueError, match="the step of Joined does not take it"):
        gru_jax.unroll(OWN["joined"], params, xs, recurrent_dropout_mask=mask)


# --- Special cases and other frameworks -------------------------------------------------------------------------------


def test_special_cases():
    params, xs, h_0 = problem(CASES["elman"])
    leaky = gru_jax.unroll(Leaky(1.0), gru_jax.cells.LeakyParams(*params[:3]), xs, h_0)
    chex.assert_trees_all_close(leaky, gru_jax.unroll(Elman(), params, xs, h_0), atol=1e-14)

    params, xs, h_0 = problem(CASES["refine"])
    half = [leaf.at[..., 2 * FEATURES : 3 * FEATURES].set(0) for leaf in params[:3]]
    without = [jnp.delete(leaf, slice(2 * FEATURES, 3 * FEATURES), axis=-1) for leaf in params[:3]]
    chex.assert_trees_all_close(
        gru_jax.unroll(RefineGRU(), gru_jax.Params(*half, params[3]), xs, h_0),
        gru_jax.unroll(gru_jax.CUDNN, gru_jax.Params(*without, params[3]), xs, h_0),
        atol=1e-14,
    )


def test_lstm_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    params, xs, state_0 = problem(CASES["lstm"])
    theirs = torch.nn.LSTM(IN_FEATURES, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        for name, value in zip(
            ("weight_ih", "weight_hh", "bias_ih"), (params[0].T, params[1].T, params[2]), strict=False
        ):
            getattr(theirs, f"{name}_l0").copy_(torch.tensor(np.asarray(value)))
        theirs.bias_hh_l0.zero_()
    hs, (h_T, c_T) = theirs(
        torch.tensor(np.asarray(xs)), tuple(torch.tensor(np.asarray(part))[None] for part in state_0)
    )
    ours = gru_jax.unroll(LSTM(), params, xs, state_0)
    chex.assert_trees_all_close(flat(ours), ((h_T[0].detach(), c_T[0].detach()), hs.detach()), atol=1e-12)
    (hs**2).sum().backward()
    grads = jax.grad(lambda params: (gru_jax.unroll(LSTM(), params, xs, state_0)[1] ** 2).sum())(params)
    gradients = theirs.weight_ih_l0.grad.T, theirs.weight_hh_l0.grad.T, theirs.bias_ih_l0.grad
    for actual, desired in zip(grads, gradients, strict=False):
        np.testing.assert_allclose(actual, desired, atol=1e-12)


def test_lstm_is_that_of_flax():
    from flax import linen as nn

    params, xs, state_0 = problem(CASES["lstm"])
    variables = {}
    for i, gate in enumerate("ifgo"):
        block = slice(i * FEATURES, (i + 1) * FEATURES)
        variables[f"i{gate}"] = {"kernel": params.kernel[:, block]}
        variables[f"h{gate}"] = {"kernel": params.recurrent_kernel[:, block], "bias": params.bias[block]}
    layer = nn.RNN(nn.OptimizedLSTMCell(FEATURES), time_major=True, return_carry=True)
    (c_T, h_T), hs = layer.apply({"params": {"cell": variables}}, xs, initial_carry=(state_0.c, state_0.h))
    chex.assert_trees_all_close(gru_jax.unroll(LSTM(), params, xs, state_0), (LSTMState(h_T, c_T), hs), atol=1e-12)


# --- minGRU in parallel -----------------------------------------------------------------------------------------------


def test_parallel_gradients_are_those_of_the_sequential_form():
    *arguments, h_0 = problem(CASES["mingru"])
    options = chosen(("mask", "resets", "reverse"), h_0)
    arguments += h_0, options.pop("reset_state")
    weight = jax.random.normal(KEY, (STEPS, BATCH, FEATURES))

    def loss(args, method):
        h_T, hs = unroll(MinGRU(), *args, **options, method=method)
        return (weight * hs).sum() + (h_T**2).sum()

    @jax.jit
    def run(args):
        return [jax.grad(loss)(args, method) for method in ("scan", "parallel")]

    scan, parallel = run(arguments)
    chex.assert_trees_all_close(parallel, scan, rtol=1e-9, atol=1e-12)


def test_parallel_is_exact_where_gates_saturate_and_candidates_vanish():
    """Gates shut for many steps, states at zero and below, candidates near zero and at the kink of g."""
    steps, features = 40, 6
    bias = jnp.array([-60.0, -5.0, 0.0, 5.0, 12.0, 20.0, 0.0, -60.0, 3.0, 0.0, -20.0, 1.0])
    params = gru_jax.cells.MinGRUParams(jnp.zeros((1, 2 * features)), bias)
    h_0 = jnp.stack([jnp.zeros(features), -jnp.ones(features), jnp.full(features, 1e3)])

    @functools.partial(jax.jit, static_argnums=(2, 3))
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(params, h_0, method, dtype):
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, jnp.zeros((steps, 3, 1)), h_0))
        return gru_jax.unroll(MinGRU(), *cast, method=method)[1].sum()

    exact, exact_grads = run(params, h_0, "scan", jnp.float64)
    got, grads = run(params, h_0, "parallel", jnp.float32)
    np.testing.assert_allclose(got, exact, rtol=1e-5)
    np.testing.assert_allclose(grads[1], exact_grads[1], rtol=1e-5)
    np.testing.assert_allclose(grads[0].bias, exact_grads[0].bias, rtol=1e-4, atol=1e-20)


def test_minimal_gru_without_method_runs_by_platform():
    assert set(MinGRU().methods) == {"auto", "scan", "parallel", "fused"}
    params, xs, h_0 = problem(CASES["mingru"])
    loops = {
        method: "scan" in str(jax.make_jaxpr(lambda m=method: gru_jax.unroll(MinGRU(), params, xs, h_0, method=m))())
        for method in ("auto", "scan", "parallel")
    }
    assert loops == {"auto": jax.default_backend() == "cpu", "scan": True, "parallel": False}
