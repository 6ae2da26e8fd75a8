"""Where the figures of a run go besides `metrics.jsonl`: writers, by name.

A writer is a class with `register("name")`, that `log.writers` names. A file beside the user's
config can add one. Process 0 alone has writers.
"""

import contextlib
import importlib.util
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xception_jax.config.registry import Registry, where_is
from xception_jax.errors import UsageError
from xception_jax.utils.files import write_atomically

# What servers may take at the end of a run, all together, until the run ends without them.
_PATIENCE_S = 60.0
# Each writer has a thread of its own, and all keep their ids in one file.
_IDS = threading.Lock()


@dataclass(frozen=True)
class RunInfo:
    """What a writer is made from.

    Attributes:
      workdir: the run's folder, where a writer can keep files.
      start: steps done before; a run that was killed may have written records of later ones.
      config: flat, `{"data.batch_size": 64, ...}`.
    """

    workdir: Path
    start: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def recall(self, name: str, make: Callable[[], str]) -> str:
        """A text, as the id of a run at a server, that is made once in the life of a workdir."""
        path = self.workdir / "log_ids.json"

        def ids() -> dict[str, str]:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

        if name in (known := ids()):
            return str(known[name])
        made = make()  # may ask a server: nobody waits for it
        with _IDS:
            write_atomically(path, json.dumps({**ids(), name: made}) + "\n")
        return made


class LogWriter:
    """Takes the records of a run.

    It is made and called in a thread of its own, so that a slow server holds up no step. Where it
    raises, the run says so in a line and goes on without it.

    Attributes:
      place: where people find the figures, a path or an address; the run says it once.
    """

    place: str = ""

    def __init__(self, info: RunInfo):
        """A writer of a run, which may go on with what an earlier process of it has written."""

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step; `kind` is `train`, `eval` or `time`.

        After a kill, steps that were done again come again, with the same values.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """What was written reaches its place; about every half a minute, and before long waits."""

    def close(self, failed: bool) -> None:
        """At the end of the process; `failed`: by an error."""


def close_all(opened: Sequence[LogWriter], failed: bool) -> None:
    """Closes writers, and waits for those with threads of their own, a minute at most."""
    for writer in opened:
        writer.close(failed)
    until = time.monotonic() + _PATIENCE_S
    for writer in opened:
        if isinstance(writer, Background):
            writer.join(until)


MakeWriter = Callable[[RunInfo], LogWriter]


@dataclass(frozen=True)
class _Kind:
    make: MakeWriter
    needs: str  # a package
    install: str  # what pip is to install
    local: bool


_KINDS = Registry[_Kind]("log writer")


def register(
    name: str, *, needs: str = "", install: str = "", local: bool = False
) -> Callable[[MakeWriter], MakeWriter]:
    """Decorates a writer that `config.log.writers` can name.

    Args:
      name: of the writer.
      needs: a package that it imports; a run refuses to start without it.
      install: what `pip install` is to be given then, if not `needs`.
      local: it writes files, and is called without a thread of its own; its errors end the run.

    Raises:
      UsageError: the name is taken.
    """

    def decorate(make: MakeWriter) -> MakeWriter:
        _KINDS.add(name, _Kind(make, needs, install or needs, local), where_is(make))
        return make

    return decorate


def check(names: Sequence[str]) -> None:
    """Raises `UsageError` for a writer that is unknown, or whose package is missing."""
    for name in names:
        kind = _KINDS.find(name, "config.log.writers")
        if kind.needs and not _is_installed(kind.needs):
            raise UsageError(
                f"config.log.writers names {name!r}, which needs: pip install '{kind.install}'"
            )


def _is_installed(package: str) -> bool:
    """A mere folder of that name, as W&B leaves where it runs, is no package."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def create(name: str, info: RunInfo, say: Callable[[str], None]) -> LogWriter:
    """A writer that `check` knows; see `Background` for the arguments."""
    kind = _KINDS.find(name)
    return kind.make(info) if kind.local else Background(name, info, kind.make, say)


class Background(LogWriter):
    """A writer in a thread of its own.

    Args:
      name: as `log.writers` has it.
      info: what it is made from.
      make: makes it.
      say: takes a line.
    """

    def __init__(self, name: str, info: RunInfo, make: MakeWriter, say: Callable[[str], None]):
        self._name, self._say = name, say
        self._queue: queue.SimpleQueue[Callable[[LogWriter], None] | None] = queue.SimpleQueue()
        self._place = ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=lambda: self._work(make, info), daemon=True)
        self._thread.start()

    def _work(self, make: MakeWriter, info: RunInfo) -> None:
        writer: LogWriter | None = None
        try:
            writer = make(info)
            self._place = writer.place
            while call := self._queue.get():
                call(writer)
        except BaseException as error:  # of any kind, SystemExit too: the writer may be anybody's
            self._error = error
            if writer:
                with contextlib.suppress(BaseException):
                    writer.close(True)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """See `LogWriter`; returns at once."""
        self._put(lambda writer: writer.write(kind, step, metrics))

    def flush(self) -> None:
        """See `LogWriter`; returns at once."""
        self._put(lambda writer: writer.flush())

    def close(self, failed: bool) -> None:
        """See `LogWriter`; returns at once, see `join`."""
        self._put(lambda writer: writer.close(failed))
        self._queue.put(None)

    def join(self, until: float) -> None:
        """Waits until all is written, or for a time of `time.monotonic`."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._error = TimeoutError(f"it did not take everything in {_PATIENCE_S:.0f} s")
        self._tell()

    def _put(self, call: Callable[[LogWriter], None]) -> None:
        self._tell()
        if self._name:
            self._queue.put(call)

    def _tell(self) -> None:
        """Says, once each, where the figures go and that they do not any more."""
        if self._place:
            self._say(f"log: {self._name} writes to {self._place}")
            self._place = ""
        if self._error and self._name:
            reason = (str(self._error).strip().splitlines() or [type(self._error).__name__])[0]
            self._say(f"NOTE: the log writer {self._name} failed: {reason}; the run goes on")
            self._name = ""  # nothing more is written
