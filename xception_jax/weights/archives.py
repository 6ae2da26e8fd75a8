"""Reads members of untrusted zip archives into memory, with limits on their size."""

import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from xception_jax.weights.files import Refused

# Python reads an archive's directory at once and keeps an object for each of its entries.
_MAX_DIRECTORY_BYTES = 4 * 2**20
# How much larger a member may be in memory than in the file.
_MAX_INFLATED_BYTES = 1536 * 2**20
_RATIO, _SMALL = 100, 64 * 2**20
_ENCRYPTED = 0x1


class _Limited(io.FileIO):
    """A file that refuses reads larger than the maximum size of an archive's directory."""

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
    """An archive that closes its file; zipfile does not close a file that it did not open."""

    def __init__(self, file: _Limited):
        self._file = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._file.close()


def open_archive(path: Path) -> zipfile.ZipFile:
    """Opens an archive and reads its directory, nothing else.

    Raises:
      Refused: the directory is larger than any weights file needs.
      zipfile.BadZipFile: the archive is damaged.
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
    """Reads members of an archive by name; nothing is extracted to disk.

    Args:
      path: the archive.
      limits: the names of the members to read, each with its maximum size in bytes.

    Raises:
      Refused: a member is missing, too large, encrypted or stored twice, or its name points
        outside the archive.
      zipfile.BadZipFile: the archive is damaged.
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
            raise Refused(f"has an entry {name!r}, which points outside the archive")


def _read(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise Refused(f"has no entry {name!r}") from None
    if info.flag_bits & _ENCRYPTED:
        raise Refused(f"has an encrypted entry {name!r}")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"has the entry {name!r} compressed by method {info.compress_type}; only "
                      f"stored and deflated entries can be read")  # fmt: skip
    size, stored = info.file_size, info.compress_size
    if size > limit or size - stored > _MAX_INFLATED_BYTES or size > max(_SMALL, _RATIO * stored):
        raise Refused(f"declares {size:,} bytes for the entry {name!r} but stores {stored:,}")
    with archive.open(info) as member:
        # One byte more than declared: this limits inflation and makes zipfile check the checksum.
        data = member.read(size + 1)
    if len(data) != size:
        raise Refused(f"has {len(data):,} bytes in the entry {name!r} but declares {size:,}")
    return data
