"""Which computations run on the native kernels, which on XLA, and what settings and exports change about it."""

import functools
import re
import warnings

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import gru_jax
from gru_jax import policy, registry, unbuilt
from gru_jax.cells import LSTM, MinGRU
from gru_jax.cells.gru import jac_vector
from gru_jax.lowerings import native as kernels
from gru_jax.lowerings import report
from gru_jax.recurrence import shifted
from tests.cases import OPTIONS, problem, unroll
from tests.kernels import by_scan, check, each_cell, native, run, single

pytestmark = pytest.mark.optimized


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
    assert [x[:3] for x in gru_jax.lowerings(jax.grad(run(cell=cell)))(*args)] == [
        ("gru_states", "xla-cpu", why),
        ("gru_states_vjp", "xla-cpu", why),
    ]
    assert "gru_jax_states" not in program(jax.grad(run(cell=cell)), *args)
    with pytest.raises(ValueError, match=f'method="native" is not to be had here: {why}'):
        run("native", cell)(*args)


@native
def test_lowerings_name_the_instruction_set():
    from gru_jax import _native

    isa = _native.isa()
    assert [x[:3] for x in gru_jax.lowerings(jax.grad(run()))(*arguments())] == [
        ("gru_states", "native", isa),
        ("gru_states_vjp", "native", isa),
    ]
    tangent = lambda *args: jax.jvp(run(), args, args)  # noqa: E731
    assert [x[:2] for x in gru_jax.lowerings(jax.jit(tangent))(*arguments())] == [
        ("gru_states", "native"),
        ("gru_states_jvp", "xla-cpu"),
    ]
    assert program(tangent, *arguments()).count("gru_jax_linear_recurrence") == 1
    assert [x[:3] for x in gru_jax.lowerings(run("scan"))(*arguments())] == [("GRU states", "scan", "")]


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
    recurrences = ["gru_states"] * 2 + ["gru_states_vjp"] * 2 * (holder == "nnx.grad")
    assert [x[:2] for x in found] == [(recurrence, "xla-cpu") for recurrence in recurrences]
    jax.tree.map(lambda x, y: pytest.fail("it changed") if (x != y).any() else None, before, nnx.state(module))
    module(jnp.ones((2, 5, 3), jnp.float32))  # and can be called


def test_a_module_as_a_keyword():
    found = gru_jax.lowerings(lambda xs, *, layer: layer(xs))(jnp.ones((2, 5, 3), jnp.float32), layer=module)
    assert [x.recurrence for x in found] == ["gru_states"] * 2


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
        return [x.lowering == "native" for x in gru_jax.lowerings(gradient)(*shapes)]

    assert used("auto") == [states, pull]
    assert used("native") == used("auto", 3) == [True, True]


def value_and_gradient(cell, options, method):
    def loss(*args):
        h_last, hs = unroll(cell, *args, method=method, **options)
        return jnp.sin(hs).sum() + (h_last**3).sum()

    return jax.value_and_grad(loss, (0, 1, 2, 3))


@native
@each_cell
@pytest.mark.parametrize("left", ["gru_states", "gru_states_vjp"])
@pytest.mark.parametrize("kept", [False, True])
def test_one_of_them_left_to_xla(cell, left, kept, keep, monkeypatch):
    """The states of a kernel, and what it keeps, are right for the gradient of XLA, and the other way round."""
    keep(kept)
    monkeypatch.setattr(policy, "kernel_pays", lambda recurrence, *sizes: recurrence != left)
    p = problem(cell, OPTIONS["all"])
    function, args = functools.partial(value_and_gradient, cell, p.options), single(p[:4])
    used = gru_jax.lowerings(function("auto"))(*args)
    assert [x.recurrence for x in used if x.lowering != "native"] == [left]
    check(jax.jit(function("auto"))(*args), by_scan(function, *args))


