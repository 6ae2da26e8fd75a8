"""Runs of the commands in real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
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
    return [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, lines)]


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
