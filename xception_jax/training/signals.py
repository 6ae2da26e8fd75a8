"""SIGTERM and Ctrl-C as a request to save and stop, which all processes of a run follow at once."""

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
    signal.SIGTERM: "SIGTERM: stopping after this step, which is saved",
}
_SECOND = {
    signal.SIGINT: "stopped at once, without saving; the same command continues from the last "
    "checkpoint",
    signal.SIGTERM: "SIGTERM again: stopped at once, without saving",
}
_NOT_CAUGHT = (
    "NOTE: the run is not in the main thread, so it does not catch Ctrl-C and SIGTERM; its last "
    "checkpoint is what is saved if they end the process"
)
_AGREED = "one of the processes was told to stop: stopping after this step, which is saved"


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM or Ctrl-C makes the yielded function return True, and is answered at once.

    A second one ends a command at once, with exit code 130 for Ctrl-C and 143 for SIGTERM. In
    another program, such as a notebook, it raises `KeyboardInterrupt`.

    Of several processes any may get it; the function, which all have to call equally often, returns
    True in all of them at the same call, a few calls later. There SIGTERM is JAX's, which answers
    none at once and counts no second one; a second Ctrl-C ends all processes. Outside the main
    thread, where Python takes no handlers, that is said, and only SIGTERM in a run of several
    processes is noticed.
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
    """JAX takes SIGTERM and lets the processes agree on a call; Ctrl-C is made one."""
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
    """Signals to this process: the first one asks it to stop, the second one ends it.

    Attributes:
      first: set by the first one.
    """

    def __init__(self, then: Callable[[], None]):
        self.first = threading.Event()
        self._then = then
        self._noticed = self._handled = 0

    def arrived(self, number: int) -> None:
        """At once, in a thread: says what the signal leads to."""
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
        """In the main thread, when it gets there; of two signals it may see one."""
        self._handled += 1
        if max(self._noticed, self._handled) > 1 and not interrupts.owned():
            raise KeyboardInterrupt
