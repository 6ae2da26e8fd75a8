"""The order of the examples, and their way to the devices.

The training stream is one endless sequence: example i is a function of (seed, i) alone, epoch
after epoch a new permutation. Step s takes the examples [s * B, (s + 1) * B), and process h of n
the h-th n-th part of that range. So the step *is* the position: there is no iterator state to save,
resuming costs the same at any step, and another number of processes or threads changes nothing.
"""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import grain
import jax
import numpy as np

from xception_jax.data import decode
from xception_jax.data.skips import Row, Skips, candidates, first_usable
from xception_jax.data.sources import Source
from xception_jax.errors import ExampleError

Batch = dict[str, Any]  # of numpy arrays


@dataclass(frozen=True)
class Images:
    """How the host makes an image of an example.

    Attributes:
      size: side of the square it ends as, pixels.
      crop_area, crop_aspect: ranges of the random training crop, see `decode.random_box`.
      eval_crop: share of the shorter side that evaluation keeps of the centre.
    """

    size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    eval_crop: float = 1.0


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process reads: part `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        return cls(jax.process_index(), jax.process_count())


def training_batches(
    source: Source,
    images: Images,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    share: Share = Share(),
    threads: int = 4,
    skips: Skips | None = None,
) -> Iterator[Batch]:
    """This process' share of the training batches, from `first_step` on, without end.

    Args:
      source: the split.
      images: crop and size.
      batch_size: examples in a batch over all processes.
      seed: of the order and the crops.
      first_step: the step of the first batch.
      share: this process' part.
      threads: batches that are made at the same time; has no influence on what they hold.
      skips: takes what cannot be used and was replaced; None: nothing may be skipped.

    Yields:
      `image` uint8 `[b, size, size, 3]`, `label` int32 `[b]` (of a multi-label set `labels`,
      multi-hot uint8 `[b, classes]`), `mask` float32 `[b]` (ones), with
      `b = batch_size / share.count`.

    Raises:
      RunError: more cannot be used than `skips` allows.
    """
    order_seed, crop_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))

    def prepare(record: int, rng: np.random.Generator) -> Row:
        def make(record: int) -> Row:
            example = source[record]
            image = decode.decode(example.encoded, example.name)
            height, width, _ = image.shape
            box = decode.random_box(rng, height, width, images.crop_area, images.crop_aspect)
            return _example(decode.crop_and_resize(image, box, images.size), example.label)

        return first_usable(make, candidates(record, len(source)), _blank(source, images))

    # Explicit seeds: those that Grain derives would change with a step added to the pipeline.
    stream = grain.MapDataset.range(len(source)).shuffle(seed=order_seed).repeat()
    examples = stream.random_map(prepare, seed=crop_seed)
    return _strip(_batches(examples, batch_size, share, first_step, threads), source, skips)


def evaluation_batches(
    source: Source,
    images: Images,
    *,
    batch_size: int,
    share: Share = Share(),
    threads: int = 4,
    skips: Skips | None = None,
) -> Iterator[Batch]:
    """This process' share of the split, in its own order, every example exactly once.

    The last batch is filled up with black images whose `mask` is 0; one also stands in for each
    example that cannot be used. See `training_batches`.
    """

    def make(record: int) -> Row:
        example = source[record]
        image = decode.decode(example.encoded, example.name)
        height, width, _ = image.shape
        box = decode.centre_box(height, width, images.eval_crop)
        return _example(decode.crop_and_resize(image, box, images.size), example.label)

    def prepare(record: int) -> Row:
        return first_usable(make, [record] if record < len(source) else [], _blank(source, images))

    padded = -(-len(source) // batch_size) * batch_size
    examples = grain.MapDataset.range(padded).map(prepare)
    return _strip(_batches(examples, batch_size, share, 0, threads), source, skips)


def _example(image: np.ndarray, label: int | np.ndarray, mask: float = 1.0) -> Row:
    name, value = ("labels", label) if isinstance(label, np.ndarray) else ("label", np.int32(label))
    return {"image": image, name: value, "mask": np.float32(mask)}


def _blank(source: Source, images: Images) -> Row:
    black = np.zeros((images.size, images.size, 3), np.uint8)
    return _example(black, source.no_label, mask=0.0)


def _strip(batches: Iterable[Batch], source: Source, skips: Skips | None) -> Iterator[Batch]:
    """Takes what the rows say was skipped out of the batches, to where it is counted."""
    for batch in batches:
        for text in filter(None, batch.pop("skipped")):
            skipped = json.loads(str(text))
            if skips is None:
                _, name, reason = skipped[0]
                raise ExampleError(name, reason)
            skips.add(source, skipped)
        yield batch


def _batches(
    examples: grain.MapDataset, batch_size: int, share: Share, first_step: int, threads: int
) -> Iterator[Batch]:
    """Cuts a sequence into batches and takes this process' contiguous part of each.

    Contiguous, so that the rows of the global batch are in stream order whatever the number of
    processes, and virtual batches of batch normalization hold the same examples.
    """
    parts = examples.batch(batch_size // share.count, drop_remainder=True)
    mine = parts[first_step * share.count + share.index :: share.count]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(mine.to_iter_dataset(options))


def to_devices(
    batches: Iterable[Batch], sharding: jax.sharding.Sharding, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Makes global arrays of the processes' shares, `ahead` of what the step consumes."""
    placed = (
        {
            name: jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }
        for batch in batches
    )
    queue = collections.deque(itertools.islice(placed, ahead))
    while queue:
        yield queue.popleft()
        queue.extend(itertools.islice(placed, 1))
