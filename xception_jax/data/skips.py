"""Examples that cannot be used: counted, limited, and named in a log.

`batches.Reader._fill_row` replaces them in a fixed way, by `order.candidates`.

Where record k of a training split cannot be used, its place in the stream goes to record k + 1, or
to the next one that can be. So what a step sees still depends on the seed, the step and the data
alone. A batch carries the reasons along, as text in its row: they survive worker processes.
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

# So many records one after the other are no accident: the folder is gone, or the disk.
IN_A_ROW = 100


class Skips:
    """What a run has skipped: each record is named in a log, and too many stop the run.

    All processes of a run count together, by their logs; one that continues goes on with the count.

    Args:
      workdir: for `skipped.jsonl`; processes other than the first put their number in the name.
        None: there is no log, and all are told.
      most: the share of a split that may be skipped.
      say: tells the user a line; of those in a log about the first alone.
      flag: what raises `most`.

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
        """Takes what was skipped for one example.

        Raises:
          RunError: it is more of the split than may be, or there was none to replace it.
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
        """All logs, as a shell names them."""
        alone = list(self._read_to) in ([], [own])
        return own if alone else own.with_name("skipped*.jsonl")

    def _read_logs(self) -> None:
        """Takes what is new in the logs, whole lines."""
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
        """Adds a line to the log; says it where there is none."""
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
    """Opens a log, and nothing that a stranger has put in its place: no link, no wait for a pipe.

    `evaluate` writes to it, of any run.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _entries(lines: bytes) -> Iterator[tuple[str, int]]:
    """Split and record of each line; half a line, of a run that was killed, is none."""
    for line in lines.splitlines():
        try:
            entry = json.loads(line)
            yield entry["split"], entry["record"]
        except (ValueError, KeyError, TypeError):
            continue
