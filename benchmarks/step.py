"""Measures a forward pass and a training step of our model and its peers, side by side.

Each contender is a process in its own virtual environment; all are bound to the same cores. All
contenders of a work are built first. Then, in each round, every contender has its turn in a random
order, while the others are suspended. The results are medians over the rounds, and ratios to ours
within a round. So other load on the machine affects all contenders equally.
"""

import argparse
import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import arguments, record
from benchmarks.arguments import assignment, count
from benchmarks.contenders import (
    PEERS,
    VENVS,
    ContenderError,
    Peer,
    Worker,
    interpreters,
    start_worker,
)
from benchmarks.turns import Rounds, digits, take_turns, times

_EXAMPLE = """examples:
  python -m benchmarks.step --work training:96:8 --peers ours torch --rounds 5
  python -m benchmarks.step --work forward:75:1 --override width=0.1 middle_blocks=1 --rounds 2
"""
# The columns that identify a row.
_KEY = ("model", "work", "side", "batch", "dtype", "allocator", "contender")

Row = dict[str, Any]


class Work(NamedTuple):
    """`forward` or `training`, the images' side in pixels, and images a step."""

    kind: str
    side: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Work":
        """Parses `training:96:8`."""
        kind, side, batch = text.split(":")
        if kind not in ("forward", "training"):
            raise ValueError(kind)
        return cls(kind, int(side), int(batch))


@dataclass(frozen=True)
class Peak:
    """Peak performance of the machine, in a second of CPU time or a GPU's time.

    Attributes:
      flops: floating-point operations of a matrix product.
      bandwidth: bytes read and written by a copy.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Arena:
    """The settings that all works of a command share."""

    options: argparse.Namespace
    peers: Mapping[str, Peer]
    pythons: Mapping[str, Path]
    cores: tuple[int, ...]

    def start(
        self, name: str, peer: Peer, work: Work, allocator: str
    ) -> tuple[Worker, dict[str, Any]]:
        """A ready worker and its first answer; raises `ContenderError`."""
        options = self.options
        request = {
            **work._asdict(),
            "dtype": options.dtype,
            "model": options.model,
            "overrides": dict(options.override),
            "cores": self.cores,
            "keep_memory": allocator == "kept",
            "seconds": options.seconds,
        }
        return start_worker(name, peer, self.pythons[peer.venv], options.platform, request)


def main() -> int:
    """Measures, prints and writes; returns 1 if a contender is missing."""
    options = parse()
    earlier, kept = record.earlier(options.output) if options.append else ({}, [])
    peers = {name: PEERS[name] for name in options.peers}
    venvs = ["ours", *(peer.venv for peer in peers.values())]
    folder = None if options.installed else options.venvs
    pythons, missing = interpreters(venvs, options.platform, folder)
    peers = {name: peer for name, peer in peers.items() if peer.venv in pythons}
    arena = Arena(options, peers, pythons, cores_to_use(options))
    peak = measure_peak(arena)
    notes = {
        "machine": record.machine(),
        "platform": options.platform,
        "cores": str(len(arena.cores) or "all"),
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
        "peak": f"{peak.flops / 1e9:.1f} GFLOP/s, copy {peak.bandwidth / 1e9:.1f} GB/s",
    }
    print(f"{notes['machine']}; {notes['peak']}", flush=True)
    notes |= earlier
    rows: list[Row] = [dict(row) for row in kept]
    for work in options.work:
        for allocator in options.allocator:
            rounds, ready, lost = measure(arena, work, allocator)
            missing += lost
            for name, said in ready.items():
                versions = {**said["versions"], **_only(said, "device")}
                notes[f"{name} ran"] = ", ".join(f"{k} {v}" for k, v in versions.items())
            new = summary(arena, work, allocator, rounds, ready, peak)
            keys = {_key(row) for row in new}
            rows = [row for row in rows if _key(row) not in keys] + new
            if rows:
                record.write(options.output, rows, notes)
    print_table(rows)
    for line in missing:
        print(f"missing: {line}")
    return 1 if missing else 0


def parse() -> argparse.Namespace:
    """The command line, with defaults that depend on other arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="xception", help="a name of xception_jax.models (%(default)s)")
    add(
        "--override", nargs="*", default=[], type=assignment, metavar="NAME=VALUE",
        help="overrides of the model's arguments",
    )  # fmt: skip
    add(
        "--work", nargs="+", type=Work.parse, metavar="KIND:SIDE:BATCH",
        default=[Work("forward", 299, 8), Work("training", 96, 8), Work("training", 299, 4)],
        help="kind (forward or training), side of the images and images a step "
        "(forward:299:8 training:96:8 training:299:4)",
    )  # fmt: skip
    add(
        "--peers", nargs="+", choices=PEERS, metavar="NAME",
        help=f"of {', '.join(PEERS)} (all that support platform and model)",
    )  # fmt: skip
    add("--rounds", type=count, default=7, help="(%(default)s)")
    add("--seconds", type=float, default=1.0, help="minimum length of a turn (%(default)s)")
    add("--platform", choices=("cpu", "gpu"), help="(gpu if there is an NVIDIA driver)")
    add("--cores", type=int, default=1, help="on CPU: number of cores of a worker (%(default)s)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    add(
        "--allocator", nargs="+", choices=("default", "kept"),
        help="kept: freed memory stays in the process, in huge pages (on CPU both, else default)",
    )  # fmt: skip
    add("--output", type=Path, help="CSV file (benchmarks/results/step_PLATFORM.csv)")
    add("--append", action="store_true", help="keep other rows of an existing file")
    add("--venvs", type=Path, default=VENVS, help="folder of the peers' venvs (%(default)s)")
    add(
        "--installed", action="store_true",
        help="run the peers in this Python with its packages, on a machine without a network",
    )  # fmt: skip
    options = parser.parse_args()
    if options.platform is None:
        options.platform = "gpu" if Path("/proc/driver/nvidia").exists() else "cpu"
    options.output = options.output or record.RESULTS / f"step_{options.platform}.csv"
    both = ["default", "kept"] if options.platform == "cpu" else ["default"]
    options.allocator = options.allocator or both
    able = {
        name
        for name, peer in PEERS.items()
        if (peer.any_model or options.model == "xception")
        and (peer.overrides or not options.override)
    }
    for name in options.peers or []:
        if name not in able:
            parser.error(f"{name} does not know {options.model} with these overrides")
    suit = [name for name in PEERS if name in able and options.platform in PEERS[name].platforms]
    options.peers = options.peers or suit
    return options


