"""Ctrl-C and SIGTERM: what has been computed is saved, then the process leaves at once.

Python itself raises KeyboardInterrupt in the main thread: when that is back from the compiler, which may take a minute,
or in the middle of a library's bookkeeping. And an interpreter that ends while XLA compiles crashes. So here a thread
of its own takes the signals, saves while the main thread computes on, and ends the process without tearing it down.
What that may cut short is no more than what `kill -9` may, which a run folder survives.
"""

import contextlib
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

held = threading.RLock()
"""To be held where files are written or what `on_leaving` saves is changed; the process does not leave meanwhile."""


def _save_nothing() -> None:
    """Before there is anything to save."""


def _how_to_go_on() -> str:
    """Before a command has said it: the same command, which for a run must say that it may exist."""
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
    """From here on Ctrl-C and SIGTERM end the process, with status 130 and 143; to be called by the main thread, early.

    A second one ends it even if saving takes long. A signal that the process was started to ignore, as by nohup, is
    ignored. On Windows, where a thread cannot wait for signals, this does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return
    watched = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    # Threads that are started later inherit this, so that the signals wait for the one that waits for them.
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    threading.Thread(target=_wait, args=(watched,), daemon=True).start()


@contextlib.contextmanager
def on_leaving(*, save: Callable[[], None] | None = None, say: Callable[[], str] | None = None) -> Iterator[None]:
    """Within it, what is saved, and what is printed thereafter, when a signal ends the process."""
    global _save, _say
    before = _save, _say
    with held:
        _save, _say = save or _save, say or _say
    try:
        yield
    finally:
        with held:
            _save, _say = before


def _wait(watched: Sequence[signal.Signals]) -> None:
    status = 128 + signal.sigwait(watched)
    threading.Thread(target=_leave, args=(status,), daemon=True).start()
    os._exit(128 + signal.sigwait(watched))


def _leave(status: int) -> None:
    with held:
        for act in (_save, lambda: print(f"\n{_say()}", file=sys.stderr), sys.stdout.flush, sys.stderr.flush):
            try:
                act()
            except BaseException:
                # A full disk, a closed terminal: all the more reason to leave.
                with contextlib.suppress(OSError):
                    traceback.print_exc()
        os._exit(status)
