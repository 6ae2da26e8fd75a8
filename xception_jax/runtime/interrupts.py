"""Ctrl-C and SIGTERM, noticed at once whatever the main thread does.

Python runs a signal's handler in the main thread, between two instructions: not while that thread
compiles a program in C++, which takes minutes. The interpreter itself notes the signal at once and
writes its number to a socket, see `signal.set_wakeup_fd`. A thread here reads it and answers.
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

# Until then the main thread has run its handler, unless it is in C++.
_PATIENCE_S = 1.0
# How long it may then take to tidy up.
_TIDY_S = 5.0

_owned = False


@contextmanager
def noticed(
    numbers: Sequence[int],
    arrived: Callable[[int], None],
    handler: Callable[[int, Any], None] = lambda number, frame: None,
) -> Iterator[None]:
    """Inside, each signal of these kinds is noticed within milliseconds.

    Of use in the main thread only, as everything about signals.

    Args:
      numbers: the signals.
      arrived: called with the number, in a thread.
      handler: called in the main thread, when it gets there.
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
    """Inside, Ctrl-C ends the process with one line and exit code 130, and no traceback.

    Once, `KeyboardInterrupt` is raised in the main thread, so that it can tidy up; it may end with
    a line of its own by `SystemExit`. Where it is in C++ or imports a module, is not done after
    five seconds, or at a second Ctrl-C, the process ends at once. Nothing changes where Ctrl-C is
    ignored, as shells have it for what they start in the background.
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
        """It was raised where nobody can catch it, as in a hook of the garbage collector."""
        if isinstance(told.exc_value, KeyboardInterrupt):
            end_now(line, signal.SIGINT)
        hook_before(told)

    with noticed((signal.SIGINT,), arrived, handler):
        sys.unraisablehook = unraisable
        try:
            yield
        except BaseException as error:
            # Libraries make other errors of it.
            if not raised.is_set():
                raise
            over.set()
            end_now("" if isinstance(error, SystemExit) else line, signal.SIGINT)
        finally:
            over.set()
            sys.unraisablehook = hook_before


def owned() -> bool:
    """Whether the process is a command's, which may end it; else it is another program's."""
    return _owned


def _importing(frame: Any) -> bool:
    """Whether a module is being imported: extensions print what is raised then."""
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def say(line: str) -> None:
    """Writes a line to standard error, past all locks and buffers."""
    # On a terminal a progress bar may stand in the line; it is drawn anew below.
    start = "\r\x1b[K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())


def end_now(line: str, number: int) -> NoReturn:
    """Ends the process with a line, unless it is empty, and exit code 128 + number.

    Python's own end is left out: it waits for threads, and another thread may hold any lock.
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
