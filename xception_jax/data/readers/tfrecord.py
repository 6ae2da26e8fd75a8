"""Random access to a TFDS split that is prepared as tfrecord, without TensorFlow.

A tfrecord file is a chain: each record follows its length and precedes its checksum. So a record is
only reachable by walking along the file. Each file is walked once, and the offsets are stored in an
index: in the folder `record_index` beside the file, or in the user's cache folder if that one is
read-only. An index is a NumPy file of offsets; the last one is the size of the indexed file.

Records are read with positioned reads, not through mmap. That takes 6 microseconds longer for
110 KB. But a truncated file or a failing disk then raises an error that names the file, instead of
a SIGBUS that ends the process. No file stays open, so the object can be pickled and the limit of
1,024 open files does not matter.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
import struct
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from rich.progress import Progress

from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import cache
from xception_jax.utils import retry
from xception_jax.utils.console import make_console

_HEADER = struct.Struct("<QI")  # length of the record, checksum of these eight bytes
_CHECKSUM = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CHECKSUM.size  # bytes of a frame without its record

# From this number of records on, indexing takes long enough for a progress bar.
_MANY_RECORDS = 20_000

_FIX = "copy the file from its source again, or prepare the data set again"


class Examples(Sequence[dict[str, Any]]):
    """The examples of a split, parsed by TFDS on access.

    Args:
      instructions: the split's files and the part of each, `info.splits[split].file_instructions`.
      offsets: the result of `index`, by file name.
      features: the features of the data set.
      decoders: TFDS' decoders, `{"image": tfds.decode.SkipDecoding()}`.
    """

    def __init__(
        self,
        instructions: Sequence[Any],
        offsets: dict[str, np.ndarray],
        features: tfds.features.FeaturesDict,
        decoders: Any = None,
    ):
        self._parts = [(part.filename, part.skip, offsets[part.filename]) for part in instructions]
        self._ends = list(itertools.accumulate(part.take for part in instructions))
        self._features, self._decoders = features, decoders

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        """The example as a dict of NumPy values; images stay encoded if the decoders say so.

        Raises:
          RunError: the record is damaged, or its file is missing or not readable.
          OSError: a transient error.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        file, skip, offsets = self._parts[number]
        record = skip + index - (self._ends[number - 1] if number else 0)
        data = read_record(file, record, int(offsets[record]), int(offsets[record + 1]))
        return self._features.deserialize_example_np(data, decoders=self._decoders)


def open_split(info: tfds.core.DatasetInfo, split: str, decoders: Any = None) -> Examples:
    """Opens a split, or a part of one (`train[:10%]`), and indexes files that have no index yet.

    Raises:
      UsageError: a file is missing or cannot be read.
      RunError: a file is damaged or contradicts `dataset_info.json`.
    """
    instructions = info.splits[split].file_instructions
    expected = {part.filename: part.examples_in_shard for part in instructions}
    buckets = [file for file in expected if "://" in file]
    if buckets:
        raise UsageError(
            f"{os.path.dirname(buckets[0])} is prepared as tfrecord, which is read from a file "
            f"system: mount the bucket as a folder, or copy the data, and name that as the data_dir"
        )
    return Examples(instructions, index(expected), info.features, decoders)


def index(expected: dict[str, int]) -> dict[str, np.ndarray]:
    """The offsets of the records of each file, from its index or by walking along it.

    Args:
      expected: number of records of each file, by file name.

    Returns:
      By file name, int64 `[records + 1]`: the offset of each frame, then the size of the file.
    """
    console = make_console(stderr=True)
    found, missing = {}, []
    for file in expected:
        offsets, reason = retry.reading(partial(_load, file), file)
        if reason:
            console.print(f"{file} is indexed again: {reason}")
        if offsets is None:
            missing.append(file)
        else:
            found[file] = offsets
    total = sum(expected[file] for file in missing)
    many = total >= _MANY_RECORDS
    if many:
        folder = os.path.dirname(missing[0])
        console.print(f"indexing {total:,} records in {folder}, once only")
    kept = True
    with Progress(console=console, disable=not (many and console.is_terminal)) as progress:
        task = progress.add_task("records", total=total)
        for file in missing:
            found[file] = retry.reading(partial(_scan, file), file)
            kept &= _save(file, found[file])
            progress.advance(task, expected[file])
    if not kept:
        beside, cached = (path.parent for path in index_paths(missing[0]))
        console.print(
            f"the index of {beside.parent} is for this run only: neither {beside} nor {cached} can "
            f"be written"
        )
    for file, records in expected.items():
        if len(found[file]) - 1 != records:
            raise RunError(
                f"{file} holds {len(found[file]) - 1:,} records in {found[file][-1]:,} bytes, and "
                f"dataset_info.json beside it says {records:,}; {_FIX}"
            )
    return found


