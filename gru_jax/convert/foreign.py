"""Hints about weights of other cells and files of other kinds: what they are, and what to do with them."""

import os
from collections.abc import Iterable
from typing import Any

from gru_jax import cells

_CELLS: dict[int, tuple[str, Any]] = {
    1: ("a simple recurrent network", cells.Elman),
    2: ("a minimal gated unit", cells.MGU),
    4: ("an LSTM", cells.LSTM),
}
"""Cells by their number of recurrent matrices (features, features). A GRU has 3."""

_NAMES = {frozenset({"hi", "hf", "hg", "ho"}): 4, frozenset({"hf", "hn"}): 2, frozenset({"i", "h"}): 1}
"""That number by the names of the matrices in Flax, which stores them separately."""

_TORCH = (
    "it is a file of torch.save, a pickle, which gru_jax does not read, as it can run code: "
    "gru_jax.convert.from_torch(torch.load({path!r}, weights_only=True)) takes its state dict, and "
    "safetensors.torch.save_file writes that to a file that gru_jax reads"
)
_KERAS = (
    "it is a file of Keras: gru_jax.convert.from_keras takes layer.get_weights() and layer.get_config() of a layer "
    "that Keras has loaded from it"
)
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The pickled number with which files of torch.save begin before PyTorch 1.6."""


def another_cell(blocks: float, where: str) -> str | None:
    """The message about recurrent weights of so many blocks; None if no cell has that many.

    >>> another_cell(4, "weight_hh_l0 (16, 4)")[:52]
    'weight_hh_l0 (16, 4) is of an LSTM, which gru_jax.co'
    """
    if blocks not in _CELLS:
        return None
    what, cell = _CELLS[int(blocks)]
    order = f" with its gates in the order {', '.join(cell.order)}" if len(cell.order) > 1 else ""
    return (
        f"{where} is of {what}, which gru_jax.convert does not carry, only GRUs: gru_jax.cells.{cell.__name__} has its "
        f"equations, for gru_jax.unroll; put the weights into its parameters, gru_jax.Params{order}"
    )


def blocks_by_name(names: Iterable[str]) -> int:
    """The number of blocks of the cell of Flax whose parameters have these paths; 0 if it is not known.

    >>> blocks_by_name(["cell.hi.kernel", "cell.hf.kernel", "cell.hg.kernel", "cell.ho.kernel", "cell.ii.kernel"])
    4
    """
    modules = {name.split(".")[-2] for name in names if name.count(".")}
    return next((blocks for found, blocks in _NAMES.items() if found <= modules), 0)


def another_file(path: str | os.PathLike[str]) -> str:
    """The message about a file of another kind, recognised by its first bytes; "" if it is not known."""
    with open(path, "rb") as file:
        head = file.read(256)
    text = ""
    if head.startswith(_OLD_TORCH) or (head.startswith(b"PK") and b"/data" in head):  # a zip archive's first name
        text = _TORCH
    elif head.startswith(b"\x89HDF\r\n\x1a\n") or (head.startswith(b"PK") and b"metadata.json" in head):
        text = _KERAS
    return f"; {text.format(path=os.fspath(path))}" if text else ""
