"""Threads that can be sent to another process."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Threads(ThreadPoolExecutor):
    """Threads; where they are pickled, what arrives has threads of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Threads, (self._max_workers, "batches")
