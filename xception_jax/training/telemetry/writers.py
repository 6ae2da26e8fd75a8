"""Log writers by name: outputs for the metrics of a run, in addition to `metrics.jsonl`.

A writer is a class decorated with `register("name")` and selected by `log.writers`. A Python file
of the user can add one. Only process 0 has writers.
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

from xception_jax.config.registry import Registry
from xception_jax.errors import UsageError
from xception_jax.utils.files import write_atomically

# The maximum time that a run waits for all writers at its end.
_PATIENCE_S = 60.0
# Writers run in separate threads, but store their ids in one file.
_IDS = threading.Lock()


@dataclass(frozen=True)
class RunInfo:
    """The arguments of a writer.

    Attributes:
      workdir: the run's folder, where a writer can store files.
      start: the number of steps before this start. A killed run can have written records of later
        steps.
      config: the flat config, `{"data.batch_size": 64, ...}`.
    """

    workdir: Path
    start: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    def recall(self, name: str, make: Callable[[], str]) -> str:
        """A string that is created once per workdir, such as the id of a run at a server."""
        path = self.workdir / "log_ids.json"

        def ids() -> dict[str, str]:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

        if name in (known := ids()):
            return str(known[name])
        made = make()  # can be slow, so without the lock
        with _IDS:
            write_atomically(path, json.dumps({**ids(), name: made}) + "\n")
        return made


class LogWriter:
    """Receives the records of a run.

    A writer is created and called in its own thread, so that a slow server does not delay a step.
    If it raises, the run prints a line and continues without it.

    Attributes:
      place: where the metrics are written, a path or an address; the run prints it once.
    """

    place: str = ""

    def __init__(self, info: RunInfo):
        """Creates the writer; earlier starts of the run can already have written records."""

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the metrics of a step; `kind` is `train`, `eval` or `time`.

        After a kill, repeated steps are written again with the same values.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Makes written records reach their place; called every half minute and before waits."""

    def close(self, failed: bool) -> None:
        """Called at the end of the process; `failed` says whether an error ended the run."""


def close_all(opened: Sequence[LogWriter], failed: bool) -> None:
    """Closes writers, and waits for their threads for at most a minute."""
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
    install: str  # the argument of `pip install`
    local: bool


_KINDS = Registry[_Kind]("log writer")


def register(
    name: str, *, needs: str = "", install: str = "", local: bool = False
) -> Callable[[MakeWriter], MakeWriter]:
    """Decorates a log writer for `config.log.writers`.

    Args:
      name: the writer's name.
      needs: a package that it imports; a run refuses to start without it.
      install: the argument of `pip install` for it, if not `needs`.
      local: whether it only writes files. Then it is called without a separate thread, and its
        errors end the run.

    Raises:
      UsageError: the name is already used.
    """

    def decorate(make: MakeWriter) -> MakeWriter:
        _KINDS.add(name, _Kind(make, needs, install or needs, local), make)
        return make

    return decorate


def check(names: Sequence[str]) -> None:
    """Raises `UsageError` if a writer is unknown or its package is missing."""
    for name in names:
        kind = _KINDS.find(name, "config.log.writers")
        if kind.needs and not _is_installed(kind.needs):
            raise UsageError(
                f"config.log.writers has {name!r}, which needs: pip install '{kind.install}'"
            )


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; an empty folder such as W&B's `wandb` does not count."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def create(name: str, info: RunInfo, say: Callable[[str], None]) -> LogWriter:
    """Creates a writer that passed `check`; see `Background` for the arguments."""
    kind = _KINDS.find(name)
    return kind.make(info) if kind.local else Background(name, info, kind.make, say)


class Background(LogWriter):
    """Runs a writer in a separate thread.

    Args:
      name: its name in `log.writers`.
      info: the writer's argument.
      make: creates the writer.
      say: prints a line.
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
        except BaseException as error:  # any kind, even SystemExit: it can be users' code
            self._error = error
            if writer:
                with contextlib.suppress(BaseException):
                    writer.close(True)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """See `LogWriter`; returns immediately."""
        self._put(lambda writer: writer.write(kind, step, metrics))

    def flush(self) -> None:
        """See `LogWriter`; returns immediately."""
        self._put(lambda writer: writer.flush())

    def close(self, failed: bool) -> None:
        """See `LogWriter`; returns immediately, see `join`."""
        self._put(lambda writer: writer.close(failed))
        self._queue.put(None)

    def join(self, until: float) -> None:
        """Waits until everything is written, at most until a time of `time.monotonic`."""
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._error = TimeoutError(f"it did not finish in {_PATIENCE_S:.0f} s")
        self._tell()

    def _put(self, call: Callable[[LogWriter], None]) -> None:
        self._tell()
        if self._name:
            self._queue.put(call)

    def _tell(self) -> None:
        """Prints once where the metrics are written, and once that the writer failed."""
        if self._place:
            self._say(f"log: {self._name} writes to {self._place}")
            self._place = ""
        if self._error and self._name:
            reason = (str(self._error).strip().splitlines() or [type(self._error).__name__])[0]
            self._say(f"NOTE: the log writer {self._name} failed: {reason}; the run goes on")
            self._name = ""  # write nothing more
