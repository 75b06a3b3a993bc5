"""Models in safetensors files: tensors by name, with the stack in the metadata."""

import contextlib
import dataclasses
import importlib
import json
import os
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from gru_jax import output
from gru_jax.cells import GRU, Params
from gru_jax.convert import activations, foreign
from gru_jax.convert.torch import from_torch, prefixes
from gru_jax.layers import Stack
from gru_jax.models import Model, check_gru

FORMAT = 1
"""The number of the format that `save` writes. Every change that an older `load` would misread increases it."""

_Path = str | os.PathLike[str]


def save(path: _Path, model: Model) -> None:
    """Writes a model to a safetensors file.

    Tensors have names like `layers.0.forward.kernel`, after the fields of `gru_jax.Params`. The metadata has
    format="gru_jax", the number of the format, and the fields of the stack as JSON. The file appears under its name
    when it is complete. It then replaces a file of the same name, which stays if writing fails.

    Args:
      path: of the file.
      model: the model. The file names its activations, so they must be in `gru_jax.convert.activations.ACTIVATIONS`.

    Raises:
      TypeError, ValueError: if the parameters do not fit the stack, or an activation has no name.
      ImportError: without the library safetensors.

    >>> import gru_jax, jax, tempfile
    >>> cell = gru_jax.CUDNN
    >>> model = Model((cell.init(jax.random.key(0), 3, 4),), Stack(cell, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/gru.safetensors", model)
    ...     loaded = load(f"{folder}/gru.safetensors")
    >>> loaded.stack == model.stack, bool((loaded.params[0].kernel == model.params[0].kernel).all())
    (True, True)
    """
    stack = check_gru(model).stack
    tensors = {
        prefix + field: np.ascontiguousarray(value)
        for prefix, params in zip(cell_names(stack), model.params, strict=True)
        for field, value in params._asdict().items()
        if value is not None
    }
    metadata = {"format": "gru_jax", "format_number": str(FORMAT), "stack": json.dumps(_to_json(stack))}
    output.write_file(path, library("safetensors.numpy").save(tensors, metadata))


def load(path: _Path) -> Model:
    """Reads a file that `save` wrote, of this version of the format or an older one.

    Args:
      path: of the file.

    Returns:
      The model. Its arrays are NumPy's, in the dtype of the file, so that float64 stays float64 even if JAX computes
      in 32 bits.

    Raises:
      ValueError: if the file is damaged, was not written by gru_jax, or has a newer format.
      OSError: if it cannot be read.
      ImportError: without the library safetensors.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != "gru_jax":
            raise ValueError(
                f"{path} is not a file of gru_jax: format in its metadata is {metadata.get('format')!r}, expected "
                "'gru_jax'; load_torch_safetensors reads checkpoints of PyTorch"
            )
        number = metadata.get("format_number", "")
        if not number.isdecimal():
            raise ValueError(f"{path} has format_number {number!r} in its metadata, expected an integer")
        if int(number) > FORMAT:
            raise ValueError(
                f"{path} has format {number}, this gru_jax reads formats up to {FORMAT}: it needs a newer gru_jax"
            )
        stack = _from_json(path, metadata.get("stack", ""))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    return _assemble(path, stack, tensors)


def load_torch_safetensors(path: _Path, prefix: str = "") -> Model:
    """Reads a `torch.nn.GRU` or `GRUCell` from a PyTorch checkpoint in safetensors.

    Args:
      path: of the file.
      prefix: of the GRU's names in the checkpoint, with its dot, e.g. "encoder.rnn."; other tensors are not read.

    Returns:
      The model, as from `from_torch`.

    Raises:
      ValueError: if the file is damaged, or the tensors under the prefix are not those of a GRU.
      OSError: if it cannot be read.
      ImportError: without the library safetensors.
    """
    with opened(path) as file:
        names = list(file.keys())
        under = [name for name in names if name.startswith(prefix)]
        if not under:
            raise ValueError(
                f"{path} has no tensor under prefix {prefix!r}; prefixes of GRUs or LSTMs in it: {prefixes(names)}"
            )
        return from_torch({name: file.get_tensor(name) for name in under}, prefix=prefix)


def library(name: str) -> Any:
    """Imports an optional library, or raises an ImportError that names the extra to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{package} is not installed: pip install 'gru_jax[convert]' brings it ({error})") from error


@contextlib.contextmanager
def opened(path: _Path) -> Iterator[Any]:
    """An open safetensors file. Its errors become ValueErrors that name the file."""
    safetensors = library("safetensors")
    try:
        with open(path, "rb"), safetensors.safe_open(os.fspath(path), framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        hint = foreign.another_file(path)
        raise ValueError(f"{path} is damaged or not a safetensors file: {error}{hint}") from error


def cell_names(stack: Stack) -> Iterator[str]:
    """The prefixes of the tensors of each layer and direction, in the flat order.

    >>> list(cell_names(Stack(GRU(), 4, bidirectional=True)))
    ['layers.0.forward.', 'layers.0.backward.']
    """
    for layer in range(stack.num_layers):
        for direction in ("forward", "backward")[: stack.directions]:
            yield f"layers.{layer}.{direction}."


def _assemble(path: _Path, stack: Stack, tensors: dict[str, Any]) -> Model:
    """The model of a file's tensors. Each tensor must belong to it."""
    rest = dict(tensors)
    params = []
    for prefix in cell_names(stack):
        for field in ("kernel", "recurrent_kernel"):
            if prefix + field not in rest:
                raise ValueError(f"{path} lacks the tensor {prefix + field!r}, which its stack needs")
        params.append(Params(**{field: rest.pop(prefix + field, None) for field in Params._fields}))
    if rest:
        raise ValueError(f"{path} has tensors that its stack does not know: {sorted(rest)}")
    try:
        return check_gru(Model(tuple(params), stack))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has tensors that do not fit its stack: {error}") from error


def _to_json(stack: Stack) -> dict[str, Any]:
    fields = {field.name: getattr(stack, field.name) for field in dataclasses.fields(stack)}
    cell = stack.cell
    fields["cell"] = {
        "reset_after": cell.reset_after,
        "gate": activations.name_of("gate", cell.gate),
        "candidate": activations.name_of("candidate", cell.candidate),
    }
    fields["dtype"] = None if stack.dtype is None else jnp.dtype(stack.dtype).name
    return fields


def _from_json(path: _Path, text: str) -> Stack:
    """The inverse of `_to_json`. Fields that an older version did not write have their defaults."""
    try:
        fields = json.loads(text)
        cell = fields.pop("cell")
        equations = GRU(**cell | {name: activations.by_name(name, cell[name]) for name in ("gate", "candidate")})
        dtype = fields.pop("dtype", None)
        return Stack(equations, **fields, dtype=None if dtype is None else jnp.dtype(dtype))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} has a stack in its metadata that is not understood ({error!r}): {text[:1000]!r}"
        ) from error