def read_record(file: str, record: int, start: int, end: int) -> bytes:
    """Reads one record and checks it.

    Args:
      file: the file's name.
      record: the record's number, for error messages.
      start, end: offsets of its frame in the file, bytes.

    Raises:
      RunError: the record is damaged, or its file is missing or not readable.
      OSError: a transient error.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            data = os.pread(descriptor, end - start - _OVERHEAD, start + _HEADER.size)
            checksum = os.pread(descriptor, _CHECKSUM.size, end - _CHECKSUM.size)
        finally:
            os.close(descriptor)
    except OSError as error:
        if retry.transient(error):
            raise OSError(error.errno, error.strerror, file) from None  # `pread` names no file
        raise RunError(f"record {record} of {file} cannot be read: {error.strerror}") from None
    if _checksum(data) != checksum:
        raise RunError(
            f"record {record} of {file}, from byte {start:,} on, is damaged: its checksum does not "
            f"match; {_FIX}. If the file was replaced by a good one: delete "
            f"{' and '.join(str(path) for path in index_paths(file) if path.exists())}"
        )
    return data


def _checksum(data: bytes) -> bytes:
    """A CRC-32C as tfrecord stores it, rotated and with a constant added."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _scan(file: str) -> np.ndarray:
    """Walks along a file and returns its offsets, as `index` does."""
    offsets = [0]
    try:
        with open(file, "rb", buffering=0) as frames:
            size = os.fstat(frames.fileno()).st_size
            while offsets[-1] < size:
                offsets.append(_end_of_frame(file, frames.fileno(), offsets, size))
    except OSError as error:
        if retry.transient(error):
            raise
        raise UsageError(f"{file} cannot be read: {error.strerror}; {_FIX}") from None
    return np.array(offsets, np.int64)


def _end_of_frame(file: str, descriptor: int, offsets: list[int], size: int) -> int:
    """The end of the frame that begins at the last offset."""
    start, record = offsets[-1], len(offsets) - 1
    header = os.pread(descriptor, _HEADER.size, start)
    end = size + 1
    if len(header) == _HEADER.size:
        if _checksum(header[:8]) != header[8:]:
            raise RunError(
                f"{file} is damaged at record {record}, byte {start:,}: the checksum of its "
                f"length does not match; {_FIX}"
            )
        end = start + _OVERHEAD + _HEADER.unpack(header)[0]
    if end > size:
        raise RunError(
            f"{file} is cut short: it ends at byte {size:,}, within record {record}; {_FIX}"
        )
    return end


def index_paths(file: str) -> tuple[Path, Path]:
    """The possible paths of a file's index: beside it, and in the user's cache folder."""
    path = Path(os.path.abspath(file))
    folder = hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]
    return (
        path.parent / "record_index" / f"{path.name}.npy",
        cache.folder() / "index" / folder / f"{path.name}.npy",
    )


def _load(file: str) -> tuple[np.ndarray | None, str]:
    """The valid index of a file, or None and the reason why an existing one is not used."""
    try:
        size = os.stat(file).st_size
    except OSError as error:
        if retry.transient(error):
            raise
        raise UsageError(f"{file} cannot be read: {error.strerror}; {_FIX}") from None
    reasons = []
    for path in index_paths(file):
        try:
            offsets = np.load(path, allow_pickle=False)
            if not _is_index(offsets):
                raise ValueError
        except FileNotFoundError:
            continue
        except (OSError, ValueError, EOFError) as error:
            if retry.transient(error):
                raise
            reasons.append(f"{path} is not an index")
            continue
        if offsets[-1] == size:
            return offsets, ""
        reasons.append(f"it has {size:,} bytes, and had {offsets[-1]:,} when it was indexed")
    return None, "; ".join(reasons)


def _is_index(offsets: np.ndarray) -> bool:
    shaped = offsets.dtype == np.int64 and offsets.ndim == 1 and offsets.size > 0
    return bool(shaped and offsets[0] == 0 and np.all(np.diff(offsets) >= _OVERHEAD))


def _save(file: str, offsets: np.ndarray) -> bool:
    """Stores an index, completely or not at all; False if no folder can be written."""
    return any(_saved(path, offsets) for path in index_paths(file))


def _saved(path: Path, offsets: np.ndarray) -> bool:
    # A unique name: another process may be writing the same index.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.save(file, offsets)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        return False
    return True
