"""Shared by all readers of weights: checks of a file, tensors that are read late, one-line errors.

No content is trusted before it is checked. Libraries only open regular files of a plausible size.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.utils.text import printable

# The largest model here, with its optimizer state in float64, takes about 2 GB.
MAX_BYTES = 8 << 30
_MAX_DEPTH = 50  # of JSON; the `source` of a converted file can be nested
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Refused(Exception):  # noqa: N818  (it becomes a UsageError that names the file)
    """Why a file is refused. The message continues a sentence that begins with the file's path."""


@contextmanager
def explained(path: Path, kind: str) -> Iterator[None]:
    """Turns any error of a reader into a `UsageError` that names the file.

    Args:
      path: the file.
      kind: what it should be, as `a Keras file`.
    """
    try:
        yield
    except UsageError:
        raise
    except Refused as error:
        raise UsageError(f"{path} {printable(str(error), 400)}") from None
    except RecursionError:
        raise UsageError(f"{path} is damaged or not {kind}: it is nested too deeply") from None
    except KeyError as error:
        what = printable(str(error), 160)
        raise UsageError(f"{path} is damaged or not {kind}: {what} is missing") from None
    except Exception as error:  # h5py, zipfile and json raise many kinds
        raise UsageError(f"{path} is damaged or not {kind}: {reason(error)}") from None


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file; `np.asarray` reads it.

    Attributes:
      shape: the tensor's shape.
      dtype: the tensor's type.
      read: reads the tensor as an array of that shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def check_file(path: Path) -> int:
    """The size of a file in bytes, checked before a library opens it.

    Raises:
      UsageError: the file does not exist, is not a regular file (a library could wait for a pipe
        forever), or is larger than any weights.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UsageError(f"there are no weights at {path}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise UsageError(f"{path} is {_KINDS.get(kind, 'not a file')}; expected a regular file")
    if found.st_size > MAX_BYTES:
        raise UsageError(f"{path} has {found.st_size / 1e9:,.0f} GB; the limit is "
                         f"{MAX_BYTES / 1e9:.0f} GB")  # fmt: skip
    return found.st_size


def read_json(path: Path, limit: int = 1 << 20) -> Any:
    """The content of a small JSON file.

    Raises:
      UsageError: it is not a regular file, or larger than `limit` bytes.
      ValueError: it is not JSON, or nested too deeply.
    """
    if (size := check_file(path)) > limit:
        raise UsageError(f"{path} has {size:,} bytes; the limit is {limit:,}")
    return parse_json(path.read_bytes())


def parse_json(content: str | bytes) -> Any:
    """`json.loads`; also raises `ValueError` if nested more than `_MAX_DEPTH` levels deep."""
    deep = f"its JSON is nested more than {_MAX_DEPTH} deep"
    try:
        found = json.loads(content)
    except RecursionError:
        raise ValueError(deep) from None
    level: list[Any] = [[found]]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            part
            for held in level
            for part in (held.values() if isinstance(held, dict) else held)
            if isinstance(part, dict | list)
        ]
        if not level:
            return found
    raise ValueError(deep)


def reason(error: BaseException) -> str:
    """The first line of another library's error, shortened and safe to print."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable((lines or [type(error).__name__])[0], 160)
