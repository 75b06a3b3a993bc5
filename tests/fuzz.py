"""Damaged files, and what reading them must end in: `python -m tests.fuzz onnx 0 1000 seed.txt` reads a
thousand ONNX files.

The last argument is a file that says which seed is being read. Every file comes
from a seed: one that is in order, changed in its bytes or its structure. It is read within limits of CPU time and
memory, and that ends in a ValueError or in a model. The model is held against the file in another way:

- onnx: the part of the graph that a model stands for, from X of the first node to Y and Y_h of all of them, is computed
  by onnxruntime, and from the model's parameters by the oracle. Sequences begin with what is fed to the graph, where
  their start is no constant. Weights that are huge or no numbers are compared themselves.
- own, torch: tensors and metadata are taken out of the file's bytes here, and must be the model's, bit by bit.
- cli: `main` ends with 0 and a file that holds the same model as the one it was given, or with 2 and a message.
"""

import collections
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from gru_jax import convert
from gru_jax.convert.cli import main as command
from tests.fuzz_files import (
    any_of,
    damaged_onnx,
    damaged_safetensors,
    flipped,
    onnx_files,
    own_files,
    parts,
    torch_files,
)
from tests.fuzz_onnx import RefusedError, check_onnx

CPU_SECONDS, BYTES = 5, 200 * 2**20
"""What reading one file may take, beyond what the process has."""


