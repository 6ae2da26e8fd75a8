"""Batches of features in place of images: the output of a model's frozen part for a split.

`training.features` computes it once. In training there is a row for each draw of each record: the
image as the run renders it in epoch 0, in epoch 1, and so on. Epoch e takes draw e modulo their
number.
"""

import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.data.batches import Batch, HostShard, Reader
from xception_jax.data.order import Order
from xception_jax.data.skips import Skips
from xception_jax.errors import RunError, of_system
from xception_jax.utils import seal
from xception_jax.utils.files import write_atomically

Columns = dict[str, np.ndarray]  # arrays with a row for each draw of each record
# The shape and the dtype of each column.
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_ALIGNMENT = 64  # bytes, of each column
_ALONE = HostShard()


@dataclass
class FeatureReader(Reader):
    """Makes batches of features.

    They have `features` in place of `image`, and otherwise what `Reader`'s have.

    Attributes:
      columns: `features`, `label` or `labels`, and `mask`. In training, the row of draw d of record
        r is `d * len(source) + r`. In evaluation it is r, and the last row is a blank.
      draws: of each record, in training.
    """

    columns: Columns = field(default_factory=dict)
    draws: int = 1

    def training_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        order: Order | None = None,
        first_step: int = 0,
        shard: HostShard = _ALONE,
        skips: Skips | None = None,
    ) -> Iterator[Batch]:
        """See `Reader.training_batches`; unusable examples are replaced already."""
        order = self.order(seed, batch_size) if order is None else order
        count = len(self.source)
        for step in itertools.count(first_step):
            positions = _positions(step, batch_size, shard)
            yield self._rows([p // count % self.draws * count + order[p] for p in positions])

    def evaluation_batches(
        self, *, batch_size: int, shard: HostShard = _ALONE, skips: Skips | None = None
    ) -> Iterator[Batch]:
        """See `Reader.evaluation_batches`."""
        blank = len(self.source)
        for step in range(-(-blank // batch_size)):
            yield self._rows([min(p, blank) for p in _positions(step, batch_size, shard)])

    def _rows(self, rows: list[int]) -> Batch:
        return {name: column[rows] for name, column in self.columns.items()}


def _positions(step: int, batch_size: int, shard: HostShard) -> range:
    each = batch_size // shard.count
    first = step * batch_size + shard.index * each
    return range(first, first + each)


def size_of(shapes: Shapes) -> int:
    """The bytes of these columns."""
    return max(end for _, end in _places(shapes).values())


def in_memory(shapes: Shapes) -> Columns:
    """New columns in memory, of any content."""
    return {name: np.empty(shape, dtype) for name, (shape, dtype) in shapes.items()}


@dataclass(frozen=True)
class FeatureFile:
    """Columns in a file, `NAME.bin`, that the system keeps in memory as far as there is room.

    `NAME.json` is written after it. It has the SHA-256 of the file and of what the features depend
    on. Without it, or if one of them differs, the features are not used.

    Attributes:
      path: of the file.
      key: the SHA-256, in hexadecimal, of all that the features depend on.
      shapes: of the columns.
    """

    path: Path
    key: str
    shapes: Shapes

    def read(self) -> tuple[Columns | None, str]:
        """The columns; else None, and why they cannot be used, if there is a file."""
        if not self.path.exists():
            return None, ""
        try:
            fields = seal.parse(self._about.read_bytes())
            seal.check(fields)
        except FileNotFoundError:
            return None, "is incomplete"
        except (OSError, ValueError):
            return None, "is damaged"
        if fields.get("key") != self.key:
            return None, "is of other weights, data or settings"
        try:
            if fields.get("sha256") != self._sha256():
                return None, "is damaged"
            return self._columns("r"), ""
        except OSError as error:
            return None, f"cannot be read: {of_system(error)}"

    def create(self) -> Columns:
        """New columns, all zeros, in the file; `finish` makes it one that `read` accepts.

        Raises:
          RunError: there is no room, or the folder cannot be written.
        """
        size = size_of(self.shapes)
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._about.unlink(missing_ok=True)  # first: a killed run leaves no other pair
            self.path.unlink(missing_ok=True)
            with self.path.open("wb") as file:
                if hasattr(os, "posix_fallocate"):  # or the disk would be full at a write: SIGBUS
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
            return self._columns("r+")
        except OSError as error:
            self.path.unlink(missing_ok=True)
            raise RunError(
                f"the features of config.data.frozen_draws take {size / 2**20:,.1f} MiB in "
                f"{self.path.parent}: {of_system(error)}; make room, or lower frozen_draws"
            ) from None

    def finish(self) -> None:
        """Marks the file as complete, after it is on the disk."""
        try:
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())
            about = seal.sealed({"key": self.key, "sha256": self._sha256()})
            write_atomically(self._about, json.dumps(about, indent=1) + "\n")
        except OSError as error:
            raise RunError(of_system(error)) from None

    @property
    def _about(self) -> Path:
        return self.path.with_suffix(".json")

    def _sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _columns(self, mode: Any) -> Columns:
        room = np.asarray(np.memmap(self.path, np.uint8, mode))
        return {
            name: room[start:end].view(self.shapes[name][1]).reshape(self.shapes[name][0])
            for name, (start, end) in _places(self.shapes).items()
        }


def _places(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """The first byte of each column, and the one after its last."""
    places, end = {}, 0
    for name, (shape, dtype) in shapes.items():
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + math.prod(shape) * dtype.itemsize
        places[name] = (start, end)
    return places
