"""Threads that can be left at any moment, and sent to another process."""

import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads:
    """Runs tasks side by side; as a context, drops those not yet begun at its end.

    Where it is pickled, what arrives has threads of its own.

    Args:
      count: of threads, which start with the first task.
    """

    def __init__(self, count: int):
        self._count = count
        self._pool = ThreadPoolExecutor(count, "batches")
        # Not by __exit__ alone: a generator that is closed while Python ends comes too late.
        self._end = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return Threads, (self._count,)

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Waits until all are done; raises what the first of them that fails does."""
        for future in [self._pool.submit(task) for task in tasks]:
            future.result()

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
