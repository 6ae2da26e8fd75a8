"""SIGTERM and Ctrl-C as a request to save and stop, which all processes of a run follow at once."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import multihost_utils

from xception_jax import cluster

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM or Ctrl-C only makes the yielded function return True.

    Of several processes any may get it; the function, which all have to call equally often, returns
    True in all of them at the same call, a few calls later. In a process that is alone a second
    signal acts as it did before.
    """
    with _stop_agreed() if cluster.connected() else _stop_noted() as poll:
        yield poll


@contextmanager
def _stop_agreed() -> Iterator[Callable[[], bool]]:
    """JAX takes SIGTERM and lets the processes agree on a call; Ctrl-C is made one."""
    before = signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    calls = itertools.count()
    try:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _stop_noted() -> Iterator[Callable[[], bool]]:
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        restore()
