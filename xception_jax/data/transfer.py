"""Transfers batches from the host to the devices."""

import collections
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial

import jax

from xception_jax.data.batches import Batch, HostShard, Reader
from xception_jax.data.order import Order
from xception_jax.data.skips import Skips

Placed = Generator[dict[str, jax.Array], None, None]  # batches on the devices


@dataclass(frozen=True)
class TrainingBatches:
    """The training batches of a run, on its devices.

    Attributes:
      reader: the reader of the split.
      order: the order of its records, see `Reader.order`.
      batch_size, seed: see `Reader.training_batches`.
      shard: this process' part of a batch.
      sharding: the sharding of a batch.
    """

    reader: Reader
    order: Order
    batch_size: int
    seed: int
    shard: HostShard
    sharding: jax.sharding.Sharding

    def __call__(self, first_step: int, skips: Skips | None = None) -> Placed:
        """The batches from `first_step` on; see `Reader.training_batches`."""
        batches = self.reader.training_batches(
            batch_size=self.batch_size,
            seed=self.seed,
            order=self.order,
            first_step=first_step,
            shard=self.shard,
            skips=skips,
        )
        return to_devices(batches, self.sharding)


def to_devices(batches: Iterable[Batch], sharding: jax.sharding.Sharding, ahead: int = 2) -> Placed:
    """Makes global arrays from the processes' shares, `ahead` batches before the step needs them.

    Closing the result closes `batches`, if that is a generator.
    """
    place = partial(jax.make_array_from_process_local_data, sharding)
    queue: collections.deque[dict[str, jax.Array]] = collections.deque()
    try:
        for batch in batches:
            queue.append(jax.tree.map(place, batch))
            if len(queue) == ahead:
                yield queue.popleft()
        yield from queue
    finally:
        if isinstance(batches, Generator):
            batches.close()
