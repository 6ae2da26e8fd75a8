"""Reads members of zip archives of unknown origin, into memory, with bounds on what they take."""

import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from xception_jax.weights.files import Refused

# Python reads an archive's directory in one go and keeps an object for each of its entries.
_MAX_DIRECTORY_BYTES = 4 * 2**20
# How much a member may take in memory above what it takes in the file.
_MAX_INFLATED_BYTES = 1536 * 2**20
_RATIO, _SMALL = 100, 64 * 2**20
_ENCRYPTED = 0x1


class _Limited(io.FileIO):
    """A file that is not read in larger pieces than an archive's directory may have."""

    limited = True

    def read(self, size: int | None = -1, /) -> Any:
        place = self.tell()
        left = self.seek(0, io.SEEK_END) - place
        self.seek(place)
        asked = left if size is None or size < 0 else min(size, left)
        if self.limited and asked > _MAX_DIRECTORY_BYTES:
            raise Refused(f"has a zip directory of more than {_MAX_DIRECTORY_BYTES:,} bytes")
        return super().read(asked)


class _Archive(zipfile.ZipFile):
    """An archive that closes its file; zipfile leaves that to the one who opened it."""

    def __init__(self, file: _Limited):
        self._file = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._file.close()


def open_archive(path: Path) -> zipfile.ZipFile:
    """An archive whose directory alone has been read.

    Raises:
      Refused: that directory is larger than any file of weights needs.
      zipfile.BadZipFile: it is damaged.
    """
    file = _Limited(path)
    try:
        archive = _Archive(file)
    except BaseException:
        file.close()
        raise
    file.limited = False
    return archive


def read_members(path: Path, limits: dict[str, int]) -> dict[str, bytes]:
    """Members of an archive by their names; nothing is extracted to disk.

    Args:
      path: of the archive.
      limits: the members to read, and how many bytes each may have at most.

    Raises:
      Refused: one is missing, too large, encrypted or there twice, or a name leaves the archive.
      zipfile.BadZipFile: it is damaged.
    """
    with open_archive(path) as archive:
        _check_names(archive)
        return {name: _read(archive, name, limit) for name, limit in limits.items()}


def _check_names(archive: zipfile.ZipFile) -> None:
    names = Counter(info.filename for info in archive.infolist())
    for name, count in names.items():
        if count > 1:
            raise Refused(f"has the entry {name!r} {count} times")
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise Refused(f"has an entry {name!r}, which leads out of the archive")


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise Refused(f"has no entry {name!r}") from None
    if info.flag_bits & _ENCRYPTED:
        raise Refused(f"has the entry {name!r} encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"has the entry {name!r} compressed by method {info.compress_type}; stored "
                      f"and deflated ones are read")  # fmt: skip
    size, stored = info.file_size, info.compress_size
    if size > limit or size - stored > _MAX_INFLATED_BYTES or size > max(_SMALL, _RATIO * stored):
        raise Refused(f"declares {size:,} bytes for the entry {name!r} and stores {stored:,}")
    with archive.open(info) as member:
        # One byte more than declared: a bound for inflating, and the checksum is checked.
        data = member.read(size + 1)
    if len(data) != size:
        raise Refused(f"has {len(data):,} bytes in the entry {name!r}, which declares {size:,}")
    return data