def cores_to_use(options: argparse.Namespace) -> tuple[int, ...]:
    """The last of the cores that this process may use; none on a GPU, which means all."""
    if options.platform == "gpu":
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    if not 0 < options.cores <= len(allowed):
        raise SystemExit(f"--cores is {options.cores}; it takes 1 to {len(allowed)} here")
    return tuple(allowed[-options.cores :])


def measure_peak(arena: Arena) -> Peak:
    """The best rates of a large product and a large copy over some rounds."""
    best = {}
    clock = _clock(arena.options)
    for variant, unit in (("product", "flops"), ("copy", "bytes")):
        peer = Peer("machine", variant)
        worker, ready = arena.start(variant, peer, Work("forward", 0, 1), "default")
        with contextlib.closing(worker):
            seconds = min(worker.ask({})[clock] for _ in range(3))
        best[variant] = ready[f"{unit}_per_image"] / seconds
    return Peak(best["product"], best["copy"])


def measure(
    arena: Arena, work: Work, allocator: str
) -> tuple[Rounds, dict[str, dict[str, Any]], list[str]]:
    """Runs all contenders on one work, see `turns.take_turns`."""
    print(f"\n{':'.join(map(str, work))}, {arena.options.dtype}, allocator {allocator}")
    starts = {
        name: partial(arena.start, name, peer, work, allocator)
        for name, peer in arena.peers.items()
    }
    return take_turns(starts, arena.options.rounds, _clock(arena.options))


def summary(
    arena: Arena,
    work: Work,
    allocator: str,
    rounds: Rounds,
    ready: Mapping[str, Mapping[str, Any]],
    peak: Peak,
) -> list[Row]:
    """A row for each contender.

    Columns: see `turns.times`. `share_of_peak` is the work's multiply-adds (times two), divided by
    the time and `Peak.flops`. `share_of_bandwidth` is the minimum of bytes that it moves, divided
    by the time and `Peak.bandwidth`. For all contenders, both are counted in our model, see
    `peers/counts.py`. `compile_seconds` is the time of the first step minus that of a later one.
    `peak_memory_mib` is the host memory of the process and its children, see `peers/worker.py`.
    """
    clock = _clock(arena.options)
    needs = _only(ready.get("ours", {}), "flops_per_image", "bytes_per_image")
    rows = []
    for name, took in rounds.items():
        seconds = statistics.median(turn[clock] for turn in took)
        row = {
            "model": _model(arena.options),
            "work": work.kind,
            "side": work.side,
            "batch": work.batch,
            "dtype": arena.options.dtype,
            "allocator": allocator,
            "contender": name,
            **times(rounds, name),
            "share_of_peak": needs["flops_per_image"] / seconds / peak.flops if needs else "",
            "share_of_bandwidth": (
                needs["bytes_per_image"] / seconds / peak.bandwidth if needs else ""
            ),
            "compile_seconds": ready[name]["compile_seconds"],
            "rounds": len(took),
            "peak_memory_mib": max(turn["memory_mib"] for turn in took),
        }
        rows.append({k: digits(v) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Prints the main columns, aligned."""
    names = {
        "work": "work", "side": "side", "batch": "batch", "allocator": "allocator",
        "contender": "contender", "cpu_ms_per_image_median": "cpu ms", "ratio_cpu": "ratio",
        "wall_ms_per_image_median": "wall ms", "ratio_wall": "ratio",
        "share_of_peak": "of peak", "share_of_bandwidth": "of bandwidth",
        "compile_seconds": "compile s", "peak_memory_mib": "MiB",
    }  # fmt: skip
    lines = [list(names.values()), *([str(row[name]) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))


def _key(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def _model(options: argparse.Namespace) -> str:
    return " ".join([options.model, *(f"{name}={value}" for name, value in options.override)])


def _clock(options: argparse.Namespace) -> str:
    """The clock of the results: on CPU the time of all threads, which other load affects least."""
    return "wall" if options.platform == "gpu" else "cpu"


def _only(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


if __name__ == "__main__":
    try:
        arguments.run(main)
    except ContenderError as error:  # the machine's peak could not be measured
        raise SystemExit(str(error)) from None
