"""The way of the batches from the host to the devices."""

import collections
import itertools
from collections.abc import Generator, Iterable

import jax

from xception_jax.data.batches import Batch

Placed = Generator[dict[str, jax.Array], None, None]  # batches on the devices


def to_devices(batches: Iterable[Batch], sharding: jax.sharding.Sharding, ahead: int = 2) -> Placed:
    """Makes global arrays of the processes' shares, `ahead` of what the step consumes.

    Closing it closes the batches, where they are a generator.
    """

    def placed() -> Placed:
        for batch in batches:
            yield {
                name: jax.make_array_from_process_local_data(sharding, array)
                for name, array in batch.items()
            }

    arrays = placed()
    try:
        queue = collections.deque(itertools.islice(arrays, ahead))
        while queue:
            yield queue.popleft()
            queue.extend(itertools.islice(arrays, 1))
    finally:
        arrays.close()
        if isinstance(batches, Generator):
            batches.close()
