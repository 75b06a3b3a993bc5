"""Standard output to a reader that may end first, such as `head`."""

import os
import sys
from collections.abc import Callable


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


def _discard_unread() -> None:
    """Sends output that nobody reads to the null device, so that Python does not report it when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", flush=True, file=stream)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
