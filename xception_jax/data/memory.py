"""A cache in memory for the images of a split.

If nothing about a record is random, its image is the same each time. Copying a small image then
costs less than making it again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Columns = dict[str, Any]  # arrays with a row for each record


class ImageCache:
    """One row for each record, made on first use.

    Safe to use from many threads: two that need the same new record both make the same row.

    Args:
      columns: arrays with a row for each record.
      fill: fills a row with a record.
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
            self._made[record] = True  # last: a marked row is complete
        return {name: column[chosen] for name, column in self._columns.items()}