@each_cell
@pytest.mark.parametrize(("hoisted", "scale"), [(0, 10), (float("inf"), 1)])
def test_loops_of_xla_in_float32(cell, hoisted, scale, monkeypatch):
    """Where their activations differ from the scan's; saturated, too."""
    monkeypatch.setattr(policy, "HOISTED_PROJECTION_MAX_ELEMENTS", hoisted)
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
    monkeypatch.setattr(kernels, "native_import_error", reason)
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
        ("GRU_JAX_KEEP_RESIDUALS", "", "GRU_JAX_KEEP_RESIDUALS must be 0 or 1, got ''"),
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
    expected = gru_jax.settings.Config(native=False, native_threads=3, keep_residuals=True)
    assert gru_jax.settings.from_environment() == expected
    monkeypatch.setenv("GRU_JAX_KEEP_RESIDUALS", "0")
    assert not gru_jax.settings.from_environment().keep_residuals


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("native", 1, TypeError),
        ("keep_residuals", 0, TypeError),
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


# --- What is saved, and the platform that is lowered for --------------------------------------------------------------

STEPS, BATCH = 37, 5
FEW, MANY = 4, 160
"""Features of a state; of an LSTM with the second, more than 131,072 weights."""


def gradient_and_types(cell, features, batch=BATCH, method="auto"):
    """A gradient, and the types of parameters and inputs that it takes."""
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 64, features, dtype=jnp.float32))
    xs = jax.ShapeDtypeStruct((STEPS, batch, 64), jnp.float32)
    loss = lambda params, xs: (gru_jax.unroll(cell, params, xs, method=method)[1] ** 2).sum()  # noqa: E731
    return jax.grad(loss, (0, 1)), (params, xs)


