"""`python -m gru_jax.convert`: what it writes, what it says, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gru_jax
from gru_jax import convert
from gru_jax.convert.cli import main
from tests.models import assert_identical, inputs, model

safetensors = pytest.importorskip("safetensors.numpy")
onnx = pytest.importorskip("onnx")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(path="net.safetensors", *, bidirectional=False, layers=1, use_bias=True, dtype=np.float32):
    """A checkpoint of PyTorch's with a GRU under encoder.rnn. and something else; returns the GRU's tensors."""
    rng = np.random.default_rng(0)
    state = {}
    for layer in range(layers):
        for suffix in ["", "_reverse"][: 1 + bidirectional]:
            width = 3 if layer == 0 else 4 * (1 + bidirectional)
            shapes = {"weight_ih": (12, width), "weight_hh": (12, 4), "bias_ih": (12,), "bias_hh": (12,)}
            for name, shape in shapes.items():
                if use_bias or name.startswith("weight"):
                    state[f"{name}_l{layer}{suffix}"] = rng.normal(scale=0.5, size=shape).astype(dtype)
    named = {f"encoder.rnn.{name}": value for name, value in state.items()}
    safetensors.save_file(named | {"head.weight": np.ones((2, 4), np.float32)}, path, {"format": "pt"})
    return state


def test_from_torch_to_onnx(folder, capsys):
    checkpoint(bidirectional=True, layers=2)
    command = ["net.safetensors", "net.onnx", "--from", "torch", "--to", "onnx", "--prefix", "encoder.rnn."]
    assert main([*command, "--seq-lengths", "--initial-carry"]) == 0
    one = convert.load_torch_safetensors("net.safetensors", prefix="encoder.rnn.")
    proto = onnx.load("net.onnx")
    assert [given.name for given in proto.graph.input] == ["inputs", "seq_lengths", "initial_carry"]
    assert_identical(convert.from_onnx(proto), one)
    out = capsys.readouterr().out
    assert "GRU of 2 layers, bidirectional, 3 inputs, 4 features, reset after, sigmoid and tanh, float32" in out
    assert "from     net.safetensors (torch; not part of the GRU: 1 of the tensors)" in out
    rows = [line.split("  ") for line in out.splitlines() if line[:1].isdigit()]
    assert [(row[0], next(part.strip() for part in row[1:] if part)) for row in rows] == [
        ("0", "forward"),
        ("0", "backward"),
        ("1", "forward"),
        ("1", "backward"),
    ]
    assert "encoder.rnn.weight_ih_l1_reverse (12, 8)" in out
    assert "W[1] 'layers.1.W' (12, 8)" in out
    assert "read back: every parameter is identical" in out
    assert "not held by" not in out


def test_a_reader_that_ends_early(folder, monkeypatch, capfd):
    """As `head` does: nothing is said of it, and the file is written."""
    checkpoint()
    read, write = os.pipe()
    os.close(read)
    for arguments in (["--help"], ["net.safetensors", "net.onnx", "--prefix", "encoder.rnn."]):
        with os.fdopen(os.dup(write), "w") as closed:
            monkeypatch.setattr(sys, "stdout", closed)
            assert main(arguments) == 141
    os.close(write)
    assert capfd.readouterr() == ("", "")
    assert convert.from_onnx("net.onnx").stack.features == 4


def test_without_a_standard_output(folder, monkeypatch):
    checkpoint()
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["net.safetensors", "net.onnx", "--prefix", "encoder.rnn."]) == 0


def test_there_and_back_by_what_the_files_say(folder, capsys):
    checkpoint(layers=2)
    assert main(["net.safetensors", "own.safetensors", "--prefix", "encoder.rnn."]) == 0
    assert main(["own.safetensors", "again.onnx"]) == 0
    assert main(["again.onnx", "torch.safetensors", "--to", "torch", "--prefix", "rnn."]) == 0
    assert main(["torch.safetensors", "last.safetensors", "--prefix", "rnn."]) == 0
    one = convert.load_torch_safetensors("net.safetensors", prefix="encoder.rnn.")
    assert_identical(convert.load("own.safetensors"), one)
    assert_identical(convert.load("last.safetensors"), one)
    assert capsys.readouterr().out.count("read back: every parameter is identical") == 4


def test_what_a_format_does_not_hold_is_said(folder, capsys):
    convert.save("own.safetensors", model(num_layers=2, dropout=0.1))
    assert main(["own.safetensors", "own.onnx"]) == 0
    assert "not held by onnx: dropout=0.1; read back it is 0.0" in capsys.readouterr().out


def test_chosen_nodes(folder, capsys):
    convert.save("own.safetensors", model(num_layers=2))
    assert main(["own.safetensors", "own.onnx", "--seq-lengths"]) == 0
    assert main(["own.onnx", "first.safetensors", "--nodes", "layers.0.Y"]) == 0
    assert convert.load("first.safetensors").stack.num_layers == 1
    out = capsys.readouterr().out
    assert "from     own.onnx (onnx; not part of the GRU: nodes Concat, Squeeze, Transpose)" in out
    assert "sequence_lens 'seq_lengths': an argument" in out


REFUSED = {
    "exists": (["own.safetensors", "there.onnx"], "there.onnx exists: --force replaces it"),
    "no file": (["none.onnx", "out.onnx"], "No such file or directory"),
    "no format": (["own.safetensors", "out.bin"], "the format of out.bin must be given"),
    "wrong format": (["own.safetensors", "out.onnx", "--from", "onnx"], "own.safetensors is damaged or not an ONNX"),
    "prefix": (["own.safetensors", "out.onnx", "--prefix", "a."], "--prefix needs a torch file, got gru_jax to onnx"),
    "nodes": (["own.safetensors", "out.onnx", "--nodes", "a"], "--nodes needs an onnx IN, got gru_jax to onnx"),
    "lengths": (["own.safetensors", "out.safetensors", "--seq-lengths"], "--seq-lengths needs an onnx OUT"),
    "no such prefix": (
        ["net.safetensors", "out.onnx", "--prefix", "decoder."],
        "has no tensor under prefix 'decoder.'; prefixes of GRUs or LSTMs in it: ['encoder.rnn.']",
    ),
    "activation": (["goodfellow.safetensors", "out.safetensors", "--to", "torch"], "must be gru_jax.CUDNN"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_refused(folder, capsys, case):
    arguments, message = REFUSED[case]
    convert.save("own.safetensors", model())
    convert.save("goodfellow.safetensors", model(gru_jax.GOODFELLOW))
    checkpoint()
    Path("there.onnx").write_bytes(b"precious")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert Path("there.onnx").read_bytes() == b"precious"
    assert sorted(os.listdir()) == ["goodfellow.safetensors", "net.safetensors", "own.safetensors", "there.onnx"]


def test_force_replaces(folder):
    convert.save("own.safetensors", model())
    Path("there.onnx").write_bytes(b"not precious")
    assert main(["own.safetensors", "there.onnx", "--force"]) == 0
    assert_identical(convert.from_onnx("there.onnx"), model())


def test_help_and_the_module():
    run = subprocess.run(
        [sys.executable, "-m", "gru_jax.convert", "--help"], capture_output=True, text=True, check=True
    )
    for text in ("IN OUT", "--from {gru_jax,torch,onnx}", "--prefix", "--force", "Keras"):
        assert text in run.stdout


# --- PyTorch's checkpoints by prefix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("layers", "use_bias"), [(1, True), (2, False)])
def test_a_checkpoint_is_loaded_by_prefix(folder, layers, bidirectional, use_bias):
    torch = pytest.importorskip("torch")
    state = checkpoint(layers=layers, bidirectional=bidirectional, use_bias=use_bias)
    layer = torch.nn.GRU(3, 4, layers, bias=use_bias, bidirectional=bidirectional, batch_first=True)
    layer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    one = convert.load_torch_safetensors("net.safetensors", prefix="encoder.rnn.")
    xs = inputs()
    with torch.no_grad():
        expected, _ = layer(torch.tensor(xs))
    np.testing.assert_allclose(one(xs)[1], expected.numpy(), atol=1e-6)


def test_what_is_not_a_gru_is_refused(folder):
    checkpoint()
    for prefix, message in [("head.", "weight"), ("", r"encoder\.rnn|head"), ("decoder.", r"under prefix 'decoder\.'")]:
        with pytest.raises(ValueError, match=message):
            convert.load_torch_safetensors("net.safetensors", prefix=prefix)
