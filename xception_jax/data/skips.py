"""Unusable examples: counted, limited, and listed in a log.

`batches.Reader._fill_row` replaces them in a fixed way, by `order.candidates`. If record k of a
training split is unusable, the next usable record after k takes its place in the stream. So the
examples of a step still depend on the seed, the step and the data alone. A batch carries the
reasons as text in its rows, so that they also arrive from worker processes.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from xception_jax.data.source import Source
from xception_jax.errors import RunError
from xception_jax.utils.text import printable

Skip = tuple[int, str, str]  # record, its name, the reason

# This many unusable records in a row mean that the folder or the disk is gone.
IN_A_ROW = 100


class Skips:
    """The skipped examples of a run: a log lists each record, and too many stop the run.

    All processes of a run share one count, through their logs. A resumed run continues the count.

    Args:
      workdir: folder of `skipped.jsonl`; processes other than the first add their number to the
        file name. None: no log, and every skipped example is printed.
      most: the share of a split that may be skipped.
      say: prints a line for the user; with a log, only for the first skipped example.
      flag: the flag that raises `most`, for the error message.

    Raises:
      RunError: the logs cannot be read.
    """

    def __init__(
        self,
        workdir: Path | None,
        most: float,
        say: Callable[[str], None],
        flag: str = "--allow_config_changes --config.data.max_skipped",
    ):
        process = jax.process_index()
        name = f"skipped.{process}.jsonl" if process else "skipped.jsonl"
        self._path = workdir / name if workdir else None
        self._most, self._say, self._flag = most, say, flag
        self._told = False
        self._seen: dict[str, set[int]] = {}
        self._read_to: dict[Path, int] = {}  # of each log, bytes
        self._read_logs()

    def add(self, source: Source, skipped: list[Skip]) -> None:
        """Adds the records that were skipped for one row.

        Raises:
          RunError: more of the split is skipped than allowed, or no replacement was found.
        """
        seen = self._seen.setdefault(source.name, set())
        if not seen.issuperset(record for record, _, _ in skipped):
            self._read_logs()  # of other processes
        for record, name, reason in skipped:
            if record not in seen:
                seen.add(record)
                entry = {"split": source.name, "record": record, "name": name, "reason": reason}
                self._write(entry)
            if self._path and not self._told:
                self._say(f"skipped: {printable(f'{name} {reason}')}; {self._path} names all")
                self._told = True
        count, share = len(seen), len(seen) / len(source)
        if share > self._most:
            fix = "fix those named above, or raise --config.data.max_skipped"
            if self._path:
                fix = (
                    f"{self._logs(self._path)} names them: fix them and remove it, or go on with "
                    f"{self._flag}={min(1.0, 2 * share):.1g}"
                )
            raise RunError(
                f"{count:,} of the {len(source):,} examples of {source.name} cannot be used, more "
                f"than the share of {self._most:g} that may be skipped; {fix}"
            )
        if len(skipped) >= min(IN_A_ROW, len(source)):
            named = f"; {self._path} names them" if self._path else ""
            raise RunError(
                f"{len(skipped)} examples of {source.name} in a row cannot be used{named}. Is the "
                f"data still there?"
            )

    def _logs(self, own: Path) -> Path:
        """The logs of all processes, as one shell pattern."""
        alone = list(self._read_to) in ([], [own])
        return own if alone else own.with_name("skipped*.jsonl")

    def _read_logs(self) -> None:
        """Reads the new complete lines of the logs."""
        for path in sorted(self._path.parent.glob("skipped*.jsonl")) if self._path else ():
            try:
                with open(path, "rb", opener=_opened) as file:
                    file.seek(self._read_to.get(path, 0))
                    lines = file.read().rpartition(b"\n")[0]
            except OSError as error:
                raise RunError(f"{path} cannot be read: {error.strerror}") from None
            self._read_to[path] = self._read_to.get(path, 0) + len(lines)
            for split, record in _entries(lines):
                self._seen.setdefault(split, set()).add(record)

    def _write(self, entry: dict[str, Any]) -> None:
        """Adds a line to the log; prints it if there is no log."""
        if not self._path:
            self._say(f"skipped: {printable(entry['name'])} {printable(entry['reason'])}")
            return
        try:
            with open(self._path, "ab+", opener=_opened) as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read() != b"\n":  # a killed run left half a line
                        file.write(b"\n")
                file.write(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise RunError(f"{self._path} cannot be written: {error.strerror}") from None


def _opened(path: str, flags: int) -> int:
    """Opens a log safely: follows no link and does not wait for a pipe.

    `evaluate` writes to the log of any run, also of an untrusted one.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _entries(lines: bytes) -> Iterator[tuple[str, int]]:
    """Split and record of each line; incomplete lines of a killed run are ignored."""
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            yield entry["split"], entry["record"]
        except (ValueError, KeyError, TypeError):
            continue
