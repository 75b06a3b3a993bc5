"""The file formats of the command line: how to read, write and list each."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gru_jax import output
from gru_jax.cells import Params
from gru_jax.convert import files, foreign, onnx_graph, onnx_reader, onnx_writer, torch
from gru_jax.models import Model


class FormatOptions(NamedTuple):
    """Options for reading and writing files.

    Attributes:
      prefix: of the GRU's names in a torch file.
      nodes: names of the GRU nodes to read from an ONNX file; all of them if None.
      seq_lengths: whether a written ONNX graph takes lengths.
      initial_carry: whether a written ONNX graph takes initial states.
    """

    prefix: str = ""
    nodes: list[str] | None = None
    seq_lengths: bool = False
    initial_carry: bool = False


class Contents(NamedTuple):
    """The contents of a file, as text.

    Attributes:
      cells: for each layer and direction, in the flat order, its tensors.
      others: the parts that belong to no GRU; "" if there are none.
    """

    cells: list[list[str]]
    others: str


class Format(NamedTuple):
    """A file format.

    Attributes:
      suffix: of its files.
      read: makes a model.
      write: makes the file of a model.
      contents: lists a file that `read` can read.
    """

    suffix: str
    read: Callable[[Path, FormatOptions], Model]
    write: Callable[[Path, Model, FormatOptions], None]
    contents: Callable[[Path, FormatOptions], Contents]


def guess(path: Path, exists: bool) -> str:
    """The name of a file's format, from its suffix and, if it exists, its metadata.

    Raises:
      ValueError: if they do not tell.

    >>> guess(Path("gru.onnx"), exists=False)
    'onnx'
    """
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix != ".safetensors":
        hint = foreign.another_file(path) if exists else ""
        raise ValueError(
            f"the format of {path} must be given, as its name does not tell; .safetensors and .onnx do{hint}"
        )
    if not exists:
        return "gru_jax"
    with files.opened(path) as file:
        return "gru_jax" if (file.metadata() or {}).get("format") == "gru_jax" else "torch"


def _write_torch(path: Path, model: Model, options: FormatOptions) -> None:
    state = {name: np.ascontiguousarray(value) for name, value in torch.to_torch(model, prefix=options.prefix).items()}
    output.write_file(path, files.library("safetensors.numpy").save(state, {"format": "pt"}))


def _write_onnx(path: Path, model: Model, options: FormatOptions) -> None:
    proto = onnx_writer.to_onnx(model, seq_lengths=options.seq_lengths, initial_carry=options.initial_carry)
    output.write_file(path, proto.SerializeToString())


def _list_safetensors(where: Callable[[str], tuple[int, bool, int]], path: Path, prefix: str) -> Contents:
    """Contents; `where` maps a name to its layer, whether it is of the backward direction, and its rank there."""
    cells: dict[tuple[int, bool], list[tuple[int, str]]] = {}
    others = 0
    with files.opened(path) as file:
        for name in file.keys():  # noqa: SIM118, not a dict
            if not name.startswith(prefix):
                others += 1
                continue
            layer, is_backward, place = where(name.removeprefix(prefix))
            text = f"{name} {tuple(file.get_slice(name).get_shape())}"
            cells.setdefault((layer, is_backward), []).append((place, text))
    listed = [[text for _, text in sorted(cells[cell])] for cell in sorted(cells)]
    return Contents(listed, f"{others} of the tensors" if others else "")


def _in_torch(name: str) -> tuple[int, bool, int]:
    """`where` for the parameters of torch.nn.GRU, and of GRUCell, which has no layers.

    >>> _in_torch("weight_hh_l1_reverse"), _in_torch("bias_ih")
    ((1, True, 1), (0, False, 2))
    """
    match = re.fullmatch(r"(\w+_[ih]h)(?:_l(\d+)(_reverse)?)?", name)
    if match is None:
        raise ValueError(f"a parameter of torch.nn.GRU must have a name like 'weight_ih_l0', got {name!r}")
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return int(match[2] or 0), match[3] is not None, kinds.index(match[1])


def _in_own(name: str) -> tuple[int, bool, int]:
    """`where` for the tensors in a file of `save`.

    >>> _in_own("layers.1.backward.bias")
    (1, True, 2)
    """
    _, layer, direction, field = name.split(".")
    return int(layer), direction == "backward", Params._fields.index(field)


def _list_onnx(path: Path, options: FormatOptions) -> Contents:
    graph = onnx_graph.Graph(files.library("onnx"), path)
    layers = onnx_reader.read_layers(graph, options.nodes)
    cells = []
    for layer in layers:
        named = [(kind, name) for kind, name in zip("WRB", layer.node.input[1:4], strict=False) if name]
        for direction in range(len(layer.params)):
            arrays = [(f"{kind}[{direction}] {name!r}", graph.constant(name)) for kind, name in named]
            fed = zip(("sequence_lens", "initial_h"), layer.node.input[4:6], strict=False)
            cells.append(
                [f"{text} {array.shape[1:]}" for text, array in arrays if array is not None]
                + [f"{kind} {name!r}: an argument" for kind, name in fed if name and graph.constant(name) is None]
            )
    kinds = {node.op_type for node in graph.nodes} - {"Constant", "GRU"}
    return Contents(cells, f"nodes {', '.join(sorted(kinds))}" if kinds else "")


FORMATS = {
    "gru_jax": Format(
        ".safetensors",
        lambda path, options: files.load(path),
        lambda path, model, options: files.save(path, model),
        lambda path, options: _list_safetensors(_in_own, path, ""),
    ),
    "torch": Format(
        ".safetensors",
        lambda path, options: files.load_torch_safetensors(path, options.prefix),
        _write_torch,
        lambda path, options: _list_safetensors(_in_torch, path, options.prefix),
    ),
    "onnx": Format(
        ".onnx",
        lambda path, options: onnx_reader.from_onnx(path, nodes=options.nodes),
        _write_onnx,
        _list_onnx,
    ),
}
