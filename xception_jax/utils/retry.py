"""Reads that failed for a passing reason are tried again: a failed read is not damaged data.

A network file system that stalls, a full table of open files or a lack of memory says nothing
about the bytes of a file. Data counts as bad only when its bytes are bad, or the file is gone.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from xception_jax.errors import ExampleError, ReadError
from xception_jax.utils.console import make_console

Result = TypeVar("Result")

# Attempts continue for this long, in seconds.
SECONDS = 120.0
# The pauses between them, as shares of that: the first, and the longest that doubling leads to.
_FIRST, _LONGEST = 1 / 240, 1 / 6

# Codes that tell of the file: it is gone, is no file, or is too large. Every other code tells of
# the way to it. So an unknown code stops a run; it never counts as bad data.
_LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW),
    }
)
# Access that is denied stays denied until a person grants it: another attempt is of no use.
_DENIED = (os.strerror(errno.EACCES), os.strerror(errno.EPERM), "PERMISSION_DENIED",
           "UNAUTHENTICATED")  # fmt: skip
# C++ libraries raise errors without `errno`. TensorStore's messages end in the code, around which
# Orbax raises an error that says less. Others contain the system's text of the code, as
# `pread() failed: Input/output error; reading PATH`, or begin with the name of a status.
_CODE = re.compile(r"\[os_error_code='(\d+)'\]")
_TEXTS = tuple({os.strerror(code) for code in errno.errorcode if code not in _LASTING})
_STATUS = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|PERMISSION_DENIED|"
    "UNAUTHENTICATED): "
)


def fault(error: BaseException) -> str | None:
    """Why the way to the data failed, in one line; None where the data is at fault, or the program.

    An error is judged with those that it was raised from. Our own are judged already: an
    `ExampleError` is about bytes, and a `ReadError` has had its attempts. Memory that a device
    lacks is not the storage's fault.
    """
    if out_of_device_memory(error):
        return None
    for part in _chain(error):
        text = str(part).strip().partition("\n")[0]
        if isinstance(part, (ExampleError, ReadError)):
            return None
        if isinstance(part, MemoryError):
            return os.strerror(errno.ENOMEM)
        if isinstance(part, OSError) and part.errno is not None:
            return None if part.errno in _LASTING else part.strerror or repr(part)
        if code := _CODE.search(str(part)):
            number = int(code[1])
            return None if number in _LASTING else os.strerror(number)
        if _STATUS.match(text) or any(known in text for known in _TEXTS):
            return text[:300]
    return None


def transient(error: BaseException) -> bool:
    """Whether an error of reading may pass, so that it says nothing about the data."""
    why = fault(error)
    return why is not None and not any(text in why for text in _DENIED)


def out_of_device_memory(error: BaseException) -> bool:
    """Whether JAX raised it since an array or a program is too large for the device."""
    return any(
        re.match("RESOURCE_EXHAUSTED: .*(out of memory|allocat|reserv)", str(part), re.I | re.S)
        and not any(known in str(part) for known in _TEXTS)
        for part in _chain(error)
    )


def wanted_memory(error: BaseException) -> str:
    """What a program or an array wanted of a device, as JAX' message says it; "" if it does not."""
    for part in _chain(error):
        if of := re.search(r"Used ([\d.]+\w*) of ([\d.]+\w*) hbm", str(part)):
            return f"it wanted {of[1]} of {of[2]}"
        if one := re.search(r"(?:allocat|reserv)\w* ([\d.]+)( bytes|[KMGT]\w*)", str(part)):
            number = f"{int(one[1]) / 2**30:,.2f} GiB" if one[2] == " bytes" else one[1] + one[2]
            return f"it wanted {number}"
    return ""


def file_of(error: BaseException) -> str | None:
    """The file that an error names, or one of those that it was raised from."""
    for part in _chain(error):
        if isinstance(part, OSError) and part.filename:
            name = part.filename
            return os.fsdecode(name) if isinstance(name, bytes) else str(name)
        for quoted, bare in re.findall(r'"(/[^"]*[^"/])"|open file (/.+?): ', str(part)):
            return str(quoted or bare)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised from, and so on."""
    now: BaseException | None = error
    while now is not None:
        yield now
        now = now.__cause__ or (None if now.__suppress_context__ else now.__context__)


def reading(
    action: Callable[[], Result],
    name: str,
    *,
    say: Callable[[str], None] | None = None,
    seconds: float = SECONDS,
    first_pause: float | None = None,
    reopen: Callable[[], None] | None = None,
) -> Result:
    """Returns `action()`; tries again, with growing pauses, while it fails for a passing reason.

    Args:
      action: reads something; it is called anew for each attempt.
      name: of what is read, for messages.
      say: tells the user once that a read failed; None: standard error.
      seconds: no attempt begins later than this after the first.
      first_pause: seconds before the second attempt; None: half a second of two minutes. Each
        later pause is twice as long, up to a sixth of `seconds`.
      reopen: called when an attempt failed for a passing reason.

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
            why = fault(error)
            if why is None or not transient(error):
                raise
            if reopen:
                reopen()
            path = file_of(error)
            if path and path not in name:
                why += f" ({path})"
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
