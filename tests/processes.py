"""Runs of the commands in real processes."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tests import forks
from xception_jax import config as config_lib

ROOT = Path(__file__).parents[1]


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process on so many virtual devices, which compiles as all tests do."""
    name = "--xla_force_host_platform_device_count"
    return {"XLA_FLAGS": re.sub(rf"{name}=\d+", f"{name}={count}", os.environ["XLA_FLAGS"])}


def command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"xception_jax.{module}", *flags]


def finish(
    module: str, *flags: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end.

    Unless more of its environment is another than XLA's flags, it is forked from a process that has
    imported everything (see `forks`); with AS_USERS in the environment it never is.
    """
    env = env or {}
    if env.keys() <= {"XLA_FLAGS"} and not os.environ.get("AS_USERS"):
        return forks.run(module, *flags, env=env)
    return subprocess.run(
        command(module, *flags),
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def run_code(code: str, config: ConfigDict, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own to its end, which has the config as `given` and `folder`."""
    start = (
        "import json, pathlib, sys\n"
        "from xception_jax import config, evaluate, train\n"
        "given, folder = config.from_flat(json.loads(sys.argv[1])), pathlib.Path(sys.argv[2])\n"
    )
    flat = json.dumps(config_lib.flatten(config))
    process = subprocess.run(
        [sys.executable, "-c", start + code, flat, str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process


def result(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON line of a command that succeeded, the only one on standard output."""
    assert process.returncode == 0, process.stderr
    [line] = process.stdout.splitlines()
    return json.loads(line)


def signal_at(
    step: int, number: signal.Signals, module: str, *flags: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
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
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
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
    """The logged line of each step, without time and speed."""
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
    """A free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextlib.contextmanager
def started(folder: Path, tasks: Sequence[tuple[list[str], dict[str, str]]]) -> Iterator[Several]:
    """Starts processes, each of a command and its environment; ends what is left.

    Args:
      folder: made, for the outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f"{process}.txt" for process in range(len(tasks))]
    processes = []
    try:
        for path, (words, variables) in zip(outputs, tasks, strict=True):
            env = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
            with path.open("w") as file:
                processes.append(
                    subprocess.Popen(
                        words, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, text=True
                    )
                )
        yield Several(processes, outputs)
    finally:
        for left in processes:
            left.kill()
            left.wait()


@contextlib.contextmanager
def several(count: int, devices: int, folder: Path, module: str, *flags: str) -> Iterator[Several]:
    """Starts a command in `count` processes of `devices` virtual devices each; ends what is left.

    One process is a cluster of one: it takes the sums over its devices as several processes do.

    Args:
      folder: made, for the outputs.
    """
    where = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}"]
    env = on_devices(devices)
    tasks = [
        (command(module, *flags, *where, f"--process_id={process}"), env)
        for process in range(count)
    ]
    with started(folder, tasks) as processes:
        yield processes
