"""A thread pool that can be pickled for another process."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads(ThreadPoolExecutor):
    """A thread pool; its unpickled copy starts threads of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Threads, (self._max_workers, "batches")
