"""Batches: which examples a step takes, and their way to the devices.

The training stream is one endless sequence: example i is a function of (seed, i) alone, see
`order`. Step s takes the examples [s * B, (s + 1) * B), and process h of n the h-th n-th part of
that range. So the step *is* the position: there is no iterator state to save,
resuming costs the same at any step, and another number of processes or threads changes nothing.
"""

import collections
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

from xception_jax.data import decode, presets, turbojpeg
from xception_jax.data.memory import Kept, stacked
from xception_jax.data.order import Sampling
from xception_jax.data.skips import Row, Skips, candidates, first_usable
from xception_jax.data.sources import Source
from xception_jax.errors import ExampleError

Batch = dict[str, Any]  # of numpy arrays

# Bytes to which XLA wants arrays aligned that it takes without a copy, on the CPU.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Images:
    """How the host makes an image of an example.

    Attributes:
      size: side of the square it ends as, pixels.
      crop_area, crop_aspect: ranges of the random training crop, see `decode.random_box`; (1, 1)
        for both: the largest centred square.
      eval_preset, eval_crop: see `data.presets`; the latter is the share of the shorter side that
        evaluation keeps of the centre.
    """

    size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    eval_preset: str = "area"
    eval_crop: float = 1.0

    @property
    def crops(self) -> bool:
        """Whether training images are drawn at random."""
        return tuple(self.crop_area) != (1, 1) or tuple(self.crop_aspect) != (1, 1)


