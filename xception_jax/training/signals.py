"""SIGTERM and Ctrl-C as a request to save and stop, for all processes of a run at the same step."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import multihost_utils

from xception_jax.data import workers
from xception_jax.runtime import cluster, ending, interrupts

_FIRST = {
    signal.SIGINT: "stopping after this step; Ctrl-C again to stop without saving",
    signal.SIGTERM: "SIGTERM: stopping and saving after this step",
}
_SECOND = {
    signal.SIGINT: "stopped immediately, without saving; the same command continues from the last "
    "checkpoint",
    signal.SIGTERM: "SIGTERM again: stopped immediately, without saving",
}
_NOT_CAUGHT = (
    "NOTE: the run is not in the main thread, so it cannot catch Ctrl-C and SIGTERM; if they end "
    "the process, nothing after the last checkpoint is saved"
)
_AGREED = "one of the processes was asked to stop: stopping and saving after this step"


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """A context in which SIGTERM or Ctrl-C makes the yielded function return True.

    A message confirms the signal immediately. A second signal ends a command immediately, with
    exit code 130 for Ctrl-C and 143 for SIGTERM. In another program, such as a notebook, it raises
    `KeyboardInterrupt`.

    With several processes, any of them can get the signal. The function must be called equally
    often in all processes. It returns True in all of them at the same call, a few calls later.
    There JAX handles SIGTERM, without an immediate message and without counting a second one. A
    second Ctrl-C ends all processes.

    Outside the main thread Python does not allow signal handlers; a note says so. Then only SIGTERM
    in a run of several processes works.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main:
        interrupts.say(_NOT_CAUGHT)
    if cluster.connected():
        with _stop_agreed(in_main) as poll:
            yield poll
    elif not in_main:
        yield lambda: False
    else:
        with _stop_noted() as poll:
            yield poll


@contextmanager
def _stop_agreed(in_main: bool) -> Iterator[Callable[[], bool]]:
    """JAX handles SIGTERM and makes the processes agree on a call; Ctrl-C becomes a SIGTERM."""
    calls = itertools.count()
    asked = _Asked(lambda: os.kill(os.getpid(), signal.SIGTERM))
    said = False

    def poll() -> bool:
        nonlocal said
        agreed = multihost_utils.reached_preemption_sync_point(next(calls))
        if agreed and not said and not asked.first.is_set():
            said = True
            interrupts.say(_AGREED)
        return agreed

    noticed = interrupts.noticed((signal.SIGINT,), asked.arrived, asked.handler)
    with noticed if in_main else contextlib.nullcontext():
        yield poll


@contextmanager
def _stop_noted() -> Iterator[Callable[[], bool]]:
    asked = _Asked(lambda: None)
    with interrupts.noticed(tuple(_FIRST), asked.arrived, asked.handler):
        yield asked.first.is_set


class _Asked:
    """Signals to this process: the first asks it to stop, the second ends it.

    Attributes:
      first: set by the first signal.
    """

    def __init__(self, then: Callable[[], None]):
        self.first = threading.Event()
        self._then = then
        self._noticed = self._handled = 0

    def arrived(self, number: int) -> None:
        """Runs immediately, in a thread: prints what the signal causes."""
        self._noticed += 1
        if not self.first.is_set():
            self.first.set()
            interrupts.say(_FIRST[signal.Signals(number)])
            self._then()
        elif interrupts.owned():
            line = _SECOND[signal.Signals(number)]
            workers.kill()
            if ending.watched():
                ending.for_all(line, 128 + number)
            interrupts.end_now(line, number)

    def handler(self, number: int, frame: Any) -> None:
        """Runs in the main thread, possibly later; it can miss one of two signals."""
        self._handled += 1
        if max(self._noticed, self._handled) > 1 and not interrupts.owned():
            raise KeyboardInterrupt
