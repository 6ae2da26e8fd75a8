"""Retries reads after transient errors: a failed read does not mean damaged data.

A stalled network file system, a full table of open files or a lack of memory says nothing about the
bytes of a file. Data counts as bad only if its bytes are bad or the file is gone.
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
# The first and the longest pause between attempts, as shares of `SECONDS`; pauses double.
_FIRST, _LONGEST = 1 / 240, 1 / 6

# Codes about the file itself: it is gone, is not a file, or is too large. Every other code is about
# access to it. So an unknown code stops a run and never counts as bad data.
_LASTING = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
        *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EFBIG, errno.EOVERFLOW),
    }
)
# Denied access stays denied until a person grants it, so a retry is useless.
_DENIED = (os.strerror(errno.EACCES), os.strerror(errno.EPERM), "PERMISSION_DENIED",
           "UNAUTHENTICATED")  # fmt: skip
# C++ libraries raise errors without `errno`. TensorStore's messages end in the code; Orbax wraps
# them in an error with less detail. Others contain the system's text for the code, as
# `pread() failed: Input/output error; reading PATH`, or begin with the name of a status.
_CODE = re.compile(r"\[os_error_code='(\d+)'\]")
_TEXTS = tuple({os.strerror(code) for code in errno.errorcode if code not in _LASTING})
_STATUS = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|PERMISSION_DENIED|"
    "UNAUTHENTICATED): "
)


def fault(error: BaseException) -> str | None:
    """Why access to the data failed, in one line; None if the data or the program is at fault.

    The errors that it was raised from are examined too. Two of our errors are final: an
    `ExampleError` is about bytes, and a `ReadError` comes after all retries. A lack of device
    memory is not a fault of the storage.
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
    """Whether a read error is transient, so that it says nothing about the data."""
    why = fault(error)
    return why is not None and not any(text in why for text in _DENIED)


def out_of_device_memory(error: BaseException) -> bool:
    """Whether JAX raised it because an array or a program is too large for the device."""
    return any(
        re.match("RESOURCE_EXHAUSTED: .*(out of memory|allocat|reserv)", str(part), re.I | re.S)
        and not any(known in str(part) for known in _TEXTS)
        for part in _chain(error)
    )


def wanted_memory(error: BaseException) -> str:
    """The memory that a program or an array needed, from JAX' message; "" if it has no figure."""
    for part in _chain(error):
        if of := re.search(r"Used ([\d.]+\w*) of ([\d.]+\w*) hbm", str(part)):
            return f"it wanted {of[1]} of {of[2]}"
        if one := re.search(r"(?:allocat|reserv)\w* ([\d.]+)( bytes|[KMGT]\w*)", str(part)):
            number = f"{int(one[1]) / 2**30:,.2f} GiB" if one[2] == " bytes" else one[1] + one[2]
            return f"it wanted {number}"
    return ""


def file_of(error: BaseException) -> str | None:
    """The file that an error names, or one of the errors that it was raised from."""
    for part in _chain(error):
        if isinstance(part, OSError) and part.filename:
            name = part.filename
            return os.fsdecode(name) if isinstance(name, bytes) else str(name)
        for quoted, bare in re.findall(r'"(/[^"]*[^"/])"|open file (/.+?): ', str(part)):
            return str(quoted or bare)
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, the error that it was raised from, and so on."""
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
    """Returns `action()`; after transient errors it retries, with growing pauses.

    Args:
      action: reads something; called once for each attempt.
      name: name of the data, for messages.
      say: prints once that a read failed; None: standard error.
      seconds: no attempt starts later than this after the first.
      first_pause: seconds before the second attempt; None: 1/240 of `seconds`, half a second of two
        minutes. Each later pause is twice as long, up to a sixth of `seconds`.
      reopen: called after each transient error.

    Raises:
      ReadError: the time is over, and the last error was also transient.
      Exception: any other error of `action`, at once.
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
