"""Errors that are reported in one line, never as a traceback."""

import difflib
import os
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input, exit code 2. The message is one line: the fault, what was expected, the fix."""


class NoSplitError(UsageError):
    """A data set without the split that was asked for."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class RunError(RuntimeError):
    """A run that cannot continue. The message is one line, reported with exit code 1."""


class ReadError(RunError):
    """A file that cannot be read at present (see `retry`). It says nothing about its data."""


class ExampleError(RunError):
    """An unusable example. A run skips it while `data.max_skipped` allows.

    Args:
      name: the name of the example: its file, or its number and split.
      reason: continues a sentence that begins with the name: `cannot be read: Permission denied`.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it can be pickled
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} {self.reason}"


def of_system(error: OSError) -> str:
    """An error of the operating system in one line: the file, if it names one, and the reason."""
    reason = error.strerror or str(error).partition("\n")[0] or type(error).__name__
    return f"{os.fsdecode(error.filename)}: {reason}" if error.filename else reason
