"""Ends all processes of a run when one of them fails; all print the reason in one line.

Otherwise the others would wait in a computation until JAX's runtime misses the heartbeats and ends
them from C++. So the failing process stores its line in JAX's coordination service, which a thread
of each process reads every second.
"""

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from typing import Any, NoReturn

from xception_jax.runtime import interrupts
from xception_jax.utils.text import printable

_LINE, _SEEN = "xception_jax/end", "xception_jax/seen/"
_LOOK_S = 1.0
# How long process 0, the last to end, waits until the others have read the line.
_FAREWELL_S = 10.0
# Additional time for their last instructions: JAX aborts a process that still runs when the service
# is gone.
_GRACE_S = 2.0

_watch: "_Watch | None" = None


def watch(process: int, processes: int) -> None:
    """Starts watching for the failure of another process; JAX must have connected them."""
    global _watch
    _watch = _Watch(process, processes)
    _watch.start()
    atexit.register(_watch.stop)  # runs before JAX disconnects, whose handler is older


def watched() -> bool:
    """Whether this process is one of several that watch each other."""
    return _watch is not None


def for_all(line: str, code: int, *, lost: bool = False) -> NoReturn:
    """Ends all processes of the run with a line.

    Args:
      line: the reason.
      code: the exit code of all processes.
      lost: whether the other processes seem to be lost. If one of them has stored a line, that line
        is printed instead.
    """
    assert _watch is not None
    _watch.end(line, code, lost)


class _Watch(threading.Thread):
    """Watches for a line from another process; ends this process when there is one."""

    def __init__(self, process: int, processes: int):
        super().__init__(daemon=True, name="ending")
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._process, self._processes = process, processes
        self._over, self._ending = threading.Event(), threading.Lock()

    def stop(self) -> None:
        """Stops watching, at the normal end of a run."""
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(_LOOK_S):
            if (found := self._found()) and self._ending.acquire(blocking=False):
                self._leave(*found)

    def _found(self) -> tuple[str, int] | None:
        try:
            line, code = json.loads(self._client.key_value_try_get(_LINE))
        except Exception:  # NOT_FOUND; or the service is gone, and JAX ends this process
            return None
        return line, code

    def end(self, line: str, code: int, lost: bool) -> NoReturn:
        """Stores the line for the others, unless there is one already, and ends this process."""
        self._ending.acquire()  # never returns if the thread is already ending this process
        if lost:
            until = time.monotonic() + 3 * _LOOK_S
            while not (found := self._found()) and time.monotonic() < until:
                time.sleep(0.1)
            if found:
                self._leave(*found)
        where = f" (process {self._process} of {self._processes})"
        with contextlib.suppress(Exception):  # an earlier line is not overwritten
            self._client.key_value_set(_LINE, json.dumps([line + where, code]))
        self._leave(line, code)

    def _leave(self, line: str, code: int) -> NoReturn:
        """Prints the line and ends the process; process 0, which runs the service, ends last."""
        try:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            interrupts.say(f"error: {printable(line)}")
            with contextlib.suppress(Exception):
                self._client.key_value_set(f"{_SEEN}{self._process}", "")
                until = time.monotonic() + _FAREWELL_S
                while self._process == 0 and time.monotonic() < until:
                    if len(self._client.key_value_dir_get(_SEEN)) == self._processes:
                        time.sleep(_GRACE_S)
                        break
                    time.sleep(0.1)
        finally:
            os._exit(code)  # at a normal exit JAX would wait for the others and abort from C++
