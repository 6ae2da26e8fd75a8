"""Reading a checkpoint's files, where the storage may be at fault: then they are no damage.

What an error means was seen by injecting each into every read of a checkpoint. Python's carry their
`errno`. TensorStore raises `ValueError("STATUS: ... [os_error_code='5']")`, around which Orbax
raises an `Exception` that says less.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from xception_jax import retry
from xception_jax.errors import ReadError

T = TypeVar("T")
Say = Callable[[str], None] | None  # None: standard error

# Errors that tell of the file, not of the way to it: it is gone, or is no file. Access that is
# denied is the storage's: the file may be whole, and must not be moved.
_OF_THE_FILE = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG,
    errno.EINVAL,
}  # fmt: skip
# Access that is denied stays so until a person grants it, so another try is of no use.
_DENIED = (
    os.strerror(errno.EACCES), os.strerror(errno.EPERM), "PERMISSION_DENIED", "UNAUTHENTICATED",
)  # fmt: skip
# TensorStore's and JAX's, where no number of the system's comes with them.
_STATUSES = (
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED",
    "PERMISSION_DENIED", "UNAUTHENTICATED",
)  # fmt: skip


def fault(error: BaseException) -> str | None:
    """Why the storage failed; None where what is stored is at fault."""
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


def read(what: object, action: Callable[[], T], say: Say = None) -> T:
    """Does something that reads; again for two minutes, while the storage is at fault.

    Args:
      what: is read, for messages; a file that the error names takes its place.
      action: may be done many times.
      say: takes a line when it is tried again.

    Raises:
      ReadError: after two minutes, or at once where access is denied; it names the file. Other
        errors of `action` pass.
    """

    def attempt() -> T:
        try:
            return action()
        except Exception as error:
            if why := fault(error):
                if why.startswith(_DENIED):
                    raise ReadError(
                        f"{what} cannot be read: {why} ({file_of(error) or what}); nothing was "
                        f"changed"
                    ) from error
                # As `retry` knows an error that may pass, whatever its kind and number were.
                raise OSError(errno.EIO, why, file_of(error) or str(what)) from error
            raise

    return retry.reading(attempt, str(what), say=say, seconds=retry.SECONDS)


def bytes_of(path: Path) -> bytes:
    """What a file holds; the `OSError` of a read names the file, as that of opening does."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def file_of(error: BaseException) -> str | None:
    """The file that an error names, if it does."""
    for part in _chain(error):
        if isinstance(part, OSError) and part.filename:
            return str(part.filename)
        for quoted, bare in re.findall(r'"(/[^"]*[^"/])"|open file (/.+?): ', str(part)):
            return quoted or bare
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    now: BaseException | None = error
    while now is not None:
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)
