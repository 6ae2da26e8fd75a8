"""Measures the start of a run: import, help, the first step and the first line of progress.

    python -m benchmarks.startup
    python -m benchmarks.startup --rounds 3 --output benchmarks/results/startup.csv

Each round starts the README's first command twice, each time in a new process: with an empty
compilation cache (cold), then with the resulting cache (warm). Times are seconds of wall clock from
the start of the command.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import arguments, record
from benchmarks.arguments import count

ROOT = Path(__file__).parents[1]
_FIRST_LINE = "compilation included"


def seconds_of(*command: str) -> float:
    """Seconds from the start of a command to its end."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def first_progress(config: str, cache: Path) -> dict[str, float]:
    """Seconds to the first line of a run's output, and to the line of its first step."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", "xception_jax.main", f"--config={config}", f"--workdir={folder}"]
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        assert process.stdout is not None
        found: dict[str, float] = {}
        for line in process.stdout:
            found.setdefault("first line", time.perf_counter() - begin)
            if _FIRST_LINE in line:
                found["first progress"] = time.perf_counter() - begin
                break
        process.kill()
        process.wait()
    if "first progress" not in found:
        raise SystemExit(f"the run of {config} ended before its first step; run it by hand")
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/digits.py", help="config (%(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        times.setdefault(what, []).append(round(seconds, 2))
        print(f"{what}: {seconds:.2f} s", flush=True)

    for _ in range(options.rounds):
        note("import xception_jax.train", seconds_of("-c", "import xception_jax.train"))
        note("main --help", seconds_of("-m", "xception_jax.main", "--help"))
        with tempfile.TemporaryDirectory() as cache:
            for state in ("cold", "warm"):
                for what, seconds in first_progress(options.config, Path(cache)).items():
                    note(f"{what}, {state} cache", seconds)
    rows = [
        {
            "what": what,
            "median_s": round(statistics.median(found), 2),
            "min_s": min(found),
            "max_s": max(found),
            "rounds": len(found),
        }
        for what, found in times.items()
    ]
    for row in rows:
        print(f"{row['what']:35} {row['median_s']:7} s")
    if options.output:
        notes = {
            "machine": record.machine(),
            "versions": record.versions(["jax", "flax", "orbax-checkpoint", "grain"]),
        }
        record.write(options.output, rows, notes)


if __name__ == "__main__":
    arguments.run(main)
