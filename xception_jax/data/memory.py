"""A split that fits into memory: each record made once, batches taken as a whole.

Where nothing about a record is drawn at random, what is made of it is the same each time. Small
images then cost less to copy than to index.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from xception_jax.data.skips import Row


def stacked(rows: Iterable[Row], count: int) -> Row:
    """Some rows as one: each is copied when it is made, while it lies in the processor's cache.

    Args:
      rows: all with the same keys, and below each the same shape and dtype.
      count: how many there are.
    """
    columns: Row = {}
    for number, row in enumerate(rows):
        columns = columns or _columns(row, count)
        for name, value in row.items():
            columns[name][number] = value
    return columns


class Kept:
    """Rows by record, made when they are first asked for; the first at once.

    Safe to use from many threads: two that ask for the same new record both make it, alike.

    Args:
      make: gives the row of a record: arrays, numbers or text. Every row has the same keys, and
        below each the same shape and dtype.
      records: their number.
    """

    def __init__(self, make: Callable[[int], Row], records: int):
        self._make = make
        self._made = np.zeros(records, bool)
        first = make(0)
        self._columns = _columns(first, records)
        self._keep(0, first)

    def batch(self, records: Sequence[int]) -> Row:
        """The rows of some records, stacked."""
        chosen = np.asarray(records)
        for record in chosen[~self._made[chosen]].tolist():
            self._keep(record, self._make(record))
        return {name: column[chosen] for name, column in self._columns.items()}

    def _keep(self, record: int, row: Row) -> None:
        for name, value in row.items():
            self._columns[name][record] = value
        self._made[record] = True  # last: what is marked is whole


def _columns(row: Row, count: int) -> dict[str, np.ndarray]:
    """Room for some rows like this one."""
    return {name: np.empty((count, *np.shape(value)), _dtype(value)) for name, value in row.items()}


def _dtype(value: Any) -> np.dtype:
    """Of a column; text of any length is kept as objects."""
    return np.dtype(object) if isinstance(value, str) else np.asarray(value).dtype
