"""Commands on a terminal of their own, as a person starts them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.processes import ROOT, command

# Becomes the command, as a shell starts what a person types: the terminal is its own, and Ctrl-C is
# not ignored. (A `preexec_fn` would fork, of which JAX warns.)
_IN_FOREGROUND = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command on a terminal of its own, where Ctrl-C reaches all its processes; a context."""

    def __init__(self, module: str, *flags: str, env: dict[str, str] | None = None):
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_FOREGROUND, *command(module, *flags)],
            cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "COLUMNS": "200", **(env or {})}, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.said = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)

    def wait_until(self, text: str) -> None:
        """Reads until the command has said something; `AssertionError` if it ends without."""
        while text not in self.said:
            more = self._read()
            assert more, self.said
            self.said += more

    def press_ctrl_c(self) -> None:
        os.write(self._ours, b"\x03")

    def end(self) -> int:
        """Reads all that is still said; the exit code."""
        while more := self._read():
            self.said += more
        return self.process.wait()

    def _read(self) -> str:
        try:
            return os.read(self._ours, 2**16).decode(errors="replace")
        except OSError:  # no process has the terminal open
            return ""

    def alive(self) -> list[int]:
        """The processes of the terminal's session that run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = stat.read_text().rpartition(") ")[2].split()
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found

    def shared_memory(self) -> set[Path]:
        """What the processes have mapped of memory that has a name in the system."""
        found = set()
        for pid in self.alive():
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{pid}/maps").read_text()
                found |= {Path(line) for line in re.findall(r" (/dev/shm/\S+)$", maps, re.M)}
        return found

    def wait_for_native_code(self, part: str) -> None:
        """Waits until the command has loaded a library whose path has this part."""
        while part not in Path(f"/proc/{self.process.pid}/maps").read_text():
            assert self.process.poll() is None, f"it ended; {part} was not loaded"
            time.sleep(0.02)
