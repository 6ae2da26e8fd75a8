"""Processes that make batches: they leave signals to their parent, and nothing behind.

Ctrl-C on a terminal reaches all processes there, and SLURM sends SIGTERM to all of a job. The
parent decides what follows from it. Batches come from a worker in shared memory, which has a name
in the system until somebody removes it: Python's resource tracker at the latest, a process that
ends after all others.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from typing import Any

import grain

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ours = set[Any]()


@contextmanager
def iterator(dataset: Any, count: int) -> Iterator[Iterator[Any]]:
    """Of a Grain dataset whose elements so many processes make. Ended on leaving."""
    options = grain.MultiprocessingOptions(count, per_worker_buffer_size=2)
    _start_quiet_tracker()
    made = iter(dataset.mp_prefetch(options, worker_init_fn=_begin))
    try:
        yield _from_workers(made)
    finally:
        made.close()


def kill() -> None:
    """Ends this process' workers at once, where it is about to end itself."""
    for worker in _ours.intersection(multiprocessing.active_children()):
        with contextlib.suppress(OSError):
            worker.kill()


def _from_workers(made: Iterator[Any]) -> Iterator[Any]:
    """The elements; the processes that make them start with the first one."""
    # They inherit blocked signals from the threads which start them, and those from this one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    others = set(multiprocessing.active_children())
    try:
        first = next(made)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        _ours.update(set(multiprocessing.active_children()) - others)
    yield first
    del first
    yield from made


def _start_quiet_tracker() -> None:
    """Starts the resource tracker, unless it runs, so that it does not warn of what it removes.

    What is left when a run ends is no leak: batches that were made ahead. It has to run before
    signals are blocked, since it unblocks those of the thread that starts it (Python 3.11). It has
    SIGHUP blocked, by which all others on a terminal end where the run was what the terminal ran.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = f"{before},{quiet}" if before else quiet
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _begin(index: int, count: int) -> None:
    """Run in worker `index` of so many before its first batch."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed can tell its workers nothing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
