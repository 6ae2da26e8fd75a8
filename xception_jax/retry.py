"""Reads that failed for a passing reason are tried again: a failed read is not damaged data.

A network file system that stalls, a full table of open files or a lack of memory says nothing
about the bytes of a file. Data counts as bad only when its bytes are bad, or the file is gone.
"""

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from xception_jax.console import make_console
from xception_jax.errors import ExampleError, ReadError

Result = TypeVar("Result")

# Attempts continue for this long, in seconds.
SECONDS = 120.0
# The pauses between them, as shares of that: the first, and the longest that doubling leads to.
_FIRST, _LONGEST = 1 / 240, 1 / 6

# Errors that another attempt does not cure: the file is gone, is no file, or access is denied.
# Every other code counts as passing. So an unknown code stops a run; it never replaces an example.
LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV, errno.EINVAL),
        *(errno.EFBIG, errno.EOVERFLOW),
    }
)
# C++ libraries raise errors without a code. Their messages contain the system's text of the code,
# as `pread() failed: Input/output error; reading PATH`, or begin with the name of a status.
_TEXTS = tuple(
    {os.strerror(code) for code in errno.errorcode if code not in LASTING}
    | {"UNAVAILABLE: ", "DEADLINE_EXCEEDED: ", "RESOURCE_EXHAUSTED: "}
)


def transient(error: BaseException) -> bool:
    """Whether an error of reading may pass, so that it says nothing about the data.

    An `OSError` is judged by its code alone; one without a code is lasting. `MemoryError` may
    pass. Any other error is judged by the message (see `_TEXTS`), but not our own: an
    `ExampleError` is about bytes, and a `ReadError` has had its attempts.
    """
    if isinstance(error, (ExampleError, ReadError)):
        return False
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in LASTING
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return any(part in text for part in _TEXTS)


def reading(
    action: Callable[[], Result],
    name: str,
    *,
    say: Callable[[str], None] | None = None,
    seconds: float = SECONDS,
    first_pause: float | None = None,
) -> Result:
    """Returns `action()`; tries again, with growing pauses, while it fails for a passing reason.

    Args:
      action: reads something; it is called anew for each attempt.
      name: of what is read, for messages.
      say: tells the user once that a read failed; None: standard error.
      seconds: no attempt begins later than this after the first.
      first_pause: seconds before the second attempt; None: half a second of two minutes. Each
        later pause is twice as long, up to a sixth of `seconds`.

    Raises:
      ReadError: the time is over, and the last attempt failed for a passing reason too.
      Exception: what `action` raises for any other reason, at once.
    """
    begun, attempts = time.monotonic(), 0
    pause = seconds * _FIRST if first_pause is None else first_pause
    while True:
        try:
            return action()
        except Exception as error:
            if not transient(error):
                raise
            why = reason(error)
            path = getattr(error, "filename", None)
            if path and os.fsdecode(path) not in name:
                why += f" ({os.fsdecode(path)})"
        attempts += 1
        left = begun + seconds - time.monotonic()
        if left <= 0:
            raise ReadError(
                f"{name} cannot be read: {why}; {attempts} attempts in {seconds:g} "
                f"seconds failed. Nothing is known to be wrong with the data: check the disk or "
                f"network, then start the same command again"
            ) from None
        if attempts == 1:
            tell = say or make_console(stderr=True).print
            tell(f"{name} cannot be read at present: {why}; trying again for {seconds:g} seconds")
        time.sleep(min(pause, left))
        pause = min(2 * pause, seconds * _LONGEST)


def reason(error: BaseException) -> str:
    """Why a read failed, in one line."""
    text = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
    return text or (os.strerror(errno.ENOMEM) if isinstance(error, MemoryError) else repr(error))
