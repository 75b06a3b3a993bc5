"""Models in safetensors files: round trips bit by bit, damage, formats, and PyTorch's checkpoints."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from gru_jax import convert
from gru_jax.convert import activations, cli
from tests.cases import CELLS
from tests.models import DTYPES, assert_identical, inputs, model

hypothesis = pytest.importorskip("hypothesis")
safetensors = pytest.importorskip("safetensors.numpy")
st = hypothesis.strategies
GOLDEN = Path(__file__).parent / "format_1.safetensors"


@st.composite
def models(draw):
    """Every option that a file holds."""
    way = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    return model(
        CELLS[draw(st.sampled_from(sorted(CELLS)))],
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        num_layers=draw(st.integers(1, 3)),
        bidirectional=way == "bidirectional",
        reverse=way == "reverse",
        use_bias=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        recurrent_dropout=draw(st.sampled_from([0.0, 0.3])),
        time_major=draw(st.booleans()),
        method=draw(st.sampled_from(["auto", "scan"])),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 99)),
    )


@hypothesis.given(models(), st.sampled_from([None, *DTYPES]))
@hypothesis.settings(deadline=None, max_examples=40)
def test_a_saved_model_is_loaded_bit_by_bit(tmp_path_factory, one, dtype):
    if dtype is not None:
        one = dataclasses.replace(one, stack=dataclasses.replace(one.stack, dtype=jnp.dtype(dtype)))
    path = tmp_path_factory.mktemp("saved") / "gru.safetensors"
    convert.save(path, one)
    assert_identical(convert.load(path), one)


def test_jax_arrays_and_what_is_computed(tmp_path):
    one = model(num_layers=2, bidirectional=True)
    on_device = jax.tree.map(jnp.asarray, one)
    convert.save(tmp_path / "gru.safetensors", on_device)
    loaded = convert.load(tmp_path / "gru.safetensors")
    assert_identical(loaded, one)
    np.testing.assert_array_equal(loaded(inputs())[1], on_device(inputs())[1])


def test_a_file_of_format_1_still_opens():
    """The file was written when the format was 1; it is never written anew."""
    one = convert.load(GOLDEN)
    rows = np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    assert_identical(
        one,
        convert.Model(
            (gru_jax.Params(rows, rows[:1] - 1, rows[1], rows[0, 1:2]),),
            dataclasses.replace(one.stack, cell=gru_jax.CUDNN, features=1, num_layers=1, time_major=True),
        ),
    )


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "gru.safetensors"
    convert.save(path, model())
    data = path.read_bytes()
    for size in [*range(0, len(data) - 1, 7), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"gru.safetensors is damaged or not a safetensors file"):
            convert.load(path)


@pytest.mark.parametrize("data", [b"PK\x03\x04" * 50, b"\x00" * 64, b'{"kernel": []}', bytes(range(256))])
def test_a_file_of_another_kind_is_refused(tmp_path, data):
    (tmp_path / "other").write_bytes(data)
    with pytest.raises(ValueError, match="other is damaged or not a safetensors file"):
        convert.load(tmp_path / "other")


FOREIGN = {
    "net.pt": (
        b"PK\x03\x04" + bytes(26) + b"net/data.pkl",
        r"torch.save.*from_torch\(torch.load\('.*net.pt', weights_only",
    ),
    "old.pth": (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(50), "it is a file of torch.save, a pickle"),
    "net.keras": (b"PK\x03\x04" + bytes(26) + b"metadata.json", "it is a file of Keras: .*from_keras takes"),
    "net.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "it is a file of Keras"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_framework_is_said_to_be_so(tmp_path, capsys, name):
    data, message = FOREIGN[name]
    path = tmp_path / name
    path.write_bytes(data)
    for read in (convert.load, convert.load_torch_safetensors, convert.from_onnx):
        with pytest.raises(ValueError, match=f"is damaged or not .*; .*{message}"):
            read(path)
    for options in ([], ["--from", "torch"]):
        assert cli.main([str(path), str(tmp_path / "out.onnx"), *options]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes_is_said_to_be_so(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    for name, module in {"gru.bin": torch.nn.GRU(3, 4), "lstm.ckpt": torch.nn.LSTM(3, 4)}.items():
        torch.save(module.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"torch\.save.*from_torch\(torch\.load"):
            convert.load_torch_safetensors(tmp_path / name)
    assert convert.from_torch(torch.load(tmp_path / "gru.bin", weights_only=True)).stack.features == 4


def test_an_lstm_in_a_checkpoint_is_said_to_be_one(tmp_path, capsys):
    path = tmp_path / "net.safetensors"
    state = {"weight_ih_l0": (16, 3), "weight_hh_l0": (16, 4), "bias_ih_l0": (16,), "bias_hh_l0": (16,)}
    safetensors.save_file({f"rnn.{name}": np.ones(shape) for name, shape in state.items()}, path)
    with pytest.raises(ValueError, match=r"rnn\.weight_hh_l0 of shape \(16, 4\) is of an LSTM"):
        convert.load_torch_safetensors(path, prefix="rnn.")
    assert cli.main([str(path), str(tmp_path / "out.onnx"), "--prefix", "rnn."]) == 2
    assert "is of an LSTM" in capsys.readouterr().err


ACTIVATIONS = list(activations.ACTIVATIONS)


@pytest.mark.parametrize("gate", ACTIVATIONS)
def test_activations_are_saved_by_name(tmp_path, gate):
    candidate = ACTIVATIONS[ACTIVATIONS.index(gate) - 1]
    one = model(gru_jax.GRU(True, activations.ACTIVATIONS[gate], activations.ACTIVATIONS[candidate]))
    convert.save(tmp_path / "gru.safetensors", one)
    assert_identical(convert.load(tmp_path / "gru.safetensors"), one)


def rewritten(path, change_metadata=None, change_tensors=None):
    """The golden file with other metadata or tensors."""
    with safetensors.safe_open(GOLDEN, framework="np") as file:
        metadata = file.metadata()
    tensors = safetensors.load_file(GOLDEN)
    for thing, change in ((metadata, change_metadata), (tensors, change_tensors)):
        if change is not None:
            change(thing)
    safetensors.save_file(tensors, path, metadata)
    return path


def stack_with(**fields):
    def change(metadata):
        metadata["stack"] = json.dumps(json.loads(metadata["stack"]) | fields)

    return change


BAD_METADATA = {
    "no format": (lambda m: m.pop("format"), "is not a file of gru_jax: format in its metadata is None"),
    "torch": (lambda m: m.update(format="pt"), "format in its metadata is 'pt'.*load_torch_safetensors"),
    "newer": (lambda m: m.update(format_number="2"), "has format 2, this gru_jax reads formats up to 1"),
    "no number": (lambda m: m.pop("format_number"), "has format_number ''"),
    "odd number": (lambda m: m.update(format_number="one"), "has format_number 'one'"),
    "no stack": (lambda m: m.pop("stack"), "a stack in its metadata that is not understood"),
    "list": (lambda m: m.update(stack="[]"), "a stack in its metadata that is not understood"),
    "unknown field": (stack_with(colour="red"), "not understood.*colour"),
    "activation": (
        stack_with(cell={"reset_after": True, "gate": "softmax", "candidate": "tanh"}),
        "gate must be one of 'sigmoid', 'tanh', .*, got 'softmax'",
    ),
    "cell": (stack_with(cell={"reset_after": 1, "gate": "sigmoid", "candidate": "tanh"}), "reset_after must be a bool"),
    "features": (stack_with(features=0), "features must be at least 1"),
    "dtype": (stack_with(dtype="int8"), "dtype must be a floating-point dtype"),
    "more layers": (stack_with(num_layers=10**9), "lacks the tensor 'layers.1.forward.kernel'"),
    "wider": (stack_with(features=2), r"params\[0\].kernel must have shape \(in_features, 3·features\) = \(2, 6\)"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_metadata_that_does_not_fit_is_refused(tmp_path, case):
    change, message = BAD_METADATA[case]
    with pytest.raises(ValueError, match=rf"gru\.safetensors .*{message}"):
        convert.load(rewritten(tmp_path / "gru.safetensors", change))


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "gru.safetensors"
    name = "layers.0.forward."
    cases = [
        (lambda t: t.pop(name + "recurrent_kernel"), "lacks the tensor 'layers.0.forward.recurrent_kernel'"),
        (lambda t: t.update(extra=t[name + "bias"]), r"tensors that its stack does not know: \['extra'\]"),
        (lambda t: t.update({name + "bias": t[name + "bias"][:2].copy()}), r"\.bias must have shape .* = \(3,\), got"),
        (lambda t: t.update({name + "bias": np.zeros(3, int)}), r"params\[0\].bias must be floating point, got int64"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            convert.load(rewritten(path, change_tensors=change))


def test_a_model_that_cannot_be_saved_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "gru.safetensors"
    convert.save(path, model())
    before = path.read_bytes()
    short = dataclasses.replace(model(num_layers=2), params=model().params)
    for bad, error, message in [
        (model(gru_jax.GRU(candidate=jax.nn.gelu)), ValueError, "candidate must be a function that has a name"),
        (short, ValueError, "model.params must have 2 members"),
        (model().params, TypeError, "model must be a gru_jax.convert.Model, as layer.model is, got tuple"),
    ]:
        with pytest.raises(error, match=message):
            convert.save(path, bad)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["gru.safetensors"]


def test_writing_that_fails_half_way_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "gru.safetensors"
    convert.save(path, model())
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        convert.save(path, model(seed=2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["gru.safetensors"]


def test_killed_while_writing_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "gru.safetensors"
    convert.save(path, model())
    before = path.read_bytes()
    program = (
        "import os\nfrom gru_jax import output\n"
        f"os.fsync = lambda descriptor: os._exit(9)\noutput.write_file({str(path)!r}, b'half')"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert path.read_bytes() == before


def test_no_file_and_no_library(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        convert.load(tmp_path / "none")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors is not installed: pip install 'gru_jax\[convert\]'"):
        convert.load(GOLDEN)
