"""The figures of a run: `metrics.jsonl`, TensorBoard's events, and the other log writers.

A bucket that is mounted as a folder (gcsfuse) gets the data of a file when it is closed. Until then
they are lost with the machine. So files are closed soon after something was written, and opened
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

# A close is an upload of the file, which takes a mounted bucket up to a second or so.
_FLUSH_AFTER_S = 30.0
_MASK = 0xA282EAD8

_numbers = itertools.count()


def _messages() -> tuple[Any, Any]:
    """The modules of tensorboardX that define an event and its summary, without the rest of it.

    To import all of it imports torch too, where that is installed: 3 seconds more for each command.
    """
    spec = importlib.util.find_spec("tensorboardX")
    assert spec is not None
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where to look, and no more
    try:
        from tensorboardX.proto import event_pb2, summary_pb2
    finally:
        del sys.modules[spec.name]
        if before:
            sys.modules[spec.name] = before
    return event_pb2, summary_pb2


_EVENT, _SUMMARY = _messages()


# Here, where those of this package have been registered.
check_writers = writers.check


class Records:
    """Appends records to the files of a run, and gives them to its writers; to be closed.

    Args:
      workdir: the run's folder; None: writes nowhere.
      start: steps done before; what was written of later ones, by a run that was killed, goes.
      names: of the writers, see `writers`.
      config: of the run, flat, for the writers.
      say: takes a line on a writer.
      clock: seconds.
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

        A value that is not finite is null in `metrics.jsonl`. The writers take it as it is.
        """
        if self._lines:
            record = {"kind": kind, "step": step, "time": time.time(), **for_json(metrics)}
            self._lines.append(f"{json.dumps(record)}\n".encode())
        for writer in self._writers:
            writer.write(kind, step, metrics)
        self._unflushed = True
        self.tick()

    def tick(self) -> None:
        """Flushes if that is due; to be called about every half a minute."""
        if self._clock() - self._flushed >= _FLUSH_AFTER_S:
            self.flush()

    def flush(self) -> None:
        """What was written reaches the bucket; to be called before a long wait."""
        if not self._unflushed:
            return
        self._unflushed, self._flushed = False, self._clock()
        if self._lines:
            self._lines.close()
        for writer in self._writers:
            writer.flush()

    def close(self, failed: bool = False) -> None:
        """To be called at the end; `failed`: by an error."""
        self.flush()
        writers.close_all(self._writers, failed)


@writers.register(TENSORBOARD, local=True)
class _Events(LogWriter):
    """TensorBoard's events. Like `metrics.jsonl`, they are written where they are made."""

    def __init__(self, info: RunInfo):
        now = time.time()
        # Files of one second are read in the order of their names.
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
        """As a record of a tfrecord file: its length and it, each with its checksum."""
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.append(length + _checksum(length) + data + _checksum(data))


class _File:
    """A file that is open while there is something to append."""

    def __init__(self, path: Path):
        self._path = path
        self._file: BufferedWriter | None = None
        self.append(b"")

    def append(self, data: bytes) -> None:
        """Others on this machine can read the data afterwards."""
        self._file = self._file or self._path.open("ab")
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """It is opened again when there is more."""
        if self._file:
            file, self._file = self._file, None
            file.close()


def read(workdir: Path) -> list[dict[str, Any]]:
    """The records of a run in the order of writing, without one that a kill has cut short."""
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
    """Drops the records of steps after `step`, and a line that a killed run left half-written."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if (record := _parsed(line)) and record["step"] <= step]
    write_atomically(path, "".join(f"{line}\n" for line in kept))


def _checksum(data: bytes) -> bytes:
    """Of a tfrecord: CRC-32C, turned and shifted."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
