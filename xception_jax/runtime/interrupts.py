"""Reacts to Ctrl-C and SIGTERM at once, also while the main thread is busy.

Python runs a signal's handler in the main thread, between two instructions. It does not run while
that thread compiles a program in C++, which takes minutes. But the interpreter writes the signal's
number to a socket at once, see `signal.set_wakeup_fd`. A thread here reads it and reacts.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

# Within this time the main thread runs its handler, unless it is in C++.
_PATIENCE_S = 1.0
# How long the main thread may then take to clean up.
_TIDY_S = 5.0

_owned = False


@contextmanager
def noticed(
    numbers: Sequence[int],
    arrived: Callable[[int], None],
    handler: Callable[[int, Any], None] = lambda number, frame: None,
) -> Iterator[None]:
    """Inside the context, each of these signals is noticed within milliseconds.

    Works in the main thread only, as everything about signals.

    Args:
      numbers: the signals.
      arrived: called with the number, in another thread.
      handler: called in the main thread, as soon as it can run Python.
    """
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)

    def answer() -> None:
        while received := ours.recv(1):  # empty once the other end is closed
            if received[0] in numbers:
                arrived(received[0])

    thread = threading.Thread(target=answer, name="interrupts", daemon=True)
    with ours, pythons:
        fd_before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        thread.start()
        before = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield
        finally:
            for number, one in before.items():
                signal.signal(number, signal.SIG_DFL if one is None else one)  # None: set in C
            signal.set_wakeup_fd(fd_before)
            pythons.close()
            thread.join(_PATIENCE_S)


@contextmanager
def ends(line: str) -> Iterator[None]:
    """Inside the context, Ctrl-C ends the process with one line, exit code 130 and no traceback.

    The first Ctrl-C raises `KeyboardInterrupt` in the main thread, so that it can clean up. It may
    end with a line of its own by `SystemExit`. The process ends at once if the main thread is in
    C++, imports a module, or is not done after five seconds, and at a second Ctrl-C. If Ctrl-C is
    ignored, as shells do for background processes, nothing changes.
    """
    global _owned
    _owned = True
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return
    raised, over, count = threading.Event(), threading.Event(), itertools.count(1)
    hook_before = sys.unraisablehook

    def handler(number: int, frame: Any) -> None:
        if not raised.is_set() and not _importing(frame):
            raised.set()
            raise KeyboardInterrupt

    def arrived(number: int) -> None:
        if next(count) == 1 and raised.wait(_PATIENCE_S):
            threading.Thread(target=hurry, args=(number,), daemon=True).start()
        elif not over.is_set():
            end_now(line, number)

    def hurry(number: int) -> None:
        if not over.wait(_TIDY_S):
            end_now(line, number)

    def unraisable(told: Any) -> None:
        """The interrupt was raised where it cannot be caught, as in a garbage collector's hook."""
        if isinstance(told.exc_value, KeyboardInterrupt):
            end_now(line, signal.SIGINT)
        hook_before(told)

    with noticed((signal.SIGINT,), arrived, handler):
        sys.unraisablehook = unraisable
        try:
            yield
        except BaseException as error:
            # Libraries may turn the interrupt into another error.
            if not raised.is_set():
                raise
            over.set()
            end_now("" if isinstance(error, SystemExit) else line, signal.SIGINT)
        finally:
            over.set()
            sys.unraisablehook = hook_before


def owned() -> bool:
    """Whether a command of ours owns the process and may end it, not another program."""
    return _owned


def _importing(frame: Any) -> bool:
    """Whether a module is being imported: extensions print errors that are raised then."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def say(line: str) -> None:
    """Writes a line to standard error, without locks and buffers."""
    # On a terminal the line may contain a progress bar, which is drawn again below.
    start = "\r\x1b[K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())


def end_now(line: str, number: int) -> NoReturn:
    """Ends the process with a line, unless it is empty, and exit code 128 + number.

    Python's normal exit is skipped: it waits for threads, and another thread may hold any lock.
    """
    for buffered in (sys.stdout, sys.stderr):
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(Exception):
                buffered.flush()
    for stream in (1, 2):
        if os.isatty(stream):
            with contextlib.suppress(OSError):
                os.write(stream, b"\x1b[?25h")  # a progress bar hides the cursor
    if line:
        say(line)
    os._exit(128 + number)