@dataclass(frozen=True)
class Share:
    """Which part of every batch this process reads: part `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> "Share":
        return cls(jax.process_index(), jax.process_count())


@dataclass(frozen=True)
class Host:
    """How a process makes its batches. Has no influence on what they hold.

    Attributes:
      threads: of each process that makes them; 0: one for each core it may use.
      workers: processes that make those of training, unless they are kept in memory; 0: this one.
      memory: bytes of finished images that may be kept, where nothing about them is random.
      parts: decode of JPEGs only the random crop, where that can be done.
    """

    threads: int = 0
    workers: int = 0
    memory: int = 0
    parts: bool = True

    @property
    def at_once(self) -> int:
        """Threads; with more than there are cores an image costs 15 % more CPU time."""
        if self.threads:
            return self.threads
        # macOS cannot say which cores a process may use.
        tied = hasattr(os, "sched_getaffinity")
        return len(os.sched_getaffinity(0)) if tied else os.cpu_count() or 1


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

    def training_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        first_step: int = 0,
        share: Share = Share(),
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
        order_seed, crop_seed = (int(s) for s in np.random.SeedSequence(seed).generate_state(2))
        order = self.sampling.order(self.source, order_seed, batch_size)
        each = batch_size // share.count
        if not self.images.crops and self._fits:
            kept = self._kept_for_training
            parts = grain.MapDataset.range(sys.maxsize // each).map(
                lambda part: kept.batch([order[part * each + row] for row in range(each)])
            )
            return self._batches(parts, 1, share, first_step, skips)

        def rows(positions: range) -> Iterator[Row]:
            if not self.images.crops:
                return (self._uncropped(order[position]) for position in positions)
            draws = _draws(crop_seed, positions)
            return (
                self._cropped(order[p], drawn) for p, drawn in zip(positions, draws, strict=True)
            )

        pieces, pieces_each = _pieces(rows, each)
        return self._batches(pieces, pieces_each, share, first_step, skips, self.host.workers)

    def evaluation_batches(
        self, *, batch_size: int, share: Share = Share(), skips: Skips | None = None
    ) -> Iterator[Batch]:
        """This process' share of the split, in its own order, every example exactly once.

        The last batch is filled up with black images whose `mask` is 0; one also stands in for each
        example that cannot be used. See `training_batches`.
        """
        count, each = len(self.source), batch_size // share.count
        padded = -(-count // batch_size) * batch_size
        if self._fits:
            kept = self._kept_for_evaluation  # its record `count` is a blank
            parts = grain.MapDataset.range(padded // each).map(
                lambda part: kept.batch([min(part * each + row, count) for row in range(each)])
            )
            return self._batches(parts, 1, share, 0, skips)
        pieces, pieces_each = _pieces(partial(map, self._centred), each, padded)
        return self._batches(pieces, pieces_each, share, 0, skips)

    @property
    def note(self) -> str:
        """What is to be said at the start of a run of how images are decoded; may be empty."""
        if not self.images.crops or not self.host.parts:
            return ""
        if turbojpeg.library():
            return "of JPEGs only the random crop is decoded, by libturbojpeg"
        return (
            "JPEGs are decoded whole; with libturbojpeg 3, which the extra [turbojpeg] brings, only "
            "their random crop would be, in less time"
        )

    def _cropped(self, record: int, drawn: Sequence[float]) -> Row:
        """Of a record or the next that can be used, cropped for training at random."""
        area, aspect = self.images.crop_area, self.images.crop_aspect

        def choose(height: int, width: int) -> decode.Box:
            return decode.random_box(drawn, height, width, area, aspect)

        def image(encoded: bytes, name: str) -> np.ndarray:
            part = decode.decode_part(encoded, choose, name, whole=not self.host.parts)
            return decode.resize(part, self.images.size)

        return self._row_of(candidates(record, len(self.source)), image)

    def _uncropped(self, record: int) -> Row:
        """Of a record or the next that can be used, for training without random crops."""

        def image(encoded: bytes, name: str) -> np.ndarray:
            return presets.area(decode.decode(encoded, name), self.images.size, 1.0)

        return self._row_of(candidates(record, len(self.source)), image)

    def _centred(self, record: int) -> Row:
        """Of a record, cropped for evaluation; a blank where it cannot be used or is none."""
        preset = presets.PRESETS[self.images.eval_preset]

        def image(encoded: bytes, name: str) -> np.ndarray:
            return preset(decode.decode(encoded, name), self.images.size, self.images.eval_crop)

        return self._row_of([record] if record < len(self.source) else [], image)

    def _row_of(self, records: Iterable[int], image: Callable[[bytes, str], np.ndarray]) -> Row:
        """Of the first of some records that can be used; `image` makes it of the encoded one."""

        def make(record: int) -> Row:
            example = self.source[record]
            return _row(image(example.encoded, example.name), example.label)

        return first_usable(make, records, self._blank)

    @cached_property
    def _blank(self) -> Row:
        black = np.zeros((self.images.size, self.images.size, 3), np.uint8)
        return _row(black, self.source.no_label, mask=0.0)

    @property
    def _fits(self) -> bool:
        row = sum(np.asarray(value).nbytes for value in self._blank.values())
        return len(self.source) * row <= self.host.memory

    @cached_property
    def _kept_for_training(self) -> Kept:
        return Kept(self._uncropped, len(self.source))

    @cached_property
    def _kept_for_evaluation(self) -> Kept:
        return Kept(self._centred, len(self.source) + 1)

    def _batches(
        self,
        pieces: grain.MapDataset,
        count: int,
        share: Share,
        first_step: int,
        skips: Skips | None,
        workers: int = 0,
    ) -> Iterator[Batch]:
        """This process' parts of the batches, made ahead; tells `skips` what their rows report.

        A part is contiguous, so that the rows of the global batch are in stream order whatever the
        number of processes, and virtual batches of batch normalization hold the same examples. It
        is made of `count` pieces, of which each thread makes one at a time: many threads then hold
        no more than a few batches in memory.
        """
        turns = max(1, workers)

        def mine(number: int) -> Batch:
            # Grain deals the numbers out to the workers like cards, before they are joined. So a
            # worker's own are counted: the pieces of a batch are to be in one hand.
            own, worker = divmod(number, turns)
            step = own // count * turns + worker
            part = (first_step + step) * share.count + share.index
            return pieces[part * count + own % count]

        steps = (len(pieces) // (count * share.count) - first_step) // turns * turns
        threads = self.host.at_once
        made = grain.MapDataset.range(steps * count).map(mine).to_iter_dataset(
            grain.ReadOptions(threads, prefetch_buffer_size=threads)
        ).batch(count, batch_fn=_joined)  # fmt: skip
        if workers:
            # Elements here are whole batches, which the workers give in turn: the order stays.
            made = made.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
        for batch in made:
            for text in filter(None, batch.pop("skipped")):
                skipped = json.loads(str(text))
                if skips is None:
                    _, name, reason = skipped[0]
                    raise ExampleError(name, reason)
                skips.add(self.source, skipped)
            yield batch


def _draws(seed: int, positions: range) -> Iterator[list[float]]:
    """The random numbers of some examples, which are the same whoever makes them.

    Each position has 2^64 of Philox' counts to itself, of four numbers each.
    """
    bits = np.random.Philox(key=seed, counter=positions.start << 64)
    rng = np.random.Generator(bits)
    for _ in positions:
        yield rng.random(
            decode.DRAWS
        ).tolist()  # with NumPy's numbers a box takes four times as long
        bits.advance(2**64 - -(-decode.DRAWS // 4))


def _pieces(
    rows: Callable[[range], Iterable[Row]], each: int, count: int = sys.maxsize
) -> tuple[grain.MapDataset, int]:
    """Rows by position, in the pieces that a process' part of a batch is cut into.

    Args:
      rows: makes those of some positions.
      each: rows of a part.
      count: rows of all parts.

    Returns:
      The pieces, each of the largest divisor of `each` up to 16 rows, and how many make a part.
    """
    length = max(length for length in range(1, min(each, 16) + 1) if each % length == 0)

    def piece(number: int) -> Batch:
        return stacked(rows(range(number * length, (number + 1) * length)), length)

    return grain.MapDataset.range(count // length).map(piece), each // length


def _joined(pieces: Sequence[Batch]) -> Batch:
    return {
        name: np.concatenate([piece[name] for piece in pieces], out=_aligned(rows, len(pieces)))
        for name, rows in pieces[0].items()
    }


def _aligned(rows: np.ndarray, count: int) -> np.ndarray:
    """Room for so many arrays like this one, one after the other, which a CPU device can share."""
    if rows.dtype == object:
        return np.empty(count * len(rows), object)
    room = np.empty(count * rows.nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + count * rows.nbytes].view(rows.dtype).reshape(-1, *rows.shape[1:])


def _row(image: np.ndarray, label: int | np.ndarray, mask: float = 1.0) -> Row:
    name, value = ("labels", label) if isinstance(label, np.ndarray) else ("label", np.int32(label))
    return {"image": image, name: value, "mask": np.float32(mask)}


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
