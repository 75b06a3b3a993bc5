"""State dicts of PyTorch: the same outputs, round trips bit by bit, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import convert
from tests.models import assert_identical, inputs, model

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@hypothesis.given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.booleans())
@hypothesis.settings(deadline=None, max_examples=15)
def test_torch_computes_what_we_do(in_features, features, layers, bidirectional, use_bias):
    """With PyTorch's own weights, whose second biases are not zero; and with ours."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.GRU(
        in_features, features, layers, use_bias, batch_first=True, bidirectional=bidirectional, dtype=torch.float64
    )
    xs = inputs(in_features, dtype="float64")
    ours = model(
        in_features=in_features,
        features=features,
        num_layers=layers,
        bidirectional=bidirectional,
        use_bias=use_bias,
        dtype="float64",
    )
    for one in (convert.from_torch(layer.state_dict()), ours):
        layer.load_state_dict({name: torch.tensor(value) for name, value in convert.to_torch(one).items()})
        with torch.no_grad():
            expected, h_T = layer(torch.tensor(xs))
        carry, outputs = one(xs)
        np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-13)
        np.testing.assert_allclose(np.stack(carry) if len(one.params) > 1 else carry[None], h_T.numpy(), atol=1e-13)
        assert_identical(convert.from_torch(layer.state_dict()), one)


def test_a_sum_of_two_dtypes_is_in_the_wider():
    state = convert.to_torch(model())
    state["bias_hh_l0"] = np.full(12, 1e-12)
    (params,) = convert.from_torch(state).params
    np.testing.assert_array_equal(params.bias[:8], state["bias_ih_l0"][:8].astype("float64") + 1e-12)


def test_a_cell_and_half_precision():
    torch = pytest.importorskip("torch")
    cell = torch.nn.GRUCell(3, 4)
    one = convert.from_torch(cell.state_dict())
    x_t, h_tm1 = inputs()[:, 0], inputs(4)[:, 1]
    with torch.no_grad():
        expected = cell(torch.tensor(x_t), torch.tensor(h_tm1)).numpy()
    np.testing.assert_allclose(one.stack.step(one.params, h_tm1, x_t)[1], expected, atol=1e-6)
    cell.load_state_dict({name: torch.tensor(value) for name, value in convert.to_torch(one, cell=True).items()})
    np.testing.assert_allclose(cell(torch.tensor(x_t), torch.tensor(h_tm1)).detach().numpy(), expected, atol=1e-6)
    assert_identical(convert.from_torch(cell.state_dict()), one)
    half = convert.from_torch(cell.to(torch.bfloat16).state_dict())
    np.testing.assert_array_equal(half.params[0].kernel, np.asarray(one.params[0].kernel).astype("bfloat16"))


@pytest.mark.parametrize("lengths", [None, (5, 4, 2, 1)], ids=["full", "lengths"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_those_of_torch(dtype, lengths):
    """Of outputs and final states with respect to weights, inputs and initial states; two layers, both directions."""
    torch = pytest.importorskip("torch")
    one = model(num_layers=2, bidirectional=True, dtype=dtype)
    layer = torch.nn.GRU(3, 4, 2, batch_first=True, bidirectional=True, dtype=getattr(torch, dtype))
    layer.load_state_dict({name: torch.tensor(value) for name, value in convert.to_torch(one).items()})
    arrays = inputs(dtype=dtype), inputs(4, time=4, dtype=dtype, seed=2)
    xs, h_0 = (torch.tensor(array, requires_grad=True) for array in arrays)
    if lengths is None:
        hs, h_T = layer(xs, h_0)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(lengths), batch_first=True)
        packed, h_T = layer(packed, h_0)
        hs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    (hs.sin().sum() + (h_T**3).sum()).backward()

    def loss(one, xs, h_0):
        given = {} if lengths is None else {"seq_lengths": jnp.array(lengths)}
        carry, outputs = one(xs, initial_carry=tuple(h_0), **given)
        return jnp.sin(outputs).sum() + (jnp.stack(carry) ** 3).sum(), (outputs, jnp.stack(carry))

    (ours, *of_inputs), outputs = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(one, *arrays)
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5 if dtype == "float32" else 1e-12)
    for got, expected in zip((*outputs, *of_inputs), (hs.detach(), h_T.detach(), xs.grad, h_0.grad), strict=True):
        close(got, expected.numpy())
    # Each of two biases that are added has the gradient of their sum, so only one of them is to count.
    gradients = {
        name: np.where(np.arange(12) >= 8, parameter.grad, 0) if name.startswith("bias_hh") else parameter.grad
        for name, parameter in layer.named_parameters()
    }
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(convert.from_torch(gradients)), strict=True):
        close(got, expected)


