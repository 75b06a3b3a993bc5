"""The command line: `python -m gru_jax.convert IN OUT`."""

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gru_jax import output
from gru_jax.convert import activations
from gru_jax.convert.formats import FORMATS, Contents, FormatOptions, guess
from gru_jax.models import Model

DESCRIPTION = """\
Carries a trained GRU from one file to another.

formats:
  gru_jax   .safetensors   what gru_jax.convert.save writes
  torch     .safetensors   a checkpoint that holds a torch.nn.GRU or GRUCell under --prefix
  onnx      .onnx          a graph with GRU nodes

Formats are told by the suffix and the file's metadata; a .safetensors that is written is gru_jax' own unless --to says
torch. Models of Keras, Flax, Haiku and Equinox come from arrays, not files: see gru_jax.convert in Python.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: of the command line, without the program's name; by default those of the process.

    Returns:
      The exit status: 0; 2 after an error, whose message goes to stderr; 141 if the reader of the output, such as
      `head`, has ended.
    """
    try:
        return output.piped(lambda: _run(arguments))
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    print(convert(_parser().parse_args(arguments)))
    return 0


def convert(args: argparse.Namespace) -> str:
    """Reads one file, writes the other, reads that again, and returns a report."""
    source, target = Path(args.source), Path(args.target)
    reads = args.reads or guess(source, exists=True)
    writes = args.writes or guess(target, exists=False)
    _check_options(args, reads, writes)
    if target.exists() and not args.force:
        raise ValueError(f"{target} exists: --force replaces it")
    options = FormatOptions(args.prefix or "", args.nodes, args.seq_lengths, args.initial_carry)
    model = FORMATS[reads].read(source, options)
    found = FORMATS[reads].contents(source, options)
    FORMATS[writes].write(target, model, options)
    options = options._replace(nodes=None)
    again, made = FORMATS[writes].read(target, options), FORMATS[writes].contents(target, options)
    others = f"; not part of the GRU: {found.others}" if found.others else ""
    return "\n".join(
        [
            f"found    {_describe(model)}",
            f"from     {source} ({reads}{others})",
            f"to       {target} ({writes})",
            "",
            _table(model, (str(source), found), (str(target), made)),
            "",
            *_compare(model, again, writes),
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gru_jax.convert",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="the file to read")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument("--from", dest="reads", choices=FORMATS, help="the format of IN")
    parser.add_argument("--to", dest="writes", choices=FORMATS, help="the format of OUT")
    parser.add_argument("--prefix", help="of the GRU's names in a torch file, with its dot, e.g. encoder.rnn.")
    parser.add_argument("--nodes", nargs="+", metavar="NODE", help="GRU nodes of an onnx IN, first layer first")
    parser.add_argument("--seq-lengths", action="store_true", help="an onnx OUT takes the lengths of the sequences")
    parser.add_argument("--initial-carry", action="store_true", help="an onnx OUT takes the initial states")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return parser


def _check_options(args: argparse.Namespace, reads: str, writes: str) -> None:
    """Checks that each option has something to act on."""
    needs = {
        "--prefix": (args.prefix is not None, "torch" in (reads, writes), "a torch file"),
        "--nodes": (args.nodes is not None, reads == "onnx", "an onnx IN"),
        "--seq-lengths": (args.seq_lengths, writes == "onnx", "an onnx OUT"),
        "--initial-carry": (args.initial_carry, writes == "onnx", "an onnx OUT"),
    }
    for option, (is_given, has_effect, what) in needs.items():
        if is_given and not has_effect:
            raise ValueError(f"{option} needs {what}, got {reads} to {writes}")


def _describe(model: Model) -> str:
    """A description of a model in one line."""
    stack, cell = model.stack, model.stack.cell
    dtypes = sorted({str(leaf.dtype) for params in model.params for leaf in params if leaf is not None})
    direction = "bidirectional" if stack.bidirectional else "reverse" if stack.reverse else "forward"
    gate, candidate = activations.name_of("gate", cell.gate), activations.name_of("candidate", cell.candidate)
    return (
        f"GRU of {stack.num_layers} layer{'s' * (stack.num_layers > 1)}, {direction}, "
        f"{model.params[0].in_features} inputs, {stack.features} features, "
        f"reset {'after' if cell.reset_after else 'before'}, {gate} and {candidate}, {', '.join(dtypes)}"
    )


def _table(model: Model, source: tuple[str, Contents], target: tuple[str, Contents]) -> str:
    """A table: for each layer and direction the tensors that were read, and those that were written."""
    stack = model.stack
    rows = [("layer", "direction", source[0], target[0])]
    directions = ["forward", "backward"] if stack.bidirectional else ["reverse" if stack.reverse else "forward"]
    cells = itertools.product(range(stack.num_layers), directions)
    for (layer, direction), read, written in zip(cells, source[1].cells, target[1].cells, strict=True):
        rows += itertools.zip_longest([str(layer)], [direction], read, written, fillvalue="")
    return output.table(rows)


def _compare(model: Model, again: Model, writes: str) -> Iterable[str]:
    """Lines about how the model that was read back differs from the one that was written."""
    differing = []
    for i, (params, others) in enumerate(zip(model.params, again.params, strict=True)):
        for field, value, other in zip(params._fields, params, others, strict=True):
            same = value is other if value is None or other is None else _identical(value, other)
            if not same:
                differing.append(f"params[{i}].{field}")
    yield "read back: " + (f"differs in {', '.join(differing)}" if differing else "every parameter is identical")
    for name in (field.name for field in dataclasses.fields(model.stack)):
        value, other = getattr(model.stack, name), getattr(again.stack, name)
        if value != other:
            yield f"not held by {writes}: {name}={value!r}; read back it is {other!r}"


def _identical(value: object, other: object) -> bool:
    one, two = np.asarray(value), np.asarray(other)
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
