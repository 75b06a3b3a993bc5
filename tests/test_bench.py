"""The benchmark: that every peer computes the same, and what is reported. No test here depends on a time."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest

from experiments import cli
from experiments.bench import growth, measure, peers, rollout, settings, timing, training
from experiments.bench.settings import Shape
from tests.cases import native_is_installed

TINY = ["--shapes", "4,2,3,5", "--rounds", "2", "--sample-ms", "0"]
MODULES = {
    "haiku": "haiku",
    "equinox": "equinox",
    "keras": "keras",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
}


@pytest.fixture(autouse=True)
def _short_guard(monkeypatch):
    monkeypatch.setattr(growth, "SHORT", Shape(3, 1, 2, 2))
    monkeypatch.setattr(growth, "LONG", Shape(6, 1, 2, 2))
    monkeypatch.setattr(growth, "guarded", lambda names: [name for name in names if name == "gru_jax-fused"])


def rows(table):
    """The cells of a Markdown table's lines, padding removed."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


@pytest.mark.long
def test_all_peers(tmp_path, capsys):
    """Whatever is installed runs and agrees; the rest is named; text and JSON say the same."""
    assert cli.main(["bench", *TINY, "--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]) == 0
    shown = capsys.readouterr().out
    missing = {name for name, module in MODULES.items() if importlib.util.find_spec(module) is None}
    missing |= set() if native_is_installed else {"gru_jax-native"}
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written["skipped"]) == missing
    assert written["machine"]["versions"]["jax"]
    assert "python -m experiments bench --shapes 4,2,3,5" in shown
    (shape,) = written["shapes"]
    assert shape["shape"] == {"T": 4, "B": 2, "D": 3, "H": 5}
    assert set(shape["peers"]) == set(peers.PEERS) - missing
    for name, row in shape["peers"].items():
        assert row["forward"]["agrees"], name
        assert len(row["forward"]["samples"]) == 2
        assert ("gradient" in row) == (name != "onnxruntime")
        assert row.get("gradient", row["forward"])["agrees"], name
    header, _, *body = rows(shown.split("### T = 4")[1].split("###")[0])
    assert header[0] == "peer"
    assert {row[0].rstrip(" *") for row in body} == set(shape["peers"])
    assert all(len(row) == len(header) for row in body)
    assert re.search(r"Time of a step, T = 6 over T = 3: gru_jax-fused gradient \d", shown)
    assert [(row["peer"], row["which"]) for row in written["guard"]] == [
        ("gru_jax-fused", "forward"),
        ("gru_jax-fused", "gradient"),
    ]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_training_steps(tmp_path, capsys, monkeypatch):
    """Both models have the same loss, so they are the same model."""
    monkeypatch.setattr(settings, "QUICK_SHAPES", (Shape(2, 1, 2, 2),))
    monkeypatch.setattr(training, "SMALL", {"length": 4, "hidden": 3, "batch": 2})
    monkeypatch.setattr(rollout, "QUICK_SIZES", ((3, 2),))
    options = ["--quick", "--rounds", "1", "--sample-ms", "0", "--peers", "flax-nnx"]
    assert cli.main(["bench", *options, "--json", str(tmp_path / "t.json")]) == 0
    all_written = json.loads((tmp_path / "t.json").read_text())
    written = all_written["training"]
    assert [(row["config"]["task"], row["model"]) for row in written] == [
        (task, model) for task in ("adding", "copy") for model in ("gru_jax", "flax-nnx")
    ]
    assert all(row["difference"] < 1e-5 and row["seconds"] > 0 for row in written)
    shown = capsys.readouterr().out
    assert "train copy, length 4, batch 2, hidden 3" in shown
    assert "### Rollout: T = 1, in a scan of 128 calls, times as fast as the cell of flax-nnx" in shown
    native = ["gru_jax-native"] * native_is_installed
    ways = ["gru_jax-auto", "gru_jax-fused", *native, "gru_jax-step", "flax-nnx", "flax-nnx, again"]
    assert [row["name"] for row in all_written["rollout"]] == ways
    assert all(row["difference"] < 1e-5 and row["calls"] == 128 for row in all_written["rollout"])
    by_name = {row["name"]: row["same"] for row in all_written["rollout"]}
    assert by_name["flax-nnx, again"] == ["flax-nnx"]
    assert "flax-nnx" not in by_name["gru_jax-auto"]


def test_rollout(capsys, monkeypatch):
    """Calls of three lengths, in a scan and alone, whose outputs are those of Flax' cell, or it says so."""
    monkeypatch.setattr(rollout, "QUICK_SIZES", ((3, 2),))
    monkeypatch.setattr(rollout, "METHODS", ("auto",))
    monkeypatch.setattr(rollout, "TOLERANCE", -1.0)
    assert cli.main(["bench", "--rollout", "--quick", "--rounds", "1", "--sample-ms", "0"]) == 1
    shown = capsys.readouterr().out
    tables = re.findall("Rollout: (T = .*, .*), times", shown)
    assert tables == [f"T = {steps}, {how}" for how in ("in a scan of 128 calls", "alone") for steps in (1, 4, 16)]
    header, _, row = rows(shown.split("### Rollout")[-1])
    assert header[:2] == ["T,B,H", "flax-nnx, µs a call"]
    assert row[0] == "16,2,3"
    assert all(cell.endswith(" DISAGREES") for cell in row[2:-1])
    assert (header[-1], row[-1]) == ("gru_jax-auto is the same program as", "-")


@pytest.mark.long
def test_cells(tmp_path, capsys):
    """Outputs and gradients are the scan's; Flax' LSTM has the same equations and weights."""
    options = ["--cells", "--shapes", "3,2,3,4", "--rounds", "1", "--sample-ms", "0"]
    assert cli.main(["bench", *options, "--json", str(tmp_path / "c.json")]) == 0
    written = json.loads((tmp_path / "c.json").read_text())["cells"]
    ours = ["gru_jax-auto", "gru_jax-scan", "gru_jax-fused"]
    lstm = [*ours, "flax LSTMCell", "flax OptimizedLSTMCell"]
    mgu, goodfellow = [*ours, "flax MGUCell"], [*ours, "CHO2014", "flax GRUCell"]
    assert [row["name"] for row in written] == [*2 * lstm, *2 * mgu, *2 * goodfellow]
    assert all(row["difference"] is None or row["difference"] < 1e-5 for row in written)
    assert "### MGU, gradient: T = 3, B = 2, D = 3, H = 4; × the faster of Flax' cells" in capsys.readouterr().out


@pytest.mark.long
def test_sweep(tmp_path, capsys, monkeypatch):
    shapes = {"T": (Shape(2, 1, 2, 2), Shape(3, 1, 2, 2)), "B": (Shape(2, 3, 2, 2),), "H": (Shape(2, 1, 2, 3),)}
    monkeypatch.setattr(growth, "SWEEPS", shapes)
    options = ["--peers", "gru_jax-fused", "--rounds", "1", "--sample-ms", "0"]
    files = ["--json", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.png")]
    assert cli.main(["bench", "--sweep", *options, *files]) == 0
    assert "gradient along H, µs a step" in capsys.readouterr().out
    sweeps = json.loads((tmp_path / "s.json").read_text())["sweeps"]
    assert {axis: len(along) for axis, along in sweeps.items()} == {"T": 2, "B": 1, "H": 1}
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_missing_peers_are_reported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "haiku", None)
    assert cli.main(["bench", *TINY, "--peers", "haiku"]) == 1
    captured = capsys.readouterr()
    assert "Skipped haiku: haiku is not installed" in captured.out
    assert captured.err == "error: no peer can run here\n"


def test_disagreement_is_reported(tmp_path, capsys, monkeypatch):
    def make(problem):
        return unpatched.make(problem._replace(xs=problem.xs * np.nan))

    unpatched = peers.PEERS["gru_jax-scan"]
    monkeypatch.setitem(peers.PEERS, "gru_jax-scan", unpatched._replace(make=make))
    path = tmp_path / "b.json"
    assert cli.main(["bench", *TINY, "--peers", "gru_jax-scan", "--json", str(path)]) == 1
    (shape,) = json.loads(path.read_text())["shapes"]
    assert shape["peers"]["gru_jax-scan"]["forward"]["difference"] is None
    shown = capsys.readouterr().out
    assert "DISAGREES" in shown
    assert "Not the same outputs or gradients as gru_jax: gru_jax-scan" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--shapes 4,2,3", "--shapes takes four positive integers T,B,D,H, e.g. 100,32,64,128; got '4,2,3'"),
        (
            "--shapes 4,2,3,5 4,0,3,5",
            "--shapes takes four positive integers T,B,D,H, e.g. 100,32,64,128; got '4,0,3,5'",
        ),
        ("--shapes 4x2x3x5", "--shapes takes four positive integers T,B,D,H, e.g. 100,32,64,128; got '4x2x3x5'"),
        ("--sweep --shapes 4,2,3,5", "--sweep chooses its own shapes; leave --shapes out"),
        ("--rollout --shapes 4,2,3,5", "--rollout chooses its own shapes; leave --shapes out"),
        (
            "--cells --sweep",
            "--cells has its own peers and no figure; leave --rollout, --sweep, --peers and --plot out",
        ),
        ("--rollout --peers torch", "--rollout has its own peers and no figure; leave --sweep, --peers and --plot out"),
        ("--peers flaxnnx", "unknown peer 'flaxnnx'; did you mean 'flax-nnx'? There are: gru_jax-scan, "),
        ("--rounds 0", "--rounds must be at least 1, got 0"),
        ("--sample-ms nan", "--sample-ms must be between 0 and 10000, got nan"),
        ("--json nowhere/b.json", "--json: there is no folder "),
    ],
)
def test_bad_values(arguments, message, capsys):
    assert cli.main(["bench", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_defaults():
    assert len(settings.Bench().wanted_shapes()) == 9
    assert len(settings.Bench(quick=True).wanted_shapes()) == 2
    assert cli.parse(["bench"]) == settings.Bench()
    assert cli.parse(["bench", *TINY]).wanted_shapes() == (Shape(4, 2, 3, 5),)


def test_interleaving():
    """In every round each function in turn, once to warm up and then as often as a sample needs."""
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "AB"}
    timings = timing.interleave(functions, rounds=2, sample_seconds=0)
    assert "".join(calls)[-8:] == "AABBBBAA"
    assert all(taken.repetitions == 1 and len(taken.seconds) == 2 for taken in timings.values())


def test_patience(monkeypatch):
    """Rounds that take too long are not all run, but the first three are."""
    monkeypatch.setattr(timing, "PATIENCE", -1.0)
    assert len(timing.interleave({"A": lambda: None}, rounds=9, sample_seconds=0)["A"].seconds) == 3


def test_statistics():
    fast, slow = timing.Timing(1, (1.0, 2.0, 9.0)), timing.Timing(1, (2.0, 4.0, 27.0))
    assert (fast.median, fast.quartiles) == (2.0, (1.5, 5.5))
    assert timing.ratio(slow, fast) == 2.0


def test_residual_bytes():
    """The fused gradient keeps less than autodiff of the scan, and does not count what the caller holds."""
    programs = measure.build(peers.make_problem(Shape(37, 5, 3, 4)), ["gru_jax-scan", "gru_jax-fused"])
    assert 0 < programs["gru_jax-fused"].residual_bytes < programs["gru_jax-scan"].residual_bytes
