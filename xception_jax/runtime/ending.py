"""How a run of several processes ends when one of them cannot go on: all say why, in one line.

Left alone, the others would wait for it in a computation, until JAX's runtime misses its heartbeats
and ends them from C++. So the process that fails leaves its line in JAX's coordination service,
where a thread of each process looks every second.
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
# How long the last to end waits for the others to have read why.
_FAREWELL_S = 10.0
# And for their last instructions after that: JAX aborts a process that still runs when the service
# is gone.
_GRACE_S = 2.0

_watch: "_Watch | None" = None


def watch(process: int, processes: int) -> None:
    """Begins to look whether another process has ended; JAX must have connected them."""
    global _watch
    _watch = _Watch(process, processes)
    _watch.start()
    atexit.register(_watch.stop)  # runs before JAX disconnects, which was registered earlier


def watched() -> bool:
    """Whether this process is one of several, who hear of its end."""
    return _watch is not None


def for_all(line: str, code: int, *, lost: bool = False) -> NoReturn:
    """Ends all processes of the run with a line.

    Args:
      line: why.
      code: that all exit with.
      lost: the others seem to be lost. If one of them has said why, that is the line to say.
    """
    assert _watch is not None
    _watch.end(line, code, lost)


class _Watch(threading.Thread):
    """Looks for the line that another process has left; ends this one when it finds one."""

    def __init__(self, process: int, processes: int):
        super().__init__(daemon=True, name="ending")
        from jax._src import distributed

        self._client: Any = distributed.global_state.client
        self._process, self._processes = process, processes
        self._over, self._ending = threading.Event(), threading.Lock()

    def stop(self) -> None:
        """The run ends well: looks no more."""
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
        """Leaves the line for the others, unless one was faster, and ends this process."""
        self._ending.acquire()  # while the thread is ending this process, for ever
        if lost:
            until = time.monotonic() + 3 * _LOOK_S
            while not (found := self._found()) and time.monotonic() < until:
                time.sleep(0.1)
            if found:
                self._leave(*found)
        where = f" (process {self._process} of {self._processes})"
        with contextlib.suppress(Exception):  # the first line stays
            self._client.key_value_set(_LINE, json.dumps([line + where, code]))
        self._leave(line, code)

    def _leave(self, line: str, code: int) -> NoReturn:
        """Says the line and ends the process; process 0, which holds the service, last."""
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
            os._exit(code)  # JAX would wait for the others at its end, and end from C++
