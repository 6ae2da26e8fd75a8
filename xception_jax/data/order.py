"""The record at each position of the training stream.

An order is an endless sequence: `order[p]` is the number of the record at position p, a function of
the seed and of p alone. So training resumes at any position without saved state. The number of
hosts, workers or threads makes no difference.
"""

import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from grain.experimental import index_shuffle

from xception_jax.data.skips import IN_A_ROW

# Up to this number of records an epoch's permutation is computed in one go. That takes at most
# 0.1 s and 4 MB, then 0.3 microseconds a record. Grain's shuffle of one index takes 6 to 33.
_AT_ONCE = 2**20


class Order(ABC):
    """An endless sequence of record numbers."""

    def __len__(self) -> int:
        return sys.maxsize

    @abstractmethod
    def __getitem__(self, position: int) -> int:
        """The record at a position."""


@dataclass(frozen=True)
class Sampling:
    """How often each record occurs.

    Attributes:
      balanced: whether every class occurs equally often, see `Balanced`.
      weights: weights of the mixed data sets, see `Mixed`; None: they form one set.
      repeats: crops of a record in one batch, see `Repeated`.
    """

    balanced: bool = False
    weights: tuple[float, ...] | None = None
    repeats: int = 1


class Shuffled(Order):
    """Every record once an epoch, each epoch in a different order.

    Args:
      records: number of records.
      seed: below 2^32.
    """

    def __init__(self, records: int, seed: int):
        self._records, self._seed = records, seed
        # By epoch. Two are stored: at the end of an epoch some threads are in the next one.
        self._made: dict[int, np.ndarray] = {}
        self._making = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shuffled, (self._records, self._seed)

    def __getitem__(self, position: int) -> int:
        epoch, index = divmod(position, self._records)
        if self._records > _AT_ONCE:
            return int(index_shuffle(index, self._records - 1, (self._seed + epoch) % 2**32, 4))
        made = self._made.get(epoch)
        if made is None:
            with self._making:  # the first thread computes it for all
                if epoch not in self._made:
                    last = list(self._made.items())[-1:]
                    self._made = dict([*last, (epoch, self._permutation(epoch))])
                made = self._made[epoch]
        return int(made[index])

    def _permutation(self, epoch: int) -> np.ndarray:
        # Not `Generator.permutation`: NumPy guarantees only that the raw numbers stay the same.
        bits = np.random.Philox(np.random.SeedSequence((self._seed, epoch)))
        return np.argsort(bits.random_raw(self._records), kind="stable").astype(np.uint32)


@dataclass(frozen=True)
class InTurn(Order):
    """Every record once, in stored order; after the end always `records`, which is no record."""

    records: int

    def __getitem__(self, position: int) -> int:
        return min(position, self.records)


class Balanced(Order):
    """Every class equally often; within a class every record once before any is repeated.

    The classes take turns, in a different order each round.

    Args:
      labels: int `[records]`; below 0: unknown. An unknown record counts with the class of the next
        record with a known label, which replaces it if it is unusable. Classes without records are
        left out.
      seed: below 2^32.
    """

    def __init__(self, labels: np.ndarray, seed: int):
        labels = _filled(labels)
        classes = np.unique(labels)
        self._members = [np.flatnonzero(labels == label) for label in classes]
        seeds = _seeds(seed, 1 + len(classes))
        self._turns = Shuffled(len(classes), seeds[0])
        self._within = [
            Shuffled(len(members), own)
            for members, own in zip(self._members, seeds[1:], strict=True)
        ]

    def __getitem__(self, position: int) -> int:
        turn = self._turns[position]
        return int(self._members[turn][self._within[turn][position // len(self._members)]])


class Mixed(Order):
    """Several data sets in turn, by weight, spread as evenly as integers allow.

    Args:
      sizes: number of records of each; the numbers of a set follow those of the set before it.
      weights: positive; only their ratios matter, to about a hundredth.
      seed: below 2^32.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int):
        parts = []
        offsets = np.cumsum([0, *sizes[:-1]]).tolist()
        for size, offset, own in zip(sizes, offsets, _seeds(seed, len(sizes)), strict=True):
            records = grain.MapDataset.source(Shuffled(size, own))
            parts.append(records.map(lambda record, offset=offset: record + offset))
        self._records = grain.MapDataset.mix(parts, list(weights))

    def __getitem__(self, position: int) -> int:
        return int(self._records[position])


class Repeated(Order):
    """Every record several times in a batch, each time with a different crop and augmentation.

    Repeated augmentation, arXiv:1901.09335.

    Args:
      order: order of the records.
      times: occurrences of each record in a batch.
      apart: positions between two occurrences. Mixup mixes rows 2k and 2k + 1; in a batch of
        `times * apart` rows these are different records.
    """

    def __init__(self, order: Order, times: int, apart: int):
        self._order = order
        self._times = times
        self._apart = apart

    def __getitem__(self, position: int) -> int:
        batch, row = divmod(position, self._times * self._apart)
        return self._order[batch * self._apart + row % self._apart]


def candidates(order: Sequence[int] | Order, position: int, count: int) -> Iterator[int]:
    """The record at a position and its possible replacements, in a split of `count` records."""
    record = order[position]
    for n in range(min(IN_A_ROW, count)):
        yield (record + n) % count


def _filled(labels: np.ndarray) -> np.ndarray:
    """Replaces each label below 0 with the next known one; all 0 if none is known."""
    known = np.flatnonzero(labels >= 0)
    if not known.size:
        return np.zeros_like(labels)
    following = np.searchsorted(known, np.arange(len(labels))) % len(known)
    return labels[known[following]]


def _seeds(seed: int, count: int) -> list[int]:
    """Independent seeds."""
    return [int(own) for own in np.random.SeedSequence(seed).generate_state(count)]
