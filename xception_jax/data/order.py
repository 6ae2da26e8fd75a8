"""Which record stands at each position of the training stream.

An order is a sequence without end: `order[p]` is the number of the record at position p, a function
of the seed and of p alone, computed in constant time. So nothing has to be remembered to go on
from any position, and how many hosts, workers or threads ask for it makes no difference.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np
from grain.experimental import index_shuffle


class Order(Protocol):
    """A sequence without end of record numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> int: ...


class _Endless:
    def __len__(self) -> int:
        return sys.maxsize


class Shuffled(_Endless):
    """Every record once an epoch, each epoch in an order of its own.

    The order is that of `grain.MapDataset.shuffle(seed).repeat()`.

    Args:
      records: their number.
      seed: below 2^32.
    """

    def __init__(self, records: int, seed: int):
        self._records = records
        self._seed = seed

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._records)
        return index_shuffle(index, self._records - 1, (self._seed + epoch) % 2**32, 4)


class _Permuted(_Endless):
    """Like `Shuffled`, but each epoch's permutation is made as a whole.

    Grain's shuffle takes milliseconds an index where there are but a few records.
    """

    def __init__(self, records: int, seed: int):
        self._records = records
        self._seed = seed
        self._latest = (0, self._permutation(0))

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._records)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._records)
        latest = self._latest  # once: other threads may be in another epoch
        if latest[0] != epoch:
            self._latest = latest = (epoch, self._permutation(epoch))
        return int(latest[1][index])


class Balanced(_Endless):
    """Every class equally often; within a class every record once before any comes again.

    The classes take turns, in an order of their own each time round.

    Args:
      labels: int `[records]`; classes that do not occur get no turn.
      seed: below 2^32.
    """

    def __init__(self, labels: np.ndarray, seed: int):
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        seeds = np.random.SeedSequence(seed).generate_state(1 + len(self._members))
        self._turns = _Permuted(len(self._members), int(seeds[0]))
        self._within = [
            _Permuted(len(members), int(own))
            for members, own in zip(self._members, seeds[1:], strict=True)
        ]

    def __getitem__(self, position: int) -> int:
        turn = self._turns[position]
        return int(self._members[turn][self._within[turn][position // len(self._members)]])


class Repeated(_Endless):
    """Every record several times in a row, for a crop and an augmentation of its own each time.

    Repeated augmentation, arXiv:1901.09335. An epoch is then so many times as long.
    """

    def __init__(self, order: Order, times: int):
        self._order = order
        self._times = times

    def __getitem__(self, position: int) -> int:
        return self._order[position // self._times]


def mixed(orders: Sequence[Order], sizes: Sequence[int], weights: Sequence[float]) -> Order:
    """Several data sets in turn, by weight, spread as evenly as whole numbers allow.

    Args:
      orders: of each.
      sizes: records of each; the records of the second are numbered on from those of the first.
      weights: positive; only their ratios count, to about a hundredth.
    """
    offsets = np.cumsum([0, *sizes[:-1]])
    parts = [
        grain.MapDataset.source(order).map(lambda record, offset=int(offset): record + offset)
        for order, offset in zip(orders, offsets, strict=True)
    ]
    return grain.MapDataset.mix(parts, list(weights))