def drop(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


REFUSED = {
    "nothing": (dict.clear, r"must have rnn\.weight_ih_l0 or rnn\.weight_ih, got \[\]$"),
    "elsewhere": (
        lambda state: [state.update({name.replace("rnn", "gru"): state.pop(name)}) for name in list(state)],
        r"must have rnn\.weight_ih_l0 .*; prefixes of GRUs or LSTMs in it: \['gru\.'\]",
    ),
    "deeper": (put("rnn.x.weight_ih_l0", np.ones(2)), r"too; prefixes of GRUs or LSTMs in it: \['rnn\.', 'rnn\.x\.'\]"),
    "missing": (drop("rnn.weight_ih_l1"), r"rnn\.weight_ih_l1 must be there, of shape .* = \(12, 4\), got \["),
    "bias": (drop("rnn.bias_hh_l1"), r"rnn\.bias_hh_l1 must be there, of shape \(3·features,\) = \(12,\), got \["),
    "unknown": (put("rnn.extra", np.ones(2)), r"only under 'rnn\.', got 'rnn\.extra' too"),
    "projection": (put("rnn.weight_hr_l0", np.ones((2, 4))), r"got 'rnn\.weight_hr_l0' too, of an LSTM with proj_size"),
    "layer": (put("rnn.weight_ih_l3", np.ones((12, 4))), r"must have rnn\.weight_hh_l2, got"),
    "lstm": (
        put("rnn.weight_ih_l0", np.ones((16, 3))),
        r"rnn\.weight_ih_l0 must have shape .* got \(16, 3\)",
    ),
    "all of an lstm": (
        lambda state: state.update({name: np.ones((16, *value.shape[1:])) for name, value in state.items()}),
        r"rnn\.weight_hh_l0 of shape \(16, 4\) is of an LSTM.*gru_jax\.cells\.LSTM has its equations.* i, f, g, o",
    ),
    "all of an rnn": (
        lambda state: state.update({name: np.ones((4, *value.shape[1:])) for name, value in state.items()}),
        r"rnn\.weight_hh_l0 of shape \(4, 4\) is of a simple recurrent network.*gru_jax\.cells\.Elman has its",
    ),
    "scalar": (
        put("rnn.weight_ih_l0", np.ones(())),
        r"rnn\.weight_ih_l0 must have shape \(3·features, in_features\), got \(\)",
    ),
    "integers": (put("rnn.bias_ih_l0", np.ones(12, int)), r"rnn\.bias_ih_l0 must be floating point, got int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_gru_is_refused(case):
    change, message = REFUSED[case]
    state = convert.to_torch(model(num_layers=2), "rnn.")
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, prefix="rnn.")


def test_a_checkpoint_with_more_than_a_state_dict():
    state = convert.to_torch(model())
    with pytest.raises(
        ValueError, match=r"it is a checkpoint, with state dicts of its own: .* \['model', 'optimizer'\]"
    ):
        convert.from_torch({"model": state, "optimizer": {}, "epoch": 3})


def test_the_initialisation_of_torch():
    """Of all weights and biases, whatever a matrix multiplies: the same bounds, mean and spread."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.GRU(200, 64)
    drawn = dict.fromkeys(("kernel_init", "recurrent_kernel_init", "bias_init"), gru_jax.initializers.torch_uniform)
    params = gru_jax.CUDNN.init(jax.random.key(0), 200, 64, **drawn)
    module = gru_jax.linen.GRU(64, **drawn).init(jax.random.key(0), jnp.ones((1, 1, 200)))["params"]["cell"]
    kernels = {"weight_ih_l0": params.kernel, "weight_hh_l0": params.recurrent_kernel, "bias_ih_l0": params.bias}
    kernels |= {"weight_ih_l0 ": module["in"]["kernel"], "weight_hh_l0 ": module["hn"]["kernel"]}
    for name, ours in kernels.items():
        theirs = getattr(layer, name.strip()).detach().numpy()
        for values in (np.asarray(ours), theirs):
            assert 0.95 / 8 < abs(values).max() <= 1 / 8, name
            np.testing.assert_allclose(values.std(), 1 / 8 / 3**0.5, rtol=0.15)
            assert abs(values.mean()) < 0.03


def test_what_torch_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"model\.stack\.cell must be gru_jax\.CUDNN"):
        convert.to_torch(model(gru_jax.CHO2014))
    with pytest.raises(ValueError, match=r"model\.stack\.reverse must be False"):
        convert.to_torch(model(reverse=True))
