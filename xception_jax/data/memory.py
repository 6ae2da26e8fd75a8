"""Memory for images: that of a batch, and that of a split which is kept as a whole.

Where nothing about a record is drawn at random, what is made of it is the same each time. Small
images then cost less to copy than to index.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Columns = dict[str, Any]  # arrays with a row for each record

# Bytes to which XLA wants arrays aligned that it takes without a copy, on the CPU.
_ALIGNMENT = 64


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Room for an array that a CPU device can share."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


class ImageCache:
    """Rows by record, made when they are first asked for.

    Safe to use from many threads: two that ask for the same new record both make it, alike.

    Args:
      columns: room for all.
      fill: makes the row of a record in it.
    """

    def __init__(self, columns: Columns, fill: Callable[[Columns, int, int], None]):
        self._columns = columns
        self._fill = fill
        self._made = np.zeros(len(next(iter(columns.values()))), bool)

    def batch(self, records: Sequence[int]) -> Columns:
        """The rows of some records, stacked."""
        chosen = np.asarray(records)
        for record in chosen[~self._made[chosen]].tolist():
            self._fill(self._columns, record, record)
            self._made[record] = True  # last: what is marked is whole
        return {name: column[chosen] for name, column in self._columns.items()}
