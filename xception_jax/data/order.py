"""Which record stands at each position of the training stream.

An order is a sequence without end: `order[p]` is the number of the record at position p, a function
of the seed and of p alone, computed in constant time. So nothing has to be remembered to go on
from any position, and how many hosts, workers or threads ask for it makes no difference.
"""

import sys

from grain.experimental import index_shuffle


class Shuffled:
    """Every record once an epoch, each epoch in an order of its own.

    The order is that of `grain.MapDataset.shuffle(seed).repeat()`, without what Grain spends around
    each index, which is three times the index itself.

    Args:
      records: their number.
      seed: below 2^32.
    """

    def __init__(self, records: int, seed: int):
        self._records = records
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._records)
        return index_shuffle(index, self._records - 1, (self._seed + epoch) % 2**32, 4)
