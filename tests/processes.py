"""Runs of the commands in real processes."""

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"xception_jax.{module}", *flags]


def finish(
    module: str, *flags: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        command(module, *flags),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def result(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON line of a command that succeeded, the only one on standard output."""
    assert process.returncode == 0, process.stderr
    [line] = process.stdout.splitlines()
    return json.loads(line)


def signal_at(step: int, number: signal.Signals, module: str, *flags: str) -> tuple[int, str]:
    """Starts a command and sends it a signal as soon as it tells of a step.

    Returns:
      Its exit code, and what it printed on standard output.
    """
    said = []
    with subprocess.Popen(
        command(module, *flags),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"step {step}/"):
                process.send_signal(number)
    return process.returncode, "".join(said)


def digests(workdir: Path, step: int) -> dict[str, dict[str, int]]:
    """The digests of all arrays of a checkpoint: equal where every bit is."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["digests"]


def records(workdir: Path) -> list[tuple[str, int, float]]:
    """`(train or eval, step, loss)` of each line of a run's metrics."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [(r["kind"], r["step"], r["loss"]) for r in found if r["kind"] != "time"]


def train_metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """Of each step that a run has logged, what the line says but for time and speed."""
    measured = {"kind", "step", "time", "images_per_second", "seconds_per_step", "seconds_left"}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    assert len({record["step"] for record in found}) == len(found), "each step once"
    return {
        record["step"]: {name: record[name] for name in record if name not in measured}
        for record in found
    }


def averaged(each_step: dict[int, dict[str, float]], every: int) -> dict[int, dict[str, float]]:
    """What lines of so many steps say, from lines of each step: exactly, in Python's floats."""
    found, window = {}, []
    for step, metrics in sorted(each_step.items()):
        window.append(metrics)
        if step % every == 0 or step == max(each_step):
            found[step] = {name: sum(one[name] for one in window) / len(window) for name in metrics}
            found[step]["learning_rate"] = metrics["learning_rate"]
            window = []
    return found


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the privilege to write anywhere, which a superuser has."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@dataclass
class Several:
    """Processes of one run on this machine, connected over loopback; standard error and output
    of each go to a file.
    """

    processes: list[subprocess.Popen[str]]
    outputs: list[Path]

    def said(self, process: int) -> str:
        return self.outputs[process].read_text()

    def wait_until(self, text: str, process: int = 0) -> None:
        """Waits until a process has said something; `AssertionError` if it ends without."""
        while text not in self.said(process):
            assert self.processes[process].poll() is None, self.said(process)
            time.sleep(0.02)

    def codes(self, timeout: float = 300) -> list[int]:
        """Waits for their ends."""
        until = time.monotonic() + timeout
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]


def free_port() -> int:
    """One of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def several(count: int, devices: int, folder: Path, module: str, *flags: str) -> Iterator[Several]:
    """Starts a command in `count` processes of `devices` virtual devices each; ends what is left.

    One process is a cluster of one: it takes the sums over its devices as several processes do.

    Args:
      folder: made, for the outputs.
    """
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"{process}.txt" for process in range(count)]
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONUNBUFFERED": "1",
    }
    processes = []
    try:
        for process, path in enumerate(outputs):
            where = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}",
                     f"--process_id={process}"]  # fmt: skip
            with path.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        command(module, *flags, *where),
                        cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, text=True,
                    )
                )  # fmt: skip
        yield Several(processes, outputs)
    finally:
        for left in processes:
            left.kill()
            left.wait()


def _as_foreground() -> None:
    """As a shell starts what a person types, even where it was told to ignore Ctrl-C itself."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A command on a terminal of its own, where Ctrl-C reaches all its processes; a context."""

    def __init__(self, module: str, *flags: str, env: dict[str, str] | None = None):
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            command(module, *flags), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "COLUMNS": "200", **(env or {})}, start_new_session=True,
            preexec_fn=_as_foreground,
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
        except OSError:  # nobody has the terminal open any more
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
            time.sleep(0.02)
