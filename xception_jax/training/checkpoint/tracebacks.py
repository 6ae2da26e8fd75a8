"""Writes Orbax's own tracebacks to a file, so that users see one line with its path."""

import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


class Tracebacks(logging.Filter):
    """A context manager in which Orbax's logs with a traceback are kept, not shown.

    Args:
      folder: where `write` puts them. If it is not writable, the system's folder for temporary
        files is used.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._kept: list[str] = []
        self._logger = logging.getLogger("absl")

    def __enter__(self) -> "Tracebacks":
        self._logger.addFilter(self)
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def __exit__(self, *exception: object) -> None:
        self._logger.removeFilter(self)
        sys.unraisablehook = self._hook

    def _unraisable(self, told: Any) -> None:
        """Keeps TensorStore's errors: each of its reads and writes can call a closed event loop."""
        if isinstance(told.exc_value, RuntimeError) and "Event loop is closed" in str(
            told.exc_value
        ):
            lines = traceback.format_exception(told.exc_type, told.exc_value, told.exc_traceback)
            self._kept.append("".join(lines))
        else:
            self._hook(told)

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by `logging`; keeps Orbax's records of exceptions."""
        if record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname:
            self._kept.append(logging.Formatter("%(asctime)s %(message)s").format(record))
            return False
        return True

    def write(self) -> Path | None:
        """Appends the kept records to a file; returns its path, or None if there are none."""
        if not self._kept:
            return None
        text = "".join(f"{one}\n" for one in self._kept)
        path = self._folder / "checkpoint-errors.log"
        there = path.exists()
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError:  # for example a full disk, which can also be the error to report
            if not there:
                path.unlink(missing_ok=True)
            try:
                number, name = tempfile.mkstemp(prefix="checkpoint-errors-", suffix=".log")
                with open(number, "w", encoding="utf-8") as file:
                    file.write(text)
            except OSError:
                return None
            path = Path(name)
        self._kept.clear()
        return path
