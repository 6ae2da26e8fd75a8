"""Reading again what could not be read: an error of the storage says nothing about the bytes.

What an error means was seen by injecting each into every read of a checkpoint. Python's carry their
`errno`. TensorStore raises `ValueError("STATUS: ... [os_error_code='5']")`, around which Orbax
raises an `Exception` that says less.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from xception_jax.errors import RunError

T = TypeVar("T")

# How long reading is tried, in all, and the pauses in between.
PATIENCE_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 16.0

# Errors that tell of the file, not of the way to it: it is gone, or is no file.
_OF_THE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG,
    errno.EINVAL,
}  # fmt: skip
# TensorStore's and JAX's, where no number of the system's comes with them.
_STATUSES = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED",
    "PERMISSION_DENIED", "UNAUTHENTICATED",
)  # fmt: skip


def storage_error(error: BaseException) -> str | None:
    """Why reading failed, where what is stored need not be at fault; else None."""
    for part in _chain(error):
        if isinstance(part, MemoryError):
            return "out of memory"
        if isinstance(part, OSError) and part.errno is not None:
            return None if part.errno in _OF_THE_FILE else part.strerror or repr(part)
        text = str(part)
        if code := re.search(r"\[os_error_code='(\d+)'\]", text):
            number = int(code[1])
            return None if number in _OF_THE_FILE else os.strerror(number)
        if status := re.match(rf"({'|'.join(_STATUSES)}): ", text):
            return f"{status[1]}: {text[status.end() :].splitlines()[0][:200]}"
    return None


def tell(line: str) -> None:
    """Shows a line where nothing better is open yet: on standard error."""
    print(line, file=sys.stderr, flush=True)


def read(what: str, action: Callable[[], T], say: Callable[[str], None] = tell) -> T:
    """Does something that reads; again, after growing pauses, while the storage is at fault.

    Args:
      what: is read, for messages; a file that the error names takes its place.
      action: may be done many times.
      say: takes a line before each pause.

    Raises:
      RunError: after two minutes in all, naming the file. Other errors of `action` pass.
    """
    until, pause = time.monotonic() + PATIENCE_S, _FIRST_PAUSE_S
    while True:
        try:
            return action()
        except Exception as error:
            why = storage_error(error)
            if why is None:
                raise
            name = _file(error) or what
            left = until - time.monotonic()
            if left <= 0:
                raise RunError(
                    f"{name} cannot be read: {why}; tried for {PATIENCE_S:.0f} s, and nothing was "
                    f"changed"
                ) from error
            pause = min(pause, left)
            say(f"{name} cannot be read: {why}; next try in {pause:.1f} s, for {left:.0f} s more")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    now: BaseException | None = error
    while now is not None:
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def _file(error: BaseException) -> str | None:
    """The file that an error names, if it does."""
    for part in _chain(error):
        if isinstance(part, OSError) and part.filename:
            return str(part.filename)
        for quoted, bare in re.findall(r'"(/[^"]+)"|open file (/.+?): ', str(part)):
            if not Path(quoted or bare).is_dir():
                return quoted or bare
    return None
