"""SIGTERM and Ctrl-C as a request to save and stop, which all processes of a run follow at once."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jax.experimental import multihost_utils

from xception_jax import cluster, interrupts
from xception_jax.data import workers

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

    A second one ends the process at once, with exit code 130 for Ctrl-C and 143 for SIGTERM.

    Of several processes any may get it; the function, which all have to call equally often, returns
    True in all of them at the same call, a few calls later. Outside the main thread, where Python
    takes no handlers, that is said, and only SIGTERM in a run of several processes is noticed.
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
    told = threading.Event()

    def arrived(number: int) -> None:
        _answer(number, first=not told.is_set())
        told.set()
        os.kill(os.getpid(), signal.SIGTERM)

    def poll() -> bool:
        agreed = multihost_utils.reached_preemption_sync_point(next(calls))
        if agreed and not told.is_set():
            told.set()
            interrupts.say(_AGREED)
        return agreed

    noticed = interrupts.noticed((signal.SIGINT,), arrived)
    with noticed if in_main else contextlib.nullcontext():
        yield poll


@contextmanager
def _stop_noted() -> Iterator[Callable[[], bool]]:
    told = threading.Event()

    def arrived(number: int) -> None:
        _answer(number, first=not told.is_set())
        told.set()

    with interrupts.noticed(tuple(_FIRST), arrived):
        yield told.is_set


def _answer(number: int, *, first: bool) -> None:
    """Says what a signal leads to; the second one ends the process."""
    if first:
        interrupts.say(_FIRST[signal.Signals(number)])
        return
    workers.kill()
    interrupts.end_now(_SECOND[signal.Signals(number)], number)
