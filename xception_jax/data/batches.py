"""Batches: which examples a step takes, and how a process makes them.

The training stream is one endless sequence: example i is a function of (seed, i) alone, see
`order`. Step s takes the examples [s * B, (s + 1) * B). Each of n processes reads one n-th of that
range. So the step *is* the position: there is no iterator state to save, and resuming costs the
same at any step. The number of processes or threads does not change the stream.
"""

import itertools
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import order as orders
from xception_jax.data import workers as worker_processes
from xception_jax.data.labels import labels_of
from xception_jax.data.memory import ImageCache
from xception_jax.data.order import Order, Sampling, candidates
from xception_jax.data.readers import joined
from xception_jax.data.render import decode, presets, turbojpeg
from xception_jax.data.render.decode import Images
from xception_jax.data.skips import Skips
from xception_jax.data.source import Example, Source
from xception_jax.data.threads import Threads
from xception_jax.errors import ExampleError
from xception_jax.utils import retry

Batch = dict[str, Any]  # of numpy arrays
Render = Callable[[Example, np.ndarray], None]  # writes the image uint8 `[size, size, 3]`

# Rows that a thread fills at a time.
_SLICE = 8
# On the CPU, XLA takes an array without a copy if it is aligned to this many bytes.
_ALIGNMENT = 64


