"""Ctrl-C and SIGTERM, noticed at once whatever the main thread does.

Python runs a signal's handler in the main thread, between two instructions: not while that thread
compiles a program in C++, which takes minutes. The interpreter itself notes the signal at once and
writes its number to a socket, see `signal.set_wakeup_fd`. A thread here reads it and answers.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

# Until then the main thread has run its handler, unless it is in C++.
_PATIENCE_S = 1.0


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
                signal.signal(number, one)
            signal.set_wakeup_fd(fd_before)
            pythons.close()
            thread.join(_PATIENCE_S)


@contextmanager
def ends(line: str) -> Iterator[None]:
    """Inside, Ctrl-C raises `KeyboardInterrupt` once.

    Where the main thread is in C++, and at a second Ctrl-C, the process ends at once with the line.
    """
    running = threading.Event()
    second = False

    def handler(number: int, frame: Any) -> None:
        if not running.is_set():
            running.set()
            raise KeyboardInterrupt

    def arrived(number: int) -> None:
        nonlocal second
        if second or not running.wait(_PATIENCE_S):
            end_now(f"error: {line}", number)
        second = True

    with noticed((signal.SIGINT,), arrived, handler):
        yield


def say(line: str) -> None:
    """Writes a line to standard error, past all locks and buffers."""
    # On a terminal a progress bar may stand in the line; it is drawn anew below.
    start = "\r\x1b[K" if os.isatty(2) else ""
    with contextlib.suppress(OSError):
        os.write(2, f"{start}{line}\n".encode())


def end_now(line: str, number: int) -> NoReturn:
    """Ends the process with a line and the exit code of a signal, 130 for Ctrl-C.

    Nothing is cleaned up: another thread may hold any lock.
    """
    for stream in (1, 2):
        if os.isatty(stream):
            with contextlib.suppress(OSError):
                os.write(stream, b"\x1b[?25h")  # a progress bar hides the cursor
    say(line)
    os._exit(code_of(number))


def code_of(number: int) -> int:
    """The exit code by which shells tell of a signal."""
    return 128 + number
