"""Files by both of torch's exporters of ONNX: their models are torch's GRU, bit for bit, and compute what it does."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest

from gru_jax import convert
from tests.models import assert_identical

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

OPTIONS = dict(
    layers=(1, 2, 3),
    bidirectional=(False, True),
    batch_first=(False, True),
    bias=(True, False),
    start=(False, True),
    dynamic=(False, True),
    folded=(True, False),
)


def covering(factors):
    """Rows in which any two values of two factors occur together."""
    items = [[(name, value) for value in values] for name, values in factors.items()]
    left = dict.fromkeys(
        frozenset(pair) for two in itertools.combinations(items, 2) for pair in itertools.product(*two)
    )
    rows = []
    while left:
        row = dict(next(iter(left)))
        for choices in items:
            new = {choice: sum(frozenset((choice, item)) in left for item in row.items()) for choice in choices}
            name, value = max(new, key=new.__getitem__)
            row.setdefault(name, value)
        for pair in itertools.combinations(row.items(), 2):
            left.pop(frozenset(pair), None)
        rows.append({name: row[name] for name in factors})
    return rows


def cases(short, long):
    """Parameters of a test, which names itself by them."""

    def name(case):
        return ",".join(key if value is True else f"{key}={value}" for key, value in case.items() if value)

    marked = [(case, ()) for case in short] + [(case, pytest.mark.long) for case in long]
    return [pytest.param(case, marks=marks, id=name(case)) for case, marks in marked]


class Net(torch.nn.Module):
    """A GRU among other things, with lengths (by a packed sequence, "sorted" or "unsorted") and a start or without."""

    def __init__(self, *, layers, bidirectional, batch_first, bias, lengths=None):
        super().__init__()
        self.rnn = torch.nn.GRU(
            3, 4, layers, bias, batch_first, dropout=0.5 * (layers > 1), bidirectional=bidirectional
        )
        self.sorted = lengths == "sorted"

    def forward(self, xs, lengths=None, start=None):
        first = self.rnn.batch_first
        if lengths is not None:
            xs = torch.nn.utils.rnn.pack_padded_sequence(xs, lengths, first, self.sorted)
        outputs, carry = self.rnn(xs, start)
        if lengths is not None:
            outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(outputs, first)
        return outputs * 2, carry

    def given(self, lengths, start, *, batch, time):
        """Random arguments, and which of their axes are of time or batch."""
        sizes = {"batch": batch, "time": time}
        axes = dict(enumerate(("batch", "time") if self.rnn.batch_first else ("time", "batch")))
        given = {"xs": (torch.randn(*(sizes[axis] for axis in axes.values()), 3), axes)}
        if lengths:
            of = sorted((time - i % time for i in range(batch)), reverse=True)
            given["lengths"] = (torch.tensor(of if self.sorted else of[::-1]), {0: "batch"})
        if start:
            directions = 1 + self.rnn.bidirectional
            given["start"] = (torch.randn(self.rnn.num_layers * directions, batch, 4), {1: "batch"})
        return {name: value for name, (value, _) in given.items()}, {name: axes for name, (_, axes) in given.items()}


def check(tmp_path, *, dynamo, opset, dynamic, folded, start, lengths=None, **of_net):
    """Exports a net, reads the file, and compares."""
    torch.manual_seed(0)
    net = Net(lengths=lengths, **of_net).eval()
    given, axes = net.given(lengths, start, batch=2, time=5)
    options = dict(input_names=list(given), opset_version=opset, dynamo=dynamo, verbose=False)
    if dynamo:
        # With Dim.DYNAMIC the time of all but a single direction is "inferred a static shape" and refused; not so here.
        dims = {name: dict.fromkeys(of, torch.export.Dim.AUTO) for name, of in axes.items()}
        options |= dict(optimize=folded, dynamic_shapes=dims if dynamic else None)
    else:
        options |= dict(do_constant_folding=folded, dynamic_axes=axes if dynamic else None)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (), path, kwargs=given, **options)
    proto = onnx.load(path)
    assert opset in (None, proto.opset_import[0].version)
    sizes = proto.graph.input[0].type.tensor_type.shape.dim
    assert [size.HasField("dim_param") for size in sizes] == [dynamic, dynamic, False]

    one = convert.from_onnx(path)
    expected = convert.from_torch(net.rnn.state_dict())
    stack = dataclasses.replace(expected.stack, time_major=not net.rnn.batch_first)
    assert_identical(one, dataclasses.replace(expected, stack=stack))

    given, _ = net.given(lengths, start, **(dict(batch=3, time=7) if dynamic else dict(batch=2, time=5)))
    with torch.no_grad():
        outputs, carry = net(**given)
    ours = {"start": "initial_carry", "lengths": "seq_lengths"}
    h_T, hs = one(**{ours.get(name, "inputs"): value.numpy() for name, value in given.items()})
    np.testing.assert_allclose(hs, outputs.numpy() / 2, atol=1e-5)
    np.testing.assert_allclose(np.reshape(h_T, carry.shape), carry.numpy(), atol=1e-5)


PLAIN = dict(bidirectional=False, batch_first=False, bias=True, start=False, dynamic=False, folded=True)
SHORT_DYNAMO = [
    PLAIN | dict(layers=2, batch_first=True, bidirectional=True),
    PLAIN | dict(layers=3, start=True, folded=False),
    PLAIN | dict(layers=2, bidirectional=True, dynamic=True, folded=False),
]
SHORT_TORCHSCRIPT = [
    PLAIN | dict(opset=20, lengths="sorted", layers=2, batch_first=True, bidirectional=True, dynamic=True),
    PLAIN | dict(opset=8, lengths=None, layers=3, bidirectional=True, folded=False),
    PLAIN | dict(opset=13, lengths="unsorted", layers=2, start=True, bias=False, dynamic=True, folded=False),
]
OPSETS = [18, 19, 20, 21, 22, 23, 24, 25, 26, 15, 16, 17]
"""Those that the default exporter writes, other than 18 by converting; for older ones it writes 18."""
_ROWS = itertools.cycle(covering(OPTIONS))  # fewer than there are versions
LONG_DYNAMO = [row | dict(opset=opset) for row, opset in zip(_ROWS, OPSETS, strict=False)]
# Before 9 there is no operator that undoes a sort.
LONG_TORCHSCRIPT = covering(dict(opset=(7, 8), lengths=(None, "sorted")) | OPTIONS)
LONG_TORCHSCRIPT += covering(dict(opset=range(9, 21), lengths=(None, "sorted", "unsorted")) | OPTIONS)


@pytest.mark.parametrize("case", cases(SHORT_DYNAMO, LONG_DYNAMO))
def test_the_default_exporter(case, tmp_path):
    """Without lengths: torch.export stops in pack_padded_sequence, which wants lengths that are numbers."""
    check(tmp_path, dynamo=True, **dict(opset=None) | case)


@pytest.mark.parametrize("case", cases(SHORT_TORCHSCRIPT, LONG_TORCHSCRIPT))
def test_the_exporter_by_torchscript(case, tmp_path):
    check(tmp_path, dynamo=False, **case)
