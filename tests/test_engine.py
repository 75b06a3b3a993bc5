"""The two recurrences of any cell: every derivative is that of the plain scan, of this package's cells and of a user's.

In float64, where both differ by rounding alone.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

import gru_jax
from gru_jax import policy
from tests import compared
from tests.cases import BATCH, IN_FEATURES, ORACLE, STEPS
from tests.own_cells import OWN

FEATURES = 4
CELLS = {name: case.cell for name, case in compared.CASES.items()} | OWN
ALL = ("mask", "lengths", "resets", "reverse", "zoneout")


def problem(name, steps=STEPS, batch=BATCH):
    """Parameters, inputs (T, B, D), state_0 and reset_state, of which leaves of integers are zero."""
    cell, keys = CELLS[name], jax.random.split(jax.random.key(1), 8)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), cell.init(keys[0], IN_FEATURES, FEATURES))
    params = jax.tree.map(lambda leaf: leaf + jax.random.normal(keys[1], leaf.shape) / 4, params)
    zero = cell.initial_state(params, (batch,), jnp.float64)

    def some(key):
        return jax.tree.map(
            lambda leaf: (
                jax.random.normal(key, leaf.shape, leaf.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
            ),
            zero,
        )

    xs = jax.random.normal(keys[2], (steps, batch, IN_FEATURES))
    return cell, (params, xs, some(keys[3]), some(keys[4]))


def flags(options, batch=BATCH):
    every = {
        "mask": jax.random.bernoulli(jax.random.key(2), 0.7, (STEPS, batch)),
        "lengths": jnp.array([STEPS, 4, 0])[:batch],
        "resets": jax.random.bernoulli(jax.random.key(3), 0.3, (STEPS, batch)),
        "reverse": True,
        "zoneout": 0.2,
    }
    return {name: every[name] for name in options}


def floating(tree):
    """The leaves that have a derivative."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def loss(cell, args, options, method):
    """A loss, and the leaves it may be differentiated by, as a list."""
    leaves, structure = jax.tree.flatten(args)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def f(*values):
        moved = dict(zip(moving, values, strict=True))
        params, xs, state_0, start = jax.tree.unflatten(structure, [moved.get(i, x) for i, x in enumerate(leaves)])
        state_T, hs = gru_jax.unroll(cell, params, xs, state_0, reset_state=start, method=method, **options)
        weight = jnp.sin(jnp.arange(hs.size, dtype=hs.dtype)).reshape(hs.shape)
        return (weight * jnp.sin(hs)).sum() + sum((leaf**3).sum() for leaf in floating(state_T))

    return f, [leaves[i] for i in moving]


def along(values):
    return tuple(jnp.cos(jnp.arange(x.size, dtype=x.dtype) + 1).reshape(x.shape) for x in values)


def gradient(f, count):
    return jax.value_and_grad(f, tuple(range(count)))


def forward_over_reverse(f, values):
    return jax.jvp(gradient(f, len(values)), values, along(values))


def reverse_over_reverse(f, values):
    def second(*values):
        grads = gradient(f, len(values))(*values)[1]
        return sum(jnp.vdot(g, d) for g, d in zip(grads, along(grads), strict=True))

    return gradient(second, len(values))(*values)


def third_order(f, values):
    return jax.jvp(lambda *values: reverse_over_reverse(f, values), values, along(values))


def derived(name, options, derivative, method, **sizes):
    cell, args = problem(name, **sizes)
    f, values = loss(cell, args, options, method)
    compiler = ORACLE if method == "scan" else None
    return jax.jit(lambda *values: derivative(f, values), compiler_options=compiler)(*values)


def both(*problem, **sizes):
    """A derivative by the two recurrences, and by autodiff of the scan."""
    return derived(*problem, "fused", **sizes), derived(*problem, "scan", **sizes)


@functools.cache
def by_scan(name, options, derivative):
    return derived(name, flags(options), derivative, "scan")


@pytest.fixture
def save(monkeypatch):
    """A function that says whether gradients save the products of the state with weights."""
    return lambda saved: monkeypatch.setattr(policy, "saves_products", lambda *args: saved)


KINDS = ("lstm", "joined", "clocked", "heads", "dreamer", "mut1")
"""Cells that differ in what the engine sees: states, products that follow each other, weights beside products."""


def rows():
    """Every cell by a program with derivatives of first and second order, half of them from saved products; kinds by
    other derivatives."""
    for i, name in enumerate(CELLS):
        yield name, ALL, forward_over_reverse, bool(i % 2), name in ("lstm", "joined", "clocked")
    for name in KINDS:
        yield name, ALL, forward_over_reverse, list(CELLS).index(name) % 2 == 0, name == "joined"
        yield name, (), reverse_over_reverse, True, False
    for name, saved in (("lstm", False), ("joined", True)):
        yield name, ALL, third_order, saved, False


@pytest.mark.parametrize(
    ("name", "options", "derivative", "saved"),
    [pytest.param(*row, marks=() if short else pytest.mark.long) for *row, short in rows()],
)
def test_every_derivative_is_that_of_the_scan(name, options, derivative, saved, save):
    save(saved)
    got, expected = derived(name, flags(options), derivative, "fused"), by_scan(name, options, derivative)
    chex.assert_trees_all_close(got, expected, atol=1e-9, rtol=1e-9)


