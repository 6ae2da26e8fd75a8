"""Opens untrusted HDF5 files.

HDF5 can refer to other files: external links, external storage of a dataset, virtual datasets. It
can also declare far more data than it stores, and a small compressed chunk can inflate without
limit in the library. `open_file` checks every object and refuses all of this before any data is
read. A `Dataset` checks its chunks before it is read.
"""

import math
import zlib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.weights.files import Refused, explained

_MAX_OBJECTS = 50_000
_MAX_CHUNKS = 100_000
# Weights hardly compress; the ratio is only checked above the small size.
_RATIO, _SMALL = 100, 64 * 2**20

_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
# The order in which HDF5 applies filters on writing; each at most once.
_PIPELINE = [_SHUFFLE, _DEFLATE, _FLETCHER32]


def h5py() -> Any:
    """The h5py library. Raises `UsageError` if it is not installed."""
    try:
        import h5py as library
    except ImportError:
        raise UsageError("a Keras file needs h5py: pip install 'xception_jax[convert]'") from None
    return library


def open_file(source: Path | BinaryIO) -> Any:
    """Opens an `h5py.File` and checks all of its objects.

    Args:
      source: a path, or a file object with the content of an HDF5 file.

    Raises:
      Refused: it refers to other files, has too many objects or declares more than it stores.
      OSError: it is not an HDF5 file; h5py raises other kinds too.
    """
    file = h5py().File(source, "r")
    try:
        _check_objects(file, h5py())
    except BaseException:
        file.close()
        raise
    return file


def _check_objects(file: Any, library: Any) -> None:
    """Checks all groups and datasets; only hard links are followed."""
    waiting, seen, count = [(file.id, "")], set(), 0
    while waiting:
        group, path = waiting.pop()
        # A file can link a group to itself.
        address = library.h5o.get_info(group).addr
        if address in seen:
            continue
        seen.add(address)
        count += group.get_num_objs()
        if count > _MAX_OBJECTS:
            raise Refused(f"has more than {_MAX_OBJECTS:,} objects, the limit for a weights file")
        for name in list(group):
            place = f"{path}/{name.decode(errors='replace')}"
            kind = group.links.get_info(name).type
            if kind != library.h5l.TYPE_HARD:
                known = {
                    library.h5l.TYPE_SOFT: "a soft link",
                    library.h5l.TYPE_EXTERNAL: "an external link",
                }
                what = known.get(kind, "a user-defined link")
                raise Refused(f"has {what} at {place!r}; only data in the file itself is read")
            found = library.h5o.open(group, name)
            if isinstance(found, library.h5d.DatasetID):
                _check_dataset(found, place, library)
            elif isinstance(found, library.h5g.GroupID):
                waiting.append((found, place))


def _check_dataset(dataset: Any, place: str, library: Any) -> None:
    plist = dataset.get_create_plist()
    # Checked before the shape: a virtual dataset's shape can depend on other files.
    if plist.get_layout() == library.h5d.VIRTUAL:
        raise Refused(f"has a virtual dataset at {place!r}; only data in the file itself is read")
    if plist.get_external_count():
        raise Refused(f"has external storage at {place!r}; only data in the file itself is read")
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    if filters != [each for each in _PIPELINE if each in filters]:
        raise Refused(f"has filters {filters} at {place!r}; only HDF5's own shuffle, deflate and "
                      f"fletcher32 can be read, in this order")  # fmt: skip
    declared, stored = _bytes(dataset), dataset.get_storage_size()
    if _DEFLATE not in filters and stored < declared:
        raise Refused(f"declares {declared:,} bytes at {place!r} and stores {stored:,}")
    if declared > max(_SMALL, _RATIO * stored):
        raise Refused(f"declares {declared:,} bytes at {place!r} and stores {stored:,}")


def _bytes(dataset: Any) -> int:
    return math.prod(dataset.shape or ()) * int(dataset.get_type().get_size())


@dataclass(frozen=True)
class Dataset:
    """An array in an open file that is read on access by NumPy.

    Attributes:
      held: h5py's dataset, of a file from `open_file`.
      path: the file's path, for messages.
      dtype: the array's type. HDF5 has no bfloat16; Keras marks it with an attribute.
    """

    held: Any
    path: Path
    dtype: np.dtype = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.held, h5py().Dataset):
            raise Refused(f"has something other than an array at {self.held.name!r}")
        object.__setattr__(self, "dtype", _dtype(self.held))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held.shape or ())

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return _bytes(self.held.id)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with explained(self.path, "an HDF5 file"):
            if self.held.chunks is not None:
                _check_chunks(self.held)
            array = np.asarray(self.held[()])
        if self.dtype != array.dtype:
            array = array.view(self.dtype)
        return array if dtype is None else array.astype(dtype, copy=False)


def _dtype(dataset: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = dataset.dtype
    if dtype.kind == "V" and dtype.itemsize == 2:
        import ml_dtypes

        dtype = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _check_chunks(dataset: Any) -> None:
    """Checks that no chunk inflates beyond its declared size; HDF5 itself has no such limit."""
    plist, shape, chunk = dataset.id.get_create_plist(), dataset.shape, dataset.chunks
    filters = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
    size = math.prod(chunk) * dataset.dtype.itemsize
    starts = [range(0, side, step) for side, step in zip(shape, chunk, strict=True)]
    if math.prod(map(len, starts)) > _MAX_CHUNKS or size > 2 * dataset.nbytes + 2**20:
        raise Refused(f"stores {dataset.name!r} of {list(shape)} in chunks of {list(chunk)}")
    for start in product(*starts):
        stored = dataset.id.get_chunk_info_by_coord(start).size
        if not 0 < stored <= size + 2**16:
            raise Refused(f"has a chunk of {stored:,} bytes for {size:,} in {dataset.name!r}")
        if _DEFLATE not in filters:
            continue
        skipped, raw = dataset.id.read_direct_chunk(start)
        # Each bit of `skipped` is a filter that this chunk does not use.
        if skipped:
            raise Refused(f"has a chunk without some of its filters in {dataset.name!r}")
        inflated = zlib.decompressobj().decompress(raw, size + 1)
        if len(inflated) != size:
            raise Refused(f"has a chunk in {dataset.name!r} that is not {size:,} bytes inflated")


def text(holder: Any, name: str, limit: int) -> str | None:
    """A string attribute of a group or file, or None.

    Raises:
      Refused: it is not a string, or longer than `limit`.
    """
    if name not in holder.attrs:
        return None
    value = holder.attrs[name]
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str) or len(value) > limit:
        raise Refused(f"has an attribute {name!r} that is not a string of at most {limit:,} "
                      f"characters")  # fmt: skip
    return str(value)
