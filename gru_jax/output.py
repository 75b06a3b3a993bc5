"""Standard output whose reader may end first, as `head` does."""

import os
import sys
from collections.abc import Callable


def piped(command: Callable[[], int]) -> int:
    """The exit status that a command returns; 141, as of other programs, if what reads its output has ended."""
    try:
        try:
            return command()
        finally:
            # What is left in the buffer meets a closed pipe here, and not when the interpreter ends.
            print(end="", flush=True)
    except BrokenPipeError:
        _drop_unread()
        return 141


def _drop_unread() -> None:
    """Sends what nobody reads any more to nowhere, so that Python does not complain of it at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            print(end="", flush=True, file=stream)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
