"""State dicts of PyTorch: the same outputs, round trips bit by bit, and what is refused."""

import numpy as np
import pytest

import gru_jax
from gru_jax import convert
from tests.models import DTYPES, assert_identical, inputs, model

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(dtype):
    one = model(num_layers=2, bidirectional=True, dtype=dtype)
    assert_identical(convert.from_torch(convert.to_torch(one, "rnn."), "rnn."), one)


def test_a_cell_and_half_precision():
    torch = pytest.importorskip("torch")
    cell = torch.nn.GRUCell(3, 4)
    one = convert.from_torch(cell.state_dict())
    x_t, h_tm1 = inputs()[:, 0], inputs(4)[:, 1]
    with torch.no_grad():
        expected = cell(torch.tensor(x_t), torch.tensor(h_tm1)).numpy()
    np.testing.assert_allclose(one.stack.step(one.params, h_tm1, x_t)[1], expected, atol=1e-6)
    half = convert.from_torch(cell.to(torch.bfloat16).state_dict())
    np.testing.assert_array_equal(half.params[0].kernel, np.asarray(one.params[0].kernel).astype("bfloat16"))


def drop(name):
    return lambda state: state.pop(name)


def put(name, value):
    return lambda state: state.update({name: value})


REFUSED = {
    "nothing": (dict.clear, r"must have rnn\.weight_hh_l0 or rnn\.weight_hh, got \[\]"),
    "missing": (drop("rnn.weight_ih_l1"), r"must have rnn\.weight_ih_l1 of shape .* = \(12, 4\), got none"),
    "bias": (drop("rnn.bias_hh_l1"), r"must have rnn\.bias_hh_l1 of shape \(3·features,\) = \(12,\), got none"),
    "unknown": (put("rnn.extra", np.ones(2)), r"only under 'rnn\.', got \['rnn\.extra'\] too"),
    "projection": (put("rnn.weight_hr_l0", np.ones((2, 4))), r"got \['rnn\.weight_hr_l0'\] too"),
    "layer": (put("rnn.weight_ih_l3", np.ones((12, 4))), r"must have rnn\.weight_ih_l2 of shape"),
    "lstm": (
        put("rnn.weight_ih_l0", np.ones((16, 3))),
        r"rnn\.weight_ih_l0 must have shape .* got \(16, 3\)",
    ),
    "scalar": (put("rnn.weight_ih_l0", np.ones(())), r"rnn\.weight_ih_l0 must have shape .* \(12, 0\), got \(\)"),
    "integers": (put("rnn.bias_ih_l0", np.ones(12, int)), r"rnn\.bias_ih_l0 must be floating point, got int64"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_gru_is_refused(case):
    change, message = REFUSED[case]
    state = convert.to_torch(model(num_layers=2), "rnn.")
    change(state)
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state, prefix="rnn.")


def test_what_torch_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"model\.stack\.cell must be gru_jax\.CUDNN"):
        convert.to_torch(model(gru_jax.CHO2014))
    with pytest.raises(ValueError, match=r"model\.stack\.reverse must be False"):
        convert.to_torch(model(reverse=True))
