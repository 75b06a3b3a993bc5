"""Parameters that are none are refused by name, before any compute: cells × leaves × what is wrong with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gru_jax
from gru_jax import cells, layers
from gru_jax.convert import Model
from tests.compared import CASES

CELLS = {"cudnn": gru_jax.CUDNN, "cho2014": gru_jax.CHO2014, **{name: case.cell for name, case in CASES.items()}}
D, H, XS = 2, 4, np.ones((3, 2, 2), np.float32)
SHORT = ("cho2014", "lstm", "leaky_learned", "mingru", "ba2016", "block", "diagonal")
each_cell = pytest.mark.parametrize(
    "cell",
    [pytest.param(cell, id=name, marks=() if name in SHORT else pytest.mark.long) for name, cell in CELLS.items()],
)


def wrong_values(leaf, required):
    """What may lie where a weight should, by name."""
    leaf = np.asarray(leaf)
    return {
        **({"none": None} if required else {}),
        "text": "text",
        "list": [1.0, 2.0],
        "float": 1.0,
        "dict": {},
        "scalar": jnp.float32(1),
        "empty": np.zeros((0,) * leaf.ndim, np.float32),
        "empty rows": np.zeros((0, *leaf.shape[1:]), np.float32),
        "another axis": leaf[None],
        "an axis less": leaf[0],
        "too wide": np.concatenate([leaf, leaf], -1),
        "objects": leaf.astype(object),
        "texts": leaf.astype(str),
        "complex": leaf.astype(np.complex64),
        "bool": leaf.astype(bool),
        "shape": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        "variable": nnx.Param(jnp.asarray(leaf)),
        "masked": np.ma.masked_array(leaf),
    }


def wrong_params(cell):
    """Every one of the cell's parameters replaced by every wrong value: (leaf, what, params)."""
    params = cell.init(jax.random.key(0), D, H, dtype=jnp.float32)
    for leaf, value in params._asdict().items():
        if value is None:
            continue
        for what, wrong in wrong_values(value, leaf not in ("bias", "recurrent_bias")).items():
            yield leaf, what, params._replace(**{leaf: wrong})


def check(call, named):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert named in str(caught.value), caught.value


@each_cell
def test_cells(cell):
    good = cell.init(jax.random.key(0), D, H, dtype=jnp.float32)
    state = cell.initial_state(good, (2,))
    jax.tree.map(np.asarray, cell.step(jax.tree.map(np.asarray, good), state, XS[0]))  # NumPy's arrays will do
    calls = {
        "unroll": lambda params: gru_jax.unroll(cell, params, XS),
        "unroll in jit": lambda params: jax.eval_shape(lambda xs: gru_jax.unroll(cell, params, xs), XS),
        "step": lambda params: cell.step(params, state, XS[0]),
        "step in jit": lambda params: jax.eval_shape(lambda x: cell.step(params, state, x), XS[0]),
        "initial_state": lambda params: cell.initial_state(params, (2,)),
    }
    for leaf, what, params in wrong_params(cell):
        # What is too wide for the others may as well be right, and one of these too narrow.
        named = "params." if what == "too wide" else f"params.{leaf}"
        for call in calls.values():
            check(lambda call=call, params=params: call(params), named)
    for params in (None, {}, tuple(good), list(good), good.kernel, "params"):
        for call in calls.values():
            check(lambda call=call, params=params: call(params), "params must be gru_jax.cells.")


@pytest.mark.parametrize("reset_after", [True, False])
def test_layers_and_models(reset_after):
    cell = gru_jax.GRU(reset_after)
    stack = layers.Stack(cell, H, num_layers=2)
    first, second = (cell.init(jax.random.key(0), width, H, dtype=jnp.float32) for width in stack.widths(D))
    carry = stack.run([first, second], XS)[0]
    calls = {
        "run": lambda params: stack.run(params, XS),
        "run in jit": lambda params: jax.eval_shape(lambda xs: stack.run(params, xs), XS),
        "step": lambda params: stack.step(params, carry, XS[:, 0]),
        "model": lambda params: Model.of(Model(params, stack)),
    }
    for leaf, what, params in wrong_params(cell):
        named = "" if what == "too wide" else leaf
        for call in calls.values():
            check(lambda call=call, params=params: call((params, second)), f"params[0].{named}")
        check(lambda params=params: Model.of(cell, params), f"params.{named}")
    pairs = [(first, None), (None, second), (first, tuple(second)), (first, first)]
    for params in (None, {}, first, (first,), (first, second, second), *pairs):
        for call in calls.values():
            check(lambda call=call, params=params: call(params), "params")


each_wrong = pytest.mark.parametrize(
    "wrong", [None, "text", 1.0, [1.0], np.zeros((0, H))], ids=["none", "text", "float", "list", "empty"]
)


@each_wrong
def test_linen(wrong):
    layer = gru_jax.linen.GRU(H)
    variables = layer.init(jax.random.key(0), XS)
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        changed = jax.tree_util.tree_map_with_path(lambda at, x, path=path: wrong if at == path else x, variables)
        check(lambda changed=changed: layer.apply(changed, XS), "/".join(entry.key for entry in path))


@each_wrong
def test_nnx(wrong):
    """What a variable holds; a bias that is None is none."""
    for leaf in ("kernel", "recurrent_kernel", "bias", "recurrent_bias")[: 2 if wrong is None else 4]:
        layer = gru_jax.nnx.GRU(D, H, rngs=nnx.Rngs(0))
        (cell,) = layer.cells
        getattr(cell, leaf).set_value(wrong)
        carry = cell.initialize_carry((2, D))
        check(functools.partial(layer, XS), f"params[0].{leaf}")
        check(functools.partial(layer.step, carry, XS[0]), f"params[0].{leaf}")
        check(functools.partial(cell, carry, XS[0]), f"params.{leaf}")


def test_integers_are_refused():
    """All of them: beside others they are promoted."""
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.int32), gru_jax.CUDNN.init(jax.random.key(0), D, H))
    with pytest.raises(TypeError, match="params must be floating point, got int32"):
        gru_jax.unroll(gru_jax.CUDNN, params, XS.astype(np.int32))
    assert isinstance(params, cells.Params)
