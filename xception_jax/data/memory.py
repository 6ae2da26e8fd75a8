"""Images that are kept in memory, those of a whole split.

Where nothing about a record is drawn at random, what is made of it is the same each time. Small
images then cost less to copy than to index.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Columns = dict[str, Any]  # arrays with a row for each record


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
