"""The metrics of a run: `metrics.jsonl`, TensorBoard's events, and the other log writers.

A bucket that is mounted as a folder (gcsfuse) only gets a file's data when the file is closed. Data
of an open file is lost if the machine fails. So files are closed soon after a write, and opened
again to append.
"""

import importlib.util
import itertools
import json
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import BufferedWriter
from pathlib import Path
from typing import Any

import google_crc32c

from xception_jax.training.telemetry import (
    trackers,  # noqa: F401 (registers its writers)
    writers,
)
from xception_jax.training.telemetry.writers import LogWriter, RunInfo
from xception_jax.utils.files import write_atomically
from xception_jax.utils.numbers import for_json

TENSORBOARD = "tensorboard"

# Closing a file in a mounted bucket uploads it, which takes up to about a second.
_FLUSH_AFTER_S = 30.0
_MASK = 0xA282EAD8

_numbers = itertools.count()


def _messages() -> tuple[Any, Any]:
    """The modules of tensorboardX that define an event and its summary, without the rest of it.

    A full import also imports torch if installed, which costs each command 3 seconds.
    """
    spec = importlib.util.find_spec("tensorboardX")
    assert spec is not None
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # a path for imports, no code
    try:
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        del sys.modules[spec.name]
        if before:
            sys.modules[spec.name] = before
    return event_pb2, summary_pb2


_EVENT, _SUMMARY = _messages()


# Here the writers of this package are registered.
check_writers = writers.check


class Records:
    """Appends records to the files of a run, and passes them to its writers. It must be closed.

    Args:
      workdir: the run's folder; None writes nothing.
      start: the number of steps before this start. Records of later steps, which a killed run has
        left, are deleted.
      names: names of the writers, see `writers`.
      config: the run's flat config, for the writers.
      say: prints a line about a writer.
      clock: the time in seconds.
    """

    def __init__(
        self,
        workdir: Path | None,
        start: int,
        *,
        names: Sequence[str] = (TENSORBOARD,),
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._clock, self._flushed = clock, clock()
        self._lines: _File | None = None
        self._writers: list[LogWriter] = []
        self._unflushed = True
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        _forget_after(path, start)
        self._lines = _File(path)
        info = RunInfo(workdir, start, config or {})
        self._writers = [writers.create(name, info, say) for name in dict.fromkeys(names)]

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Appends the metrics of a step; `kind` is `train`, `eval` or `time`.

        A value that is not finite is null in `metrics.jsonl`. The writers get it unchanged.
        """
        if self._lines:
            record = {"kind": kind, "step": step, "time": time.time(), **for_json(metrics)}
            self._lines.append(f"{json.dumps(record)}\n".encode())
        for writer in self._writers:
            writer.write(kind, step, metrics)
        self._unflushed = True
        self.tick()

    def tick(self) -> None:
        """Flushes if it is time; call it at least every half minute."""
        if self._clock() - self._flushed >= _FLUSH_AFTER_S:
            self.flush()

    def flush(self) -> None:
        """Makes written data reach the bucket; call it before a long wait."""
        if not self._unflushed:
            return
        self._unflushed, self._flushed = False, self._clock()
        if self._lines:
            self._lines.close()
        for writer in self._writers:
            writer.flush()

    def close(self, failed: bool = False) -> None:
        """Ends the records; `failed` says whether an error ended the run."""
        self.flush()
        writers.close_all(self._writers, failed)


@writers.register(TENSORBOARD, local=True)
class _Events(LogWriter):
    """TensorBoard's events, written in the same thread, as `metrics.jsonl`."""

    def __init__(self, info: RunInfo):
        now = time.time()
        # TensorBoard reads files of the same second in the order of their names.
        name = f"events.out.tfevents.{int(now):010}.{socket.gethostname()}"
        self._file = _File(info.workdir / f"{name}.{info.start:012}.{next(_numbers)}")
        self._write_event(_EVENT.Event(wall_time=now, file_version="brain.Event:2"))
        begun = _EVENT.SessionLog(status=_EVENT.SessionLog.START)
        self._write_event(_EVENT.Event(wall_time=now, step=info.start + 1, session_log=begun))

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        values = [
            _SUMMARY.Summary.Value(tag=f"{kind}/{name}", simple_value=float(value))
            for name, value in metrics.items()
        ]
        summary = _SUMMARY.Summary(value=values)
        self._write_event(_EVENT.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        self._file.close()

    def _write_event(self, event: Any) -> None:
        """Appends an event as a tfrecord: its length and its bytes, each with a checksum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.append(length + _checksum(length) + data + _checksum(data))


class _File:
    """A file to append to, which can be closed in between."""

    def __init__(self, path: Path):
        self._path = path
        self._file: BufferedWriter | None = None
        self.append(b"")

    def append(self, data: bytes) -> None:
        """Appends data; other processes on this machine can then read it."""
        self._file = self._file or self._path.open("ab")
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Closes the file; the next `append` opens it again."""
        if self._file:
            file, self._file = self._file, None
            file.close()


def read(workdir: Path) -> list[dict[str, Any]]:
    """The records of a run in the order of writing, without an incomplete last one."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for record in map(_parsed, lines) if record]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) and "step" in record else None


def _forget_after(path: Path, step: int) -> None:
    """Deletes the records of steps after `step`, and an incomplete last line of a killed run."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (record := _parsed(line)) and record["step"] <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _checksum(data: bytes) -> bytes:
    """The checksum of a tfrecord: a masked CRC-32C."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
