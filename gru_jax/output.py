"""What commands write: standard output to a reader that may end first, files in one step, and tables of text."""

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

PARTIAL = ".partial"
"""How the name of a file ends while `write_file` writes it; a process that is killed may leave it behind."""


def piped(command: Callable[[], int]) -> int:
    """Runs a command and returns its exit status; 141, as other programs do, if the reader of its output has ended."""
    try:
        try:
            return command()
        finally:
            # So that a closed pipe raises its error here, and not when the interpreter ends.
            print(end="", flush=True)
    except BrokenPipeError:
        _discard_unread()
        return 141


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file in one step: it has all of the data, or is as it was before, also after a crash.

    Raises:
      OSError: if it cannot be written; what has been written of it is removed.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def table(rows: Iterable[Sequence[str]], markdown: bool = False) -> str:
    """Rows of text in columns of equal width, the heading first; in plain text, or in Markdown.

    >>> print(table([("cell", "units"), ("gru", "64")]))
    cell  units
    gru   64
    >>> print(table([("cell", "units"), ("gru", "64")], markdown=True))
    | cell | units |
    | ---- | ----- |
    | gru  | 64    |
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if markdown:
        rows.insert(1, ["-" * width for width in widths])
    padded = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" if markdown else "  ".join(row).rstrip() for row in padded)


def _discard_unread() -> None:
    """Sends output that nobody reads to the null device, so that Python does not report it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", flush=True, file=stream)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