def test_time_and_batch_are_one_axis_on_a_single_device(monkeypatch):
    """The other tests have several devices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    got, expected = both("joined", flags(ALL, 2), forward_over_reverse, batch=2)
    chex.assert_trees_all_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("method", ["scan", "fused"])
def test_gradient_inside_shard_map(method):
    """Sequences lie on two devices; the start of a call, which is made within, is on both; weights are summed over."""
    cell, (params, xs, *_) = problem("clocked", batch=4)
    resets = jax.random.bernoulli(jax.random.key(3), 0.3, xs.shape[:-1])

    def gradient(params, xs, resets):
        run = functools.partial(gru_jax.unroll, cell, resets=resets, method=method)
        return jax.grad(lambda params, xs: (run(params, xs)[1] ** 2).sum(), (0, 1))(params, xs)

    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,))
    batch = PartitionSpec(None, "devices")
    spread = jax.shard_map(
        gradient, mesh=mesh, in_specs=(PartitionSpec(), batch, batch), out_specs=(PartitionSpec(), batch)
    )
    chex.assert_trees_all_close(jax.jit(spread)(params, xs, resets), gradient(params, xs, resets), atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("derivative", [jax.hessian, lambda f, argnums: jax.jacfwd(jax.jacrev(f, argnums), argnums)])
@pytest.mark.parametrize("name", ["mgu", "heads"])
def test_whole_matrices(name, derivative):
    got, expected = both(
        name, {}, lambda f, values: derivative(f, tuple(range(len(values))))(*values), steps=3, batch=1
    )
    chex.assert_trees_all_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "axes"), [("lstm", (0, None)), ("lstm", (None, 1)), ("joined", (0, 1)), ("clocked", (0, 0))]
)
def test_vmap_of_a_gradient_and_gradient_of_a_vmap(name, axes):
    cell, (params, xs, *_) = problem(name)
    params_axis, xs_axis = axes
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), params) if params_axis == 0 else params
    inputs = xs if xs_axis is None else jnp.stack([xs, xs[::-1]], axis=xs_axis)

    def run(method):
        def f(params, xs):
            return (gru_jax.unroll(cell, params, xs, method=method, resets=flags(("resets",))["resets"])[1] ** 2).sum()

        def everything(params, xs):
            of_each = jax.vmap(jax.value_and_grad(f, (0, 1)), in_axes=axes)(params, xs)
            return of_each, jax.grad(lambda p, x: jax.vmap(f, axes)(p, x).sum(), (0, 1))(params, xs)

        return jax.jit(everything, compiler_options=ORACLE if method == "scan" else None)(many, inputs)

    chex.assert_trees_all_close(run("fused"), run("scan"), atol=1e-9, rtol=1e-9)


def gradient_of_outputs(name, steps, batch):
    """A gradient by parameters and inputs, and these."""
    cell, (params, xs, *_) = problem(name, steps=steps, batch=batch)
    return lambda params, xs: gru_jax.unroll(cell, params, xs, method="fused")[1].sum(), (params, xs)


each_cell = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ("lstm", "joined", "clocked") else pytest.mark.long) for name in CELLS],
)


@each_cell
def test_a_gradient_keeps_inputs_and_states_alone(name, save):
    steps, batch = 37, 5
    save(False)
    f, args = gradient_of_outputs(name, steps, batch)
    states = jax.tree.leaves(CELLS[name].initial_state(args[0], (batch,), jnp.float64))
    expected = sorted([IN_FEATURES, *(leaf.shape[-1] for leaf in states)])
    for function in (f, jax.checkpoint(f, policy=gru_jax.save_states)):
        _, vjp = jax.vjp(function, *args)
        kept = {id(x): x for x in jax.tree.leaves(vjp) if x.ndim and x.shape[0] in (steps, steps * batch)}
        assert sorted(leaf.shape[-1] for leaf in kept.values()) == expected


def jaxprs(jaxpr):
    """A jaxpr and those within it, each with whether it is the body of a loop."""
    todo = [(jaxpr, False)]
    while todo:
        jaxpr, looped = todo.pop()
        yield jaxpr, looped
        for equation in jaxpr.eqns:
            for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns"):
                    todo.append((getattr(inner, "jaxpr", inner), looped or equation.primitive.name == "scan"))


@each_cell
def test_gradients_of_weights_are_products_over_all_steps(name, save):
    """No product within a loop makes a matrix of weights, and no array outside holds one for each step."""
    steps, batch = 37, 5
    save(False)
    f, args = gradient_of_outputs(name, steps, batch)
    program = jax.make_jaxpr(jax.vmap(jax.grad(f, (0, 1)), in_axes=(None, 0)))(args[0], args[1][None]).jaxpr
    matrices = {leaf.shape for leaf in jax.tree.leaves(args[0]) if leaf.ndim > 1}
    within = 0
    for jaxpr, looped in jaxprs(program):
        for equation in jaxpr.eqns:
            shapes = [v.aval.shape for v in equation.outvars]
            if looped and equation.primitive.name == "dot_general":
                within += 1
                assert not matrices.intersection([*shapes, *(shape[::-1] for shape in shapes)])
            assert not any(shape[:1] == (steps,) and shape[-2:] in {m[-2:] for m in matrices} for shape in shapes)
    assert within or name in ("mingru", "diagonal")
