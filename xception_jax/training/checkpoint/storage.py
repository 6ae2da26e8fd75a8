"""Reading a checkpoint's files, where the storage may be at fault: then they are no damage."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from xception_jax.errors import ReadError
from xception_jax.utils import retry

T = TypeVar("T")
Say = Callable[[str], None] | None  # None: standard error


def read(what: object, action: Callable[[], T], say: Say = None) -> T:
    """Does something that reads; again for two minutes, while the storage is at fault.

    Args:
      what: is read, for messages.
      action: may be done many times.
      say: takes a line when it is tried again.

    Raises:
      ReadError: after two minutes, or at once where access is denied; it names the file. Other
        errors of `action` pass.
    """
    try:
        return retry.reading(action, str(what), say=say, seconds=retry.SECONDS)
    except Exception as error:
        if why := retry.fault(error):  # access is denied: else it would have been tried again
            raise ReadError(
                f"{what} cannot be read: {why} ({retry.file_of(error) or what}); nothing was "
                f"changed"
            ) from error
        raise


def bytes_of(path: Path) -> bytes:
    """What a file holds; the `OSError` of a read names the file, as that of opening does."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