def limited(call):
    """`call()` within the limits: beyond them it raises a MemoryError, or the process ends."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + BYTES,
        resource.RLIMIT_CPU: int(time.process_time()) + 1 + CPU_SECONDS,
    }
    before = {kind: resource.getrlimit(kind) for kind in limits}
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, before[kind][1]))
    start = time.process_time()
    try:
        return call()
    finally:
        for kind, limit in before.items():
            resource.setrlimit(kind, limit)
        assert time.process_time() - start < CPU_SECONDS


# --- safetensors: bytes taken apart here ------------------------------------------------------------------------------

KINDS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def tensors_of(data):
    header, body = parts(data)
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[start:stop], np.dtype(KINDS[entry["dtype"]])).reshape(entry["shape"])
    return tensors, metadata


def check_own(data, one):
    tensors, metadata = tensors_of(data)
    for i, params in enumerate(one.params):
        layer, direction = divmod(i, one.stack.directions)
        for field, value in params._asdict().items():
            expected = tensors.pop(f"layers.{layer}.{('forward', 'backward')[direction]}.{field}", None)
            assert (value is None) == (expected is None)
            if value is not None:
                assert (value.dtype, value.shape, value.tobytes()) == (
                    expected.dtype,
                    expected.shape,
                    expected.tobytes(),
                )
    assert not tensors
    stack = json.loads(metadata["stack"])
    cell = stack.pop("cell")
    assert cell | {name: cell[name].lower() for name in ("gate", "candidate")} == {  # names are read in any case
        "reset_after": one.stack.cell.reset_after,
        "gate": one.stack.cell.gate.name,
        "candidate": one.stack.cell.candidate.name,
    }
    dtype = stack.pop("dtype", None)
    assert one.stack.dtype == (None if dtype is None else np.dtype(dtype))
    for field, value in stack.items():
        held = getattr(one.stack, field)
        assert held == value
        assert isinstance(held, bool) == isinstance(value, bool)


def check_torch(data, one):
    tensors, _ = tensors_of(data)
    assert len(tensors) == len(one.params) * (4 if one.params[0].bias is not None else 2)
    for i, params in enumerate(one.params):
        layer, backward = divmod(i, one.stack.directions)
        end = f"_l{layer}" + "_reverse" * backward
        end = end if "weight_ih" + end in tensors else ""  # a GRUCell
        kernel, recurrent_kernel = (tensors[f"weight_{kind}{end}"].T for kind in ("ih", "hh"))
        np.testing.assert_array_equal(params.kernel, kernel)
        np.testing.assert_array_equal(params.recurrent_kernel, recurrent_kernel)
        if params.bias is not None:
            features = one.stack.features
            first, second = (tensors[f"bias_{kind}{end}"] for kind in ("ih", "hh"))
            expected = np.concatenate([(first + second)[: 2 * features], first[2 * features :]])
            np.testing.assert_array_equal(params.bias, expected)
            np.testing.assert_array_equal(params.recurrent_bias, second[2 * features :])


# --- The subjects -----------------------------------------------------------------------------------------------------


def read_file(read, check, damage, suffix):
    """A subject: one file of a seed is read and checked; returns how it ended."""

    def subject(rng, files, folder):
        data = damage(rng, files)
        path = folder / f"file{suffix}"
        path.write_bytes(data)
        try:
            result = limited(lambda: read(path))
        except ValueError:
            return "ValueError"
        try:
            check(data, result)
        except RefusedError as error:
            return f"read, and onnxruntime says {error}"
        return "right"

    return subject


def run_command(rng, files, folder):
    """A subject: the command line with arguments and a file, either of which may be damaged."""
    place = rng.integers(len(files))
    suffix, bases = files[place]
    damage = damaged_onnx if suffix == ".onnx" else damaged_safetensors
    data = damage(rng, bases) if rng.random() < 0.6 else _bytes(any_of(rng, bases))
    source, target = folder / f"in{suffix}", folder / f"out{any_of(rng, ['.onnx', '.safetensors', '', '.onnx'])}"
    source.write_bytes(data)
    arguments = [str(source), str(target)]
    for option in ("--from", "--to", "--prefix", "--nodes", "--seq-lengths", "--initial-carry", "--force"):
        if rng.random() < 0.15:
            arguments.append(option)
            if option in ("--from", "--to", "--prefix", "--nodes"):
                arguments += [any_of(rng, ["gru_jax", "torch", "onnx", "", "rnn.", "layers.0.Y"])]
    if rng.random() < 0.3:
        odd = [b"--", b"-x", b"\x00", b"\xff", b"a" * 300, b"/", b"--force=1", bytes(folder)]
        arguments.insert(rng.integers(len(arguments) + 1), os.fsdecode(any_of(rng, odd)))
    if rng.random() < 0.15:
        i = rng.integers(len(arguments))
        arguments[i] = os.fsdecode(flipped(rng, os.fsencode(arguments[i]) or b"x"))
    out, err = io.StringIO(), io.StringIO()
    before = _listed(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(folder):
            status = limited(lambda: command(arguments))
    except SystemExit as end:  # argparse: 2, or 0 after help
        status = 2 if end.code == 0 and "-h" in "".join(arguments) else end.code
    assert status in (0, 2)
    if status == 2:
        assert err.getvalue()
        assert _listed(folder) == before
    else:
        assert "read back: every parameter is identical" in out.getvalue() or "differs" in out.getvalue()
    for path in set(folder.iterdir()) - {source}:
        path.unlink()
    return f"status {status}"


def _bytes(value):
    return value if isinstance(value, bytes) else value.SerializeToString()


def _listed(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


SUBJECTS = {
    "onnx": (
        lambda folder: onnx_files(),
        read_file(lambda path: convert.from_onnx(path, return_carry=True), check_onnx, damaged_onnx, ".onnx"),
    ),
    "own": (own_files, read_file(convert.load, check_own, damaged_safetensors, ".safetensors")),
    "torch": (
        torch_files,
        read_file(convert.load_torch_safetensors, check_torch, damaged_safetensors, ".safetensors"),
    ),
    "cli": (
        lambda folder: [
            (".onnx", onnx_files()),
            (".safetensors", own_files(folder)),
            (".safetensors", torch_files(folder)),
        ],
        run_command,
    ),
}


def run(kind, start, stop, progress):
    """How the files of these seeds ended, and how many of each; a file's seed goes to `progress` before it is read."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        make, subject = SUBJECTS[kind]
        files = make(folder)
        for path in folder.iterdir():
            path.unlink()
        ends = collections.Counter()
        for seed in range(start, stop):
            progress.write_text(str(seed))
            try:
                end = subject(np.random.default_rng(seed), files, folder)
            except BaseException as error:
                end = f"seed {seed}: {error!r}"[:500]
                if os.environ.get("FUZZ_RAISE"):
                    raise
            ends[end] += 1
    return dict(ends)


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
