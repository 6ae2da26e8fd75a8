"""What all files of weights share: they are regular files of a sane size, and errors are one line.

Nothing of a file is trusted before it is checked, and no library opens a path that is no file.
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

# The largest model here with its optimizer's state in float64 has about 2 GB.
MAX_BYTES = 8 << 30
_MAX_DEPTH = 50  # of JSON; a converted file names the source of its source, and so on
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class Refused(Exception):  # noqa: N818  (it becomes a UsageError that names the file)
    """Says what of a file is refused, as the end of a sentence that begins with its path."""


@contextmanager
def explained(path: Path, kind: str) -> Iterator[None]:
    """Makes one `UsageError` that names the file of whatever a reader raises."""
    try:
        yield
    except UsageError:
        raise
    except Refused as error:
        raise UsageError(f"{path} {printable(str(error), 400)}") from None
    except RecursionError:
        raise UsageError(f"{path} is damaged or no {kind}: it is nested too deeply") from None
    except KeyError as error:
        what = printable(str(error), 160)
        raise UsageError(f"{path} is damaged or no {kind}: it lacks {what}") from None
    except Exception as error:  # h5py, zipfile and json raise many kinds
        raise UsageError(f"{path} is damaged or no {kind}: {reason(error)}") from None


@dataclass(frozen=True)
class Stored:
    """A tensor that is still in its file; `np.asarray` reads it.

    Attributes:
      shape: of the tensor.
      dtype: of the tensor.
      read: reads it; an array of that shape.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


def check(path: Path) -> int:
    """The size in bytes of a file that is to be read.

    Raises:
      UsageError: there is no such file, it is a pipe, a device, a socket or a folder, which a
        library would wait for, or it is larger than any weights.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise UsageError(f"there are no weights at {path}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise UsageError(f"{path} is {_KINDS.get(kind, 'no file')}; a regular file is expected")
    if found.st_size > MAX_BYTES:
        raise UsageError(f"{path} has {found.st_size / 1e9:,.0f} GB; at most "
                         f"{MAX_BYTES / 1e9:.0f} GB are read")  # fmt: skip
    return found.st_size


def read_json(path: Path, limit: int = 1 << 20) -> Any:
    """The content of a small JSON file.

    Raises:
      UsageError: it is no regular file, or larger than `limit` bytes.
      ValueError: it is no JSON, or nested too deeply.
    """
    if (size := check(path)) > limit:
        raise UsageError(f"{path} has {size:,} bytes; at most {limit:,} are expected")
    return parse_json(path.read_bytes())


def parse_json(content: str | bytes) -> Any:
    """`json.loads`; `ValueError` for what is nested more than `_MAX_DEPTH` deep too."""
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
    """The first line of an error of another library, safe to show and cut short."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable((lines or [type(error).__name__])[0], 160)
