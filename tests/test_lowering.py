"""Which computations run on the native kernels, which on XLA, and what settings and exports change about it."""

import functools
import re
import warnings

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gru_jax
from gru_jax import lowering, unbuilt
from tests.cases import OPTIONS, problem, unroll
from tests.test_native import by_scan, check, each_cell, native, run, single


def arguments(dtype=jnp.float32):
    return tuple(problem(gru_jax.CUDNN, dtype=dtype)[:2])


def program(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


OBSTACLES = {
    "float64": (gru_jax.CUDNN, jnp.float64, "the kernels are for float32, got float64"),
    "bfloat16": (gru_jax.CUDNN, jnp.bfloat16, "the kernels are for float32, got bfloat16, float32"),
    "relu candidate": (
        gru_jax.GRU(candidate=jax.nn.relu),
        jnp.float32,
        "the cell has other activations than a sigmoid gate and a tanh or sigmoid candidate",
    ),
}


@native
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_native_cannot_do_takes_the_way_of_xla(obstacle):
    cell, dtype, why = OBSTACLES[obstacle]
    args = arguments(dtype)
    assert [*gru_jax.lowerings(jax.grad(run(cell=cell)))(*args)] == [
        ("gru_states", False, why),
        ("gru_pull", False, why),
    ]
    assert "gru_jax_states" not in program(jax.grad(run(cell=cell)), *args)
    with pytest.raises(ValueError, match=f'method="native" is not to be had here: {why}'):
        run("native", cell)(*args)


@native
def test_lowerings_name_the_instruction_set():
    from gru_jax import _native

    isa = _native.isa()
    assert gru_jax.lowerings(jax.grad(run()))(*arguments()) == [("gru_states", True, isa), ("gru_pull", True, isa)]
    tangent = lambda *args: jax.jvp(run(), args, args)  # noqa: E731
    assert [x[:2] for x in gru_jax.lowerings(jax.jit(tangent))(*arguments())] == [
        ("gru_states", True),
        ("gru_push", False),
    ]
    assert program(tangent, *arguments()).count("gru_jax_linear_recurrence") == 1
    assert gru_jax.lowerings(run("scan"))(*arguments()) == []


class Counting(nnx.Module):
    """A layer that draws random numbers, and a module that counts its calls."""

    def __init__(self):
        self.layer = gru_jax.nnx.GRU(3, 4, num_layers=2, dropout=0.5, method="fused", rngs=nnx.Rngs(0))
        self.calls = nnx.Variable(jnp.int32(0))

    def __call__(self, xs):
        self.calls[...] += 1
        return self.layer(xs)


module = Counting()


def of_global(xs):
    return _doubled(xs)


def _doubled(xs):
    return 2 * module(xs)


def holders():
    """Functions that hold a module, by how they do."""
    recursive = lambda xs, again=1: recursive(xs, 0) if again else module(xs)  # noqa: E731
    of = lambda closed: lambda xs: closed["it"][0](xs)  # noqa: E731
    return {
        "module": module,
        "method": module.__call__,
        "closure": (lambda closed: lambda xs: closed(xs))(module),
        "default": lambda xs, layer=module: layer(xs),
        "within a dict": of({"it": [module]}),
        "partial": functools.partial(lambda layer, xs: layer(xs), module),
        "wrapped": functools.wraps(module.__call__)(of({"it": (module,)})),
        "global": of_global,
        "recursive": recursive,
        "its layer": lambda xs: module.layer(xs),
        "nnx.grad": lambda xs: nnx.grad(lambda module, xs: module(xs).sum())(module, xs),
    }


@pytest.mark.parametrize("holder", holders())
def test_modules_that_change_when_they_are_called(holder):
    """They may be what is asked about, or held by it, and are as they were thereafter."""
    before = jax.tree.map(jnp.copy, nnx.state(module))
    found = gru_jax.lowerings(holders()[holder])(jnp.ones((2, 5, 3), jnp.float32))
    primitives = ["gru_states"] * 2 + ["gru_pull"] * 2 * (holder == "nnx.grad")
    assert [(x.primitive, x.native) for x in found] == [(primitive, False) for primitive in primitives]
    jax.tree.map(lambda x, y: pytest.fail("it changed") if (x != y).any() else None, before, nnx.state(module))
    module(jnp.ones((2, 5, 3), jnp.float32))  # and can be called


def test_a_module_as_a_keyword():
    found = gru_jax.lowerings(lambda xs, *, layer: layer(xs))(jnp.ones((2, 5, 3), jnp.float32), layer=module)
    assert [x.primitive for x in found] == ["gru_states"] * 2


@native
@pytest.mark.parametrize(
    ("steps", "batch", "features", "states", "pull"),
    [
        (1, 1, 256, False, True),
        (4, 1, 256, True, True),
        (1, 1, 512, False, False),
        (5, 1, 512, False, False),
        (40, 1, 512, False, True),
        (45, 1, 512, True, True),
        (5, 8, 512, True, True),
        (1, 4, 325, True, False),
        (1, 4, 375, False, False),
        (1, 64, 640, False, True),
        (2, 64, 640, True, True),
    ],
)
def test_few_uses_of_many_weights_are_left_to_xla(steps, batch, features, states, pull):
    def used(method, *groups):
        params = jax.eval_shape(lambda: gru_jax.CUDNN.init(jax.random.key(0), 64, features))
        own = (*(x.shape for x in params), (steps, batch, 64))
        shapes = [jax.ShapeDtypeStruct((*groups, *shape), jnp.float32) for shape in own]

        def loss(*args):
            return (gru_jax.unroll(gru_jax.CUDNN, gru_jax.Params(*args[:-1]), args[-1], method=method)[1] ** 2).sum()

        gradient = jax.vmap(jax.grad(loss)) if groups else jax.grad(loss)
        return [x.native for x in gru_jax.lowerings(gradient)(*shapes)]

    assert used("auto") == [states, pull]
    assert used("native") == used("auto", 3) == [True, True]


def value_and_gradient(cell, options, method):
    def loss(*args):
        h_last, hs = unroll(cell, *args, method=method, **options)
        return jnp.sin(hs).sum() + (h_last**3).sum()

    return jax.value_and_grad(loss, (0, 1, 2, 3))


@native
@each_cell
@pytest.mark.parametrize("left", ["gru_states", "gru_pull"])
@pytest.mark.parametrize("kept", [False, True])
def test_one_of_them_left_to_xla(cell, left, kept, keep, monkeypatch):
    """The states of a kernel, and what it keeps, are right for the gradient of XLA, and the other way round."""
    keep(kept)
    monkeypatch.setattr(lowering, "SMALL", 0)
    monkeypatch.setattr(lowering, "SMALL_OF_SEVERAL", 0)
    monkeypatch.setattr(lowering, "PER_USE", dict.fromkeys(lowering.PER_USE, float("inf")) | {left: 0})
    p = problem(cell, OPTIONS["all"])
    function, args = functools.partial(value_and_gradient, cell, p.options), single(p[:4])
    used = gru_jax.lowerings(function("auto"))(*args)
    assert [x.primitive for x in used if not x.native] == [left]
    check(jax.jit(function("auto"))(*args), by_scan(function, *args))


@each_cell
@pytest.mark.parametrize(("hoisted", "scale"), [(0, 10), (float("inf"), 1)])
def test_loops_of_xla_in_float32(cell, hoisted, scale, monkeypatch):
    """Where their activations differ from the scan's; saturated, too."""
    monkeypatch.setattr(lowering, "HOISTED", hoisted)
    p = problem(cell, OPTIONS["all"], steps=40)
    args = single((p.params, p.xs * scale, p.h_0, p.reset_state))

    def outputs(method):
        return functools.partial(unroll, cell, method=method, **p.options)

    for function in (outputs, functools.partial(value_and_gradient, cell, p.options)):
        check(jax.jit(function("fused"))(*args), by_scan(function, *args))


@native
def test_a_setting_turns_them_off(monkeypatch):
    monkeypatch.setattr(gru_jax.config, "native", False)
    assert "gru_jax_" not in program(jax.grad(run()), *arguments())
    with pytest.raises(ValueError, match=r"config\.native is False"):
        run("native")(*arguments())


def test_without_the_kernels(monkeypatch):
    reason = "not built: no C++ compiler was found when gru_jax was installed"
    monkeypatch.setattr(lowering, "missing", reason)
    unbuilt.warn.cache_clear()
    assert [found.why for found in gru_jax.lowerings(run())(*arguments())] == [reason]
    with pytest.raises(ValueError, match=f'method="native" is not to be had here: {re.escape(reason)}'):
        run("native")(*arguments())
    with warnings.catch_warnings():  # where no kernel would have run, or none is wanted, nothing is said
        warnings.simplefilter("error")
        program(run("fused"), *arguments())
        with monkeypatch.context() as patch:
            patch.setattr(gru_jax.config, "native", False)
            program(run(), *arguments())
    with pytest.warns(UserWarning, match=re.escape(reason) + ".*pip install.*GRU_JAX_NATIVE=0") as warned:
        assert "gru_jax_" not in program(jax.grad(run()), *arguments())
    assert len(warned) == 1
    unbuilt.warn.cache_clear()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("GRU_JAX_NATIVE", "no", "GRU_JAX_NATIVE must be 0 or 1, got 'no'"),
        ("GRU_JAX_KEEP_PREACTIVATIONS", "", "GRU_JAX_KEEP_PREACTIVATIONS must be 0 or 1, got ''"),
        ("GRU_JAX_NATIVE_THREADS", "-1", "GRU_JAX_NATIVE_THREADS must be an integer, 0 or more, got '-1'"),
    ],
)
def test_bad_environment_is_refused(variable, value, message, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        gru_jax.settings.from_environment()


def test_environment(monkeypatch):
    monkeypatch.setenv("GRU_JAX_NATIVE", "0")
    monkeypatch.setenv("GRU_JAX_NATIVE_THREADS", "3")
    expected = gru_jax.settings.Config(native=False, native_threads=3, keep_preactivations=True)
    assert gru_jax.settings.from_environment() == expected
    monkeypatch.setenv("GRU_JAX_KEEP_PREACTIVATIONS", "0")
    assert not gru_jax.settings.from_environment().keep_preactivations


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("native", 1, TypeError),
        ("keep_preactivations", 0, TypeError),
        ("native_threads", -1, ValueError),
        ("threads", 2, AttributeError),
    ],
)
def test_bad_settings_are_refused(setting, value, error):
    with pytest.raises(error, match=setting):
        setattr(gru_jax.config, setting, value)


@native
@each_cell
def test_an_exported_program_is_portable(cell):
    args = single(problem(cell)[:2])
    steps, batch = jax.export.symbolic_shape("steps, batch")
    specs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    exported = jax.export.export(jax.jit(jax.grad(run(cell=cell))), platforms=("cpu", "cuda", "tpu"))(
        specs[0], jax.ShapeDtypeStruct((steps, batch, args[1].shape[-1]), jnp.float32)
    )
    assert "gru_jax_" not in exported.mlir_module()
    check(exported.call(*args), jax.jit(jax.grad(run("scan", cell)))(*args))
