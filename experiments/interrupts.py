"""Ctrl-C and SIGTERM: saves what has been computed, then ends the process at once.

Python raises KeyboardInterrupt in the main thread, either after XLA has finished compiling, which may take a minute, or
in the middle of a library's bookkeeping. And an interpreter that exits while XLA compiles crashes. So here a separate
thread waits for the signals, saves while the main thread goes on computing, and ends the process without finalising the
interpreter. That loses no more than `kill -9` does, which a run folder survives.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

lock = threading.RLock()
"""To be held while files are written, or while what `on_leaving` saves is changed: the process does not end then."""


def _save_nothing() -> None:
    """Used until there is something to save."""


def _how_to_go_on() -> str:
    """Used until a command gives its own message: the same command again, for `train` with --resume."""
    words = ["python", "-m", "experiments", *sys.argv[1:]]
    match sys.argv[1:2]:
        case ["train"]:
            return f"Interrupted. Go on with:\n  {shlex.join(words if '--resume' in words else [*words, '--resume'])}"
        case ["sweep"]:
            return f"Interrupted. Go on with:\n  {shlex.join(words)}"
    return "Interrupted."


_save: Callable[[], None] = _save_nothing
_say: Callable[[], str] = _how_to_go_on


def watch() -> None:
    """Makes Ctrl-C and SIGTERM end the process, with status 130 and 143. The main thread must call this early.

    A second signal ends the process even while it still saves. A signal that the process was started to ignore, as by
    nohup, stays ignored. On Windows, where a thread cannot wait for signals, this does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    watched = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    # Later threads inherit this mask, so that only the thread that waits for the signals receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    threading.Thread(target=_wait, args=(watched,), daemon=True).start()


@contextlib.contextmanager
def on_leaving(*, save: Callable[[], None] | None = None, say: Callable[[], str] | None = None) -> Iterator[None]:
    """A context in which a signal first calls `save`, then prints what `say` returns, and ends the process."""
    global _save, _say
    before = _save, _say
    with lock:
        _save, _say = save or _save, say or _say
    try:
        yield
    finally:
        with lock:
            _save, _say = before


def _wait(watched: Sequence[signal.Signals]) -> None:
    status = 128 + signal.sigwait(watched)
    threading.Thread(target=_leave, args=(status,), daemon=True).start()
    os._exit(128 + signal.sigwait(watched))


def _leave(status: int) -> None:
    with lock:
        for act in (_save, lambda: print(f"\n{_say()}", file=sys.stderr), sys.stdout.flush, sys.stderr.flush):
            try:
                act()
            except BaseException:
                # A full disk or a closed terminal must not keep the process alive.
                with contextlib.suppress(OSError):
                    traceback.print_exc()
        os._exit(status)