def saved(*args, **kwargs):
    """The lowering of a gradient's states, and how many arrays like these it saves."""
    gradient, types = gradient_and_types(*args, **kwargs)
    states, *rest = gru_jax.lowerings(gradient)(*types)
    assert [x.recurrence for x in rest] == [f"{states.recurrence}_vjp"]
    assert [x.saved for x in rest] == [{}]
    one = STEPS * types[1].shape[1] * args[1] * 4
    return states.lowering, {name: size // one for name, size in states.saved.items()}


def test_lowerings_tell_what_is_saved():
    pre = dict.fromkeys("rznq", 1)
    assert saved(gru_jax.CUDNN, FEW, method="fused") == ("xla-cpu", {"states": 1})
    assert saved(gru_jax.CUDNN, MANY, method="fused") == ("xla-cpu", {"states": 1, **pre})
    assert saved(gru_jax.CHO2014, MANY, method="fused") == ("xla-cpu", {"states": 1, **dict.fromkeys("rzn", 1)})
    assert saved(LSTM(), FEW, batch=9) == ("fused", {"states": 2, "residuals": 0})
    assert saved(LSTM(), FEW) == ("fused", {"states": 2, "residuals": 4})  # the LSTM's four gates
    lowering, every = saved(LSTM(), MANY, batch=9)
    assert lowering == "scan"
    assert every["outputs and residuals"] > 6
    assert saved(gru_jax.CUDNN, FEW, method="scan")[1]["outputs and residuals"] > 5
    assert saved(MinGRU(), FEW)[0] == "scan"
    assert saved(MinGRU(), FEW, method="parallel")[0] == "parallel"


def test_a_setting_lets_gradients_save_states_alone(monkeypatch):
    monkeypatch.setattr(gru_jax.config, "keep_residuals", False)
    assert saved(gru_jax.CUDNN, MANY) == (saved(gru_jax.CUDNN, MANY)[0], {"states": 1})
    assert saved(LSTM(), FEW) == ("fused", {"states": 2, "residuals": 0})


def test_another_default_backend_decides_what_is_saved(monkeypatch):
    monkeypatch.setattr(registry, "default_platform", lambda: "tpu")
    monkeypatch.setattr(report, "default_platform", lambda: "tpu")
    assert saved(gru_jax.CUDNN, MANY) == ("xla", {"states": 1})
    assert saved(LSTM(), FEW) == ("fused", {"states": 2, "residuals": 0})
    assert saved(LSTM(), MANY, batch=9) == ("fused", {"states": 2, "residuals": 0})
    assert saved(MinGRU(), FEW)[0] == "parallel"


def loops(gradient, types, platform):
    """What the loops of a program for a platform have as results and operands."""
    text = jax.jit(lambda *args: gradient(*args)).trace(*types).lower(lowering_platforms=(platform,)).as_text()
    return re.findall(r"stablehlo.while.* : (.*)", text)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("cell", [gru_jax.CUDNN, gru_jax.CHO2014])
def test_a_program_for_another_platform_saves_nothing_for_a_cpu(cell, platform, monkeypatch):
    """On a host with a CPU, whose own program saves more; of cells run by their step, `test_accelerators`."""

    def both():
        return [loops(*gradient_and_types(cell, MANY, method="fused"), target) for target in (platform, "cpu")]

    of_platform, of_cpu = both()
    assert len(of_platform) == 2
    monkeypatch.setattr(gru_jax.config, "keep_residuals", False)
    alone, of_cpu_alone = both()
    assert alone == of_platform
    assert of_cpu_alone != of_cpu


def test_a_minimal_gru_runs_by_the_platform_that_is_lowered_for():
    """A loop on a CPU; in a gradient, and a gradient of many by `vmap`, too."""
    gradient, (params, xs) = gradient_and_types(MinGRU(), FEW)
    many = jax.ShapeDtypeStruct((3, *xs.shape), xs.dtype)
    for function, types in ((gradient, (params, xs)), (jax.vmap(gradient, (None, 0)), (params, many))):
        assert len(loops(function, types, "cpu")) == 2
        assert loops(function, types, "cuda") == loops(function, types, "tpu") == []


def test_an_lstm_of_many_weights_runs_by_the_platform_that_is_lowered_for(monkeypatch):
    """By autodiff of the scan on a CPU, elsewhere by the two recurrences, which save fewer arrays of every step."""
    gradient, types = gradient_and_types(LSTM(), MANY, batch=9)
    found = {platform: loops(gradient, types, platform) for platform in ("cpu", "cuda", "tpu")}
    assert found.pop("cpu") == loops(*gradient_and_types(LSTM(), MANY, 9, "scan"), "cpu")
    monkeypatch.setattr(gru_jax.config, "keep_residuals", False)
    for platform, of_platform in found.items():
        assert of_platform == loops(*gradient_and_types(LSTM(), MANY, 9, "fused"), platform)


def by_jacobians(o, *, method, reset_after, reverse, transposed):
    """The linear recurrence by an associative scan of whole matrices J_t: parallel over time."""
    columns = jax.vmap(
        lambda e: jac_vector(
            reset_after, o.jac, o.recurrent_kernel, o.dropout_mask, jnp.broadcast_to(e, o.source.shape), 1
        )
    )(jnp.eye(o.source.shape[-1], dtype=o.source.dtype))
    matrices = jnp.moveaxis(columns, 0, -2 if transposed else -1)
    if transposed:
        matrices = shifted(matrices, jnp.zeros_like(matrices[0]), not reverse)

    def compose(first, second):
        return second[0] @ first[0], jnp.einsum("...ij,...j->...i", second[0], first[1]) + second[1]

    return jax.lax.associative_scan(compose, (matrices, o.source), reverse=reverse != transposed)[1]


@each_cell
def test_a_lowering_is_one_registration(cell, monkeypatch):
    """Where it can run something it does, and every derivative has it."""
    ours = registry.Lowering(
        "by jacobians",
        {"gru_linear_recurrence": by_jacobians},
        obstacle=lambda question: "no masks" if question.operands.mask is not None else None,
    )
    monkeypatch.setattr(registry, "_registered", [ours, *registry._registered])
    p = problem(cell)

    def derivatives(method, **options):
        gradient = jax.grad(lambda *args: (unroll(cell, *args, method=method, **options)[1] ** 2).sum(), (0, 1, 2))
        return lambda *args: jax.jvp(gradient, args, args)

    got, want = (jax.jit(derivatives(method))(*p[:4]) for method in ("fused", "scan"))
    chex.assert_trees_all_close(got, want, atol=1e-10)
    linear = lambda found: {x.lowering for x in found if x.recurrence == "gru_linear_recurrence"}  # noqa: E731
    assert linear(gru_jax.lowerings(derivatives("fused"))(*p[:4])) == {"by jacobians"}
    mask = jnp.ones(p.xs.shape[:-1], bool)
    assert linear(gru_jax.lowerings(derivatives("fused", mask=mask))(*p[:4])) == {"xla-cpu"}
