"""Reads a checkpoint's files, and distinguishes failures of the storage from damage."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xception_jax.errors import ReadError
from xception_jax.utils import retry

T = TypeVar("T")
Say = Callable[[str], None] | None  # None: standard error


def read(what: object, action: Callable[[], T], say: Say = None) -> T:
    """Runs an action that reads, and retries it for two minutes if the storage fails.

    Args:
      what: the name of what is read, for messages.
      action: can be run many times.
      say: prints a line before a retry.

    Raises:
      ReadError: after two minutes, or immediately if access is denied; it names the file. Other
        errors of `action` are not caught.
    """
    try:
        return retry.reading(action, str(what), say=say, seconds=retry.SECONDS)
    except Exception as error:
        if why := retry.fault(error):  # access is denied; other faults were retried
            raise ReadError(
                f"{what} cannot be read: {why} ({retry.file_of(error) or what}); nothing was "
                f"changed"
            ) from error
        raise


def bytes_of(path: Path) -> bytes:
    """The bytes of a file; an `OSError` from reading also names the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
