"""Batches: which examples a step takes, and their way to the devices.

The training stream is one endless sequence: example i is a function of (seed, i) alone, see
`order`. Step s takes the examples [s * B, (s + 1) * B), and process h of n the h-th n-th part of
that range. So the step *is* the position: there is no iterator state to save,
resuming costs the same at any step, and another number of processes or threads changes nothing.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data import workers as worker_processes
from xception_jax.data.memory import ImageCache, aligned
from xception_jax.data.order import Order, Sampling
from xception_jax.data.render import decode, presets, turbojpeg
from xception_jax.data.skips import Skips, candidates, first_usable
from xception_jax.data.source import Example, Source
from xception_jax.data.threads import Threads
from xception_jax.errors import ExampleError
from xception_jax.utils import retry

Batch = dict[str, Any]  # of numpy arrays
Paint = Callable[[Example, np.ndarray], None]  # writes the image uint8 `[size, size, 3]`
Fill = Callable[[Batch, int, range], None]  # writes rows from one on, of these positions

# Rows that a thread fills at a time.
_SLICE = 8


@dataclass(frozen=True)
class Images:
    """How the host makes an image of an example.

    Attributes:
      size: side of the square it ends as, pixels.
      crop_area, crop_aspect: ranges of the random training crop, see `decode.random_box`; (1, 1)
        for both: the largest centred square.
      eval_preset, eval_crop: see `render.presets`; the latter is the share of the shorter side that
        evaluation keeps of the centre.
      exif, white: see `decode.decode`.
    """

    size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    eval_preset: str = "area"
    eval_crop: float = 1.0
    exif: bool = True
    white: int = 0

    @property
    def crops(self) -> bool:
        """Whether training images are drawn at random."""
        return tuple(self.crop_area) != (1, 1) or tuple(self.crop_aspect) != (1, 1)


@dataclass(frozen=True)
class HostShard:
    """Which part of every batch this process reads: part `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "HostShard":
        return cls(jax.process_index(), jax.process_count())

    def parts(self, batches: int, first: int = 0) -> range:
        """The numbers of this part of the batches from `first` on, among the parts of all.

        Parts are contiguous, so that the rows of the global batch are in stream order whatever the
        number of processes, and virtual batches of batch normalization hold the same examples.
        """
        return range(first * self.count + self.index, batches * self.count, self.count)


@dataclass(frozen=True)
class Host:
    """How a process makes its batches. Has no influence on what they hold.

    Attributes:
      threads: of each process that makes them; 0: so many that there is one for each core.
      workers: processes that make those of training, unless they are kept in memory; 0: this one.
      memory: bytes of finished images that may be kept, where nothing about them is random.
      decode_parts: of JPEGs only the random crop is decoded, where that can be done.
    """

    threads: int = 0
    workers: int = 0
    memory: int = 0
    decode_parts: bool = True

    @property
    def at_once(self) -> int:
        """Threads; with more than there are cores an image costs 15 % more CPU time."""
        if self.threads:
            return self.threads
        # macOS cannot say which cores a process may use.
        tied = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if tied else os.cpu_count() or 1
        return max(1, cores // max(1, self.workers))


@dataclass(frozen=True)
class Reader:
    """Makes batches of one split.

    Attributes:
      source: the split.
      images: how an image is made of an example.
      host: how this process goes about it.
      sampling: how often each example is trained with.
    """

    source: Source
    images: Images
    host: Host = Host()
    sampling: Sampling = field(default_factory=Sampling)

    @classmethod
    def from_config(cls, config: ConfigDict, source: Source, *, workers: int = 0) -> "Reader":
        """As the config says, but for the number of workers."""
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
        first_step: int = 0,
        share: HostShard = HostShard(),
        skips: Skips | None = None,
    ) -> Iterator[Batch]:
        """This process' share of the training batches, from `first_step` on, without end.

        Args:
          batch_size: examples in a batch over all processes.
          seed: of the order and the crops.
          first_step: the step of the first batch.
          share: this process' part.
          skips: takes what cannot be used and was replaced; None: nothing may be skipped.

        Yields:
          `image` uint8 `[b, size, size, 3]`, `label` int32 `[b]` (of a multi-label set `labels`,
          multi-hot uint8 `[b, classes]`), `mask` float32 `[b]` (ones), with
          `b = batch_size / share.count`.

        Raises:
          RunError: more cannot be used than `skips` allows.
        """
        order, crop_seed = self.order(seed, batch_size), _seeds(seed)[1]
        each = batch_size // share.count
        parts = share.parts(sys.maxsize // batch_size, first_step)
        if not self.images.crops and self._fits:
            kept = self._kept_for_training

            def make(part: int) -> Batch:
                return kept.batch([order[part * each + row] for row in range(each)])

            return self._batches(make, parts, skips, ahead=self.host.at_once)

        def fill(batch: Batch, first: int, positions: range) -> None:
            paints: Iterable[Paint] = itertools.repeat(self._squared)
            if self.images.crops:
                paints = (partial(self._cropped, drawn) for drawn in _draws(crop_seed, positions))
            for row, position, paint in zip(itertools.count(first), positions, paints):
                records = candidates(order[position], len(self.source))
                self._fill_row(batch, row, records, paint)

        return self._filled(fill, each, parts, skips, self.host.workers)

    def order(self, seed: int, batch_size: int) -> Order:
        """Which record stands at each position of the training stream; see `training_batches`."""
        return self.sampling.order(self.source, _seeds(seed)[0], batch_size)

    def evaluation_batches(
        self, *, batch_size: int, share: HostShard = HostShard(), skips: Skips | None = None
    ) -> Iterator[Batch]:
        """This process' share of the split, in its own order, every example exactly once.

        The last batch is filled up with black images whose `mask` is 0; one also stands in for each
        example that cannot be used. See `training_batches`.
        """
        count, each = len(self.source), batch_size // share.count
        parts = share.parts(-(-count // batch_size))
        if self._fits:
            kept = self._kept_for_evaluation  # its record `count` is a blank

            def make(part: int) -> Batch:
                return kept.batch([min(part * each + row, count) for row in range(each)])

            return self._batches(make, parts, skips, ahead=self.host.at_once)

        def fill(batch: Batch, first: int, positions: range) -> None:
            for row, record in enumerate(positions, first):
                self._fill_centred(batch, row, record)

        return self._filled(fill, each, parts, skips)

    @property
    def note(self) -> str:
        """What is to be said at the start of a run of how images are decoded; may be empty."""
        if not self.images.crops or not self.host.decode_parts or not self._begins_with_a_jpeg:
            return ""
        if turbojpeg.library():
            return "of JPEGs only the random crop is decoded, by libturbojpeg"
        return (
            "JPEGs are decoded whole; with libturbojpeg 3, which the extra [turbojpeg] brings, "
            "only their random crop would be, in less time"
        )

    @property
    def _begins_with_a_jpeg(self) -> bool:
        try:
            return decode.kind_of(self.source[0].encoded) == "JPEG"
        except ExampleError:
            return False

    def _cropped(self, drawn: Sequence[float], example: Example, into: np.ndarray) -> None:
        """Paints a random crop for training."""
        area, aspect = self.images.crop_area, self.images.crop_aspect

        def choose(height: int, width: int) -> decode.Box:
            return decode.random_box(drawn, height, width, area, aspect)

        whole = not self.host.decode_parts
        images = self.images
        part = decode.decode_part(
            example.encoded, choose, example.name,
            whole=whole, exif=images.exif, white=images.white,
        )  # fmt: skip
        decode.resize(part, into)

    def decoded(self, example: Example) -> np.ndarray:
        """The whole image, uint8 `[height, width, 3]`, RGB; raises `ExampleError`."""
        exif, white = self.images.exif, self.images.white
        return decode.decode(example.encoded, example.name, exif=exif, white=white)

    def _squared(self, example: Example, into: np.ndarray) -> None:
        """Paints the largest centred square, for training without random crops."""
        image = self.decoded(example)
        into[:] = presets.area(image, self.images.size, 1.0)

    def _centred(self, example: Example, into: np.ndarray) -> None:
        """Paints what evaluation sees."""
        image = self.decoded(example)
        preset = presets.PRESETS[self.images.eval_preset]
        into[:] = preset(image, self.images.size, self.images.eval_crop)

    def _fill_centred(self, batch: Batch, row: int, record: int) -> None:
        """Of a record, as evaluation sees it; a blank where it cannot be used or is none."""
        self._fill_row(batch, row, [record] if record < len(self.source) else [], self._centred)

    def _fill_squared(self, batch: Batch, row: int, record: int) -> None:
        """Of a record or the next that can be used, for training without random crops."""
        self._fill_row(batch, row, candidates(record, len(self.source)), self._squared)

    def _fill_row(self, batch: Batch, row: int, records: Iterable[int], paint: Paint) -> None:
        """Makes a row of the first of some records that can be used; a blank if there is none."""

        def make(record: int) -> Example:
            example = self.source[record]
            # A lack of memory may pass; it is no fault of the example.
            painting = partial(paint, example, batch["image"][row])
            retry.reading(painting, example.name, seconds=self.source.patience)
            return example

        made, batch["skipped"][row] = first_usable(make, records)
        if made is None:
            batch["image"][row] = 0
        label = self.source.no_label if made is None else made.label
        batch["labels" if self.source.multilabel else "label"][row] = label
        batch["mask"][row] = made is not None

    def _room(self, rows: int) -> Batch:
        """Room for so many rows."""
        label = "labels" if self.source.multilabel else "label"
        labels = np.asarray(self.source.no_label)
        return {
            "image": aligned((rows, self.images.size, self.images.size, 3), np.uint8),
            label: aligned((rows, *labels.shape), np.uint8 if labels.ndim else np.int32),
            "mask": aligned((rows,), np.float32),
            "skipped": np.full(rows, "", object),
        }

    def _filled(
        self,
        fill: Fill,
        each: int,
        parts: range,
        skips: Skips | None,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """See `_batches`; of parts of `each` rows, which threads fill by slices."""
        threads = Threads(self.host.at_once)

        def make(part: int) -> Batch:
            batch = self._room(each)
            starts = range(0, each, _SLICE)
            ends = (min(start + _SLICE, each) for start in starts)
            first = part * each
            threads.run(
                partial(fill, batch, start, range(first + start, first + end))
                for start, end in zip(starts, ends, strict=True)
            )
            return batch

        # So many parts at once that each thread has a slice to fill, also while others fill the
        # last slices of a part.
        slices = -(-each // _SLICE)
        ahead = 1 + -(-self.host.at_once // slices)
        with threads:
            yield from self._batches(make, parts, skips, ahead=ahead, workers=workers)

    @property
    def _fits(self) -> bool:
        row = sum(column.nbytes for name, column in self._room(1).items() if name != "skipped")
        return len(self.source) * row <= self.host.memory

    @cached_property
    def _kept_for_training(self) -> ImageCache:
        return ImageCache(self._room(len(self.source)), self._fill_squared)

    @cached_property
    def _kept_for_evaluation(self) -> ImageCache:
        return ImageCache(self._room(len(self.source) + 1), self._fill_centred)

    def _batches(
        self,
        make: Callable[[int], Batch],
        parts: range,
        skips: Skips | None,
        *,
        ahead: int,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """These parts of the batches, made ahead; tells `skips` what their rows report.

        Args:
          make: gives a part by its number.
          parts: their numbers, see `HostShard.parts`.
          ahead: parts made at once.
        """
        numbers = grain.MapDataset.range(parts.start, parts.stop, parts.step)
        options = grain.ReadOptions(ahead, prefetch_buffer_size=ahead)
        made = numbers.map(make).to_iter_dataset(options)
        # Elements are whole parts, which the workers give in turn: the order stays.
        with worker_processes.iterator(made, workers) as made_in_turn:
            for batch in made_in_turn:
                for text in filter(None, batch.pop("skipped")):
                    skipped = json.loads(str(text))
                    if skips is None:
                        _, name, reason = skipped[0]
                        raise ExampleError(name, reason)
                    skips.add(self.source, skipped)
                yield batch


def _seeds(seed: int) -> tuple[int, int]:
    """The seeds of the order and of the crops."""
    order, crops = np.random.SeedSequence(seed).generate_state(2)
    return int(order), int(crops)


def _draws(seed: int, positions: range) -> Iterator[list[float]]:
    """The random numbers of some examples, which are the same whoever makes them.

    Each position has 2^64 of Philox' counts to itself, of four numbers each.
    """
    bits = np.random.Philox(key=seed, counter=positions.start << 64)
    rng = np.random.Generator(bits)
    for _ in positions:
        # As plain numbers: with NumPy's a box takes four times as long.
        yield rng.random(decode.DRAWS).tolist()
        bits.advance(2**64 - -(-decode.DRAWS // 4))
