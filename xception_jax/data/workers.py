"""Worker processes that make batches. They ignore signals and clean up after themselves.

Ctrl-C on a terminal reaches all processes there, and SLURM sends SIGTERM to all processes of a job.
Only the parent reacts. Workers pass batches in shared memory, which exists in the system until it
is removed. At the latest Python's resource tracker removes it, a process that ends after all
others.
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
    """Iterates over a Grain dataset whose elements `count` processes make; ends them on exit."""
    options = grain.MultiprocessingOptions(count, per_worker_buffer_size=2)
    _start_quiet_tracker()
    made = iter(dataset.mp_prefetch(options, worker_init_fn=_begin))
    try:
        yield _from_workers(made)
    finally:
        made.close()


def kill() -> None:
    """Ends this process' workers at once, before it ends itself."""
    for worker in _ours.intersection(multiprocessing.active_children()):
        with contextlib.suppress(OSError):
            worker.kill()


def _from_workers(made: Iterator[Any]) -> Iterator[Any]:
    """Yields the elements; the worker processes start with the first one."""
    # Workers inherit blocked signals from the threads that start them, and those from this one.
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
    """Starts the resource tracker, unless it runs, without warnings about what it removes.

    The batches left at the end of a run were made ahead and are not a leak. The tracker must start
    before signals are blocked: it unblocks those of the thread that starts it (Python 3.11). It
    blocks SIGHUP, so that it outlives the other processes when their terminal closes.
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
    """Runs in worker `index` of `count` before its first batch."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker with its parent, since a killed parent cannot stop it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