@dataclass(frozen=True)
class HostShard:
    """Which part of every batch this process reads: part `index` of `count`.

    Parts are contiguous. So the rows of the global batch are in stream order for any number of
    processes, and virtual batches of batch normalization hold the same examples.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "HostShard":
        return cls(jax.process_index(), jax.process_count())


@dataclass(frozen=True)
class Host:
    """How a process makes its batches. Does not influence what they contain.

    Attributes:
      threads: threads of each process that makes batches; 0: one per core.
      workers: processes that make the training batches, unless the images are cached in memory;
        0: this process.
      memory: bytes of finished images that may be cached, if nothing about them is random.
      decode_parts: whether to decode only the random crop of a JPEG, where that is possible.
    """

    threads: int = 0
    workers: int = 0
    memory: int = 0
    decode_parts: bool = True

    @property
    def at_once(self) -> int:
        """Number of threads; with more threads than cores an image costs 15 % more CPU time."""
        if self.threads:
            return self.threads
        # macOS cannot say which cores a process may use.
        tied = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if tied else os.cpu_count() or 1
        return max(1, cores // max(1, self.workers))


@dataclass
class Reader:
    """Makes batches of one split.

    Attributes:
      source: the split.
      images: how an example becomes an image.
      host: resources of this process.
      sampling: how often each example occurs in training.
    """

    source: Source
    images: Images
    host: Host = Host()
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        self._examples = len(self.source)
        self._crops = self.images.crops
        # Training without random crops takes the largest centred square.
        self._square = replace(self.images, eval_preset="area", eval_crop=1.0)
        self._threads = self.host.at_once
        self._label = "labels" if self.source.multilabel else "label"

    @classmethod
    def from_config(cls, config: ConfigDict, source: Source, *, workers: int = 0) -> "Reader":
        """Makes a reader from a config and a number of worker processes."""
        data = config.data
        return cls(
            source,
            Images(
                data.image_size,
                data.crop_area,
                data.crop_aspect,
                data.eval_preset,
                data.eval_crop,
                config_lib.applies_exif(config),
                data.white_level,
            ),
            Host(data.threads, workers, data.in_memory * 2**20, data.decode_parts),
            Sampling(data.balanced, data.mix_weights, data.repeats),
        )

    def training_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        order: Order | None = None,
        first_step: int = 0,
        shard: HostShard = HostShard(),
        skips: Skips | None = None,
    ) -> Iterator[Batch]:
        """This process' share of the training batches, from `first_step` on, without end.

        Args:
          batch_size: examples in a batch over all processes.
          seed: seed of the order and the crops.
          order: the result of `order` for this seed and batch size, if it exists already.
          first_step: the step of the first batch.
          shard: the part of each batch that this process reads.
          skips: records the unusable examples that were replaced; None: nothing may be skipped.

        Yields:
          `image` uint8 `[b, size, size, 3]`, `label` int32 `[b]` (in a multi-label set `labels`,
          multi-hot uint8 `[b, classes]`), `mask` float32 `[b]` (ones), with
          `b = batch_size / shard.count`.

        Raises:
          RunError: more examples are unusable than `skips` allows.
        """
        order = self.order(seed, batch_size) if order is None else order
        crop_seed = int(np.random.SeedSequence(seed).generate_state(2)[1])
        cache = self._training_cache if not self._crops and self._fits else None

        def fill(batch: Batch, rows: range, positions: range) -> None:
            draws: Iterable[list[float] | None] = itertools.repeat(None)
            if self._crops:
                draws = _draws(crop_seed, positions)
            for row, position, drawn in zip(rows, positions, draws, strict=False):
                render = partial(presets.render_center, self._square)
                if drawn:
                    complete = not self.host.decode_parts
                    render = partial(decode.render_crop, self.images, drawn, complete=complete)
                self._fill_row(batch, row, candidates(order, position, self._examples), render)

        steps = range(first_step, sys.maxsize // batch_size)
        workers = 0 if cache else self.host.workers
        yield from self._batches(steps, batch_size, shard, skips, order, fill, cache, workers)

    def order(self, seed: int, batch_size: int) -> Order:
        """The record at each position of the training stream; see `training_batches`.

        `batch_size` must be a multiple of `sampling.repeats`.
        """
        seed = int(np.random.SeedSequence(seed).generate_state(2)[0])
        sampling, records = self.sampling, self.source.records
        order: Order
        if sampling.balanced:
            order = orders.Balanced(labels_of(self.source), seed)
        elif sampling.weights is not None and isinstance(records, joined.JoinedRecords):
            order = orders.Mixed([len(part) for part in records.parts], sampling.weights, seed)
        else:
            order = orders.Shuffled(self._examples, seed)
        if sampling.repeats > 1:
            order = orders.Repeated(order, sampling.repeats, apart=batch_size // sampling.repeats)
        return order

    def evaluation_batches(
        self, *, batch_size: int, shard: HostShard = HostShard(), skips: Skips | None = None
    ) -> Iterator[Batch]:
        """This process' share of the split, in stored order, every example exactly once.

        Black images with `mask` 0 fill up the last batch. One also replaces each unusable example.
        See `training_batches`.
        """
        order = orders.InTurn(self._examples)
        cache = self._evaluation_cache if self._fits else None

        def fill(batch: Batch, rows: range, positions: range) -> None:
            for row, position in zip(rows, positions, strict=True):
                self._fill_evaluated(batch, row, order[position])

        steps = range(-(-self._examples // batch_size))
        return self._batches(steps, batch_size, shard, skips, order, fill, cache)

    @property
    def note(self) -> str:
        """How images are decoded, for the log at the start of a run; may be empty."""
        if not self._crops or not self.host.decode_parts or not self._begins_with_a_jpeg:
            return ""
        if turbojpeg.library():
            return "only the random crop of a JPEG is decoded, by libturbojpeg"
        return (
            "JPEGs are decoded completely; with libturbojpeg 3 (the extra [turbojpeg]), only their "
            "random crop is decoded, in less time"
        )

    @property
    def _begins_with_a_jpeg(self) -> bool:
        try:
            return decode.kind_of(self.source[0].encoded) == "JPEG"
        except ExampleError:
            return False

    def decoded(self, example: Example) -> np.ndarray:
        """The complete image, uint8 `[height, width, 3]`, RGB; raises `ExampleError`."""
        exif, white = self.images.exif, self.images.white
        return decode.decode(example.encoded, example.name, exif=exif, white=white)

    def _batches(
        self,
        steps: range,
        batch_size: int,
        shard: HostShard,
        skips: Skips | None,
        order: Order,
        fill: Callable[[Batch, range, range], None],
        cache: ImageCache | None,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """This process' share of these steps' batches, made ahead; passes skipped rows to `skips`.

        Args:
          steps, batch_size, shard, skips: see `training_batches`.
          order: the record at each position.
          fill: fills some rows of a batch with the examples at some positions.
          cache: cache with a row for each record; None: threads fill each batch by slices.
          workers: processes that make the batches; 0: this one.
        """
        each = batch_size // shard.count
        parts = range(
            steps.start * shard.count + shard.index, steps.stop * shard.count, shard.count
        )
        threads = Threads(self._threads, "batches")

        def make(part: int) -> Batch:
            positions = range(part * each, (part + 1) * each)
            if cache:
                return cache.batch([order[position] for position in positions])
            batch, tasks = self._room(each), []
            for first in range(0, each, _SLICE):
                rows = range(each)[first : first + _SLICE]
                tasks.append(threads.submit(fill, batch, rows, positions[first : first + _SLICE]))
            for task in tasks:
                task.result()
            return batch

        # Enough parts at once that no thread waits while others fill the last slices of a part.
        slices = -(-each // _SLICE)
        ahead = self._threads if cache else 1 + -(-self._threads // slices)
        options = grain.ReadOptions(ahead, prefetch_buffer_size=ahead)
        numbers = grain.MapDataset.range(parts.start, parts.stop, parts.step)
        made = numbers.map(make).to_iter_dataset(options)
        # `finally` is not enough: while Python exits, a generator is closed too late.
        end = weakref.finalize(made, threads.shutdown, wait=False, cancel_futures=True)
        try:
            # An element is a complete part. Workers deliver parts in turn, which keeps the order.
            with worker_processes.iterator(made, workers) if workers else closing(iter(made)) as it:
                for batch in it:
                    for text in filter(None, batch.pop("skipped")):
                        skipped = json.loads(str(text))
                        if skips is None:
                            _, name, reason = skipped[0]
                            raise ExampleError(name, reason)
                        skips.add(self.source, skipped)
                    yield batch
        finally:
            end()

    def _room(self, rows: int) -> Batch:
        """Allocates a batch with this number of rows."""
        size, classes = self.images.size, len(self.source.class_names)
        several = self.source.multilabel
        return {
            "image": _aligned((rows, size, size, 3), np.uint8),
            self._label: (
                _aligned((rows, classes), np.uint8) if several else _aligned((rows,), np.int32)
            ),
            "mask": _aligned((rows,), np.float32),
            "skipped": np.full(rows, "", object),
        }

    def _fill_row(self, batch: Batch, row: int, records: Iterable[int], render: Render) -> None:
        """Fills a row with the first usable one of some records; with a blank if there is none.

        The unusable records before it are listed in `skipped` as JSON; see `skips`.
        """
        image, skipped = batch["image"][row], []
        for record in records:
            try:
                example = self.source[record]
                # A lack of memory may be temporary; the example is not at fault.
                rendering = partial(render, example, image)
                retry.reading(rendering, example.name, seconds=self.source.patience)
            except ExampleError as error:
                skipped.append((record, error.name, error.reason))
            else:
                batch[self._label][row], batch["mask"][row] = example.label, 1
                break
        else:
            image[:], batch[self._label][row], batch["mask"][row] = 0, 0, 0
        batch["skipped"][row] = json.dumps(skipped) if skipped else ""

    def _fill_square(self, batch: Batch, row: int, record: int) -> None:
        """Fills a row with a record or the next usable one, for training without random crops."""
        records = candidates(range(self._examples), record, self._examples)
        self._fill_row(batch, row, records, partial(presets.render_center, self._square))

    def _fill_evaluated(self, batch: Batch, row: int, record: int) -> None:
        """Fills a row with a record for evaluation; with a blank if it is unusable or no record."""
        records = [record] if record < self._examples else []
        self._fill_row(batch, row, records, partial(presets.render_center, self.images))

    @property
    def _fits(self) -> bool:
        row = sum(column.nbytes for name, column in self._room(1).items() if name != "skipped")
        return bool(self._examples * row <= self.host.memory)

    @cached_property
    def _training_cache(self) -> ImageCache:
        return ImageCache(self._room(self._examples), self._fill_square)

    @cached_property
    def _evaluation_cache(self) -> ImageCache:
        # The last row is the blank.
        return ImageCache(self._room(self._examples + 1), self._fill_evaluated)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Allocates an array that a CPU device can share."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room: Any = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    array: np.ndarray = room[start : start + size].view(dtype).reshape(shape)
    return array


def _draws(seed: int, positions: range) -> Iterator[list[float]]:
    """The random numbers of some examples; a function of seed and position alone.

    Each position has 2^64 of Philox' counts to itself, with four numbers each.
    """
    bits = np.random.Philox(key=seed, counter=positions.start << 64)
    rng = np.random.Generator(bits)
    for _ in positions:
        # As Python floats: with NumPy's a box takes four times as long.
        yield rng.random(decode.DRAWS).tolist()
        bits.advance(2**64 - -(-decode.DRAWS // 4))
