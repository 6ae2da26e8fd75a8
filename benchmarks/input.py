"""Measures the input, from files to batches, beside tf.data and torch's DataLoader.

All read the same JPEGs (of 110 KB, made on first use) on the same core, take random crops of the
same size, and flip them if that is the host's work. Each contender is a process in its own virtual
environment. In each round every contender has its turn, while the others are suspended with their
threads and child processes. So the cost of a turn's batches falls into that turn. CPU time is that
of all threads and child processes; on one core, wall time is at least as long.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import arguments, pictures, record
from benchmarks.arguments import count
from benchmarks.contenders import VENVS, Peer, interpreters, start_worker
from benchmarks.turns import Rounds, digits, take_turns, times
from xception_jax.runtime import cache

PEERS = {
    "ours": Peer("input_ours", "threads"),
    "ours_workers": Peer("input_ours", "workers"),
    "ours_whole": Peer("input_ours", "whole"),
    "floor": Peer("input_ours", "floor"),
    "tf_bicubic": Peer("input_tf", "bicubic", "keras_tf"),
    "tf_bilinear": Peer("input_tf", "bilinear", "keras_tf"),
    "tf_bilinear_uint8": Peer("input_tf", "bilinear_uint8", "keras_tf"),
    "torch": Peer("input_torch", "", "torch"),
}
PICTURES = cache.folder() / "pictures"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.input --peers ours floor tf_bilinear --rounds 3",
    )
    add = parser.add_argument
    add("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME",
        help=f"of {', '.join(PEERS)} (all)")  # fmt: skip
    add("--side", type=count, default=299, help="side of the crops, pixels (%(default)s)")
    add("--batch", type=count, default=64, help="(%(default)s)")
    add("--rounds", type=count, default=5, help="(%(default)s)")
    add("--seconds", type=float, default=3.0, help="minimum length of a turn (%(default)s)")
    add("--pictures", type=Path, default=PICTURES, help="folder, made if missing (%(default)s)")
    add("--output", type=Path, help="CSV file (benchmarks/results/input.csv)")
    add("--venvs", type=Path, default=VENVS, help="folder of the peers' venvs (%(default)s)")
    options = parser.parse_args()
    options.output = options.output or record.RESULTS / "input.csv"
    return options


def main() -> int:
    """Measures, prints and writes; returns 1 if a contender is missing."""
    options = parse()
    folder = pictures.write(options.pictures.expanduser().absolute())
    peers = {name: PEERS[name] for name in options.peers}
    pythons, missing = interpreters((p.venv for p in peers.values()), "cpu", options.venvs)
    request = {
        "kind": "input",
        "side": options.side,
        "batch": options.batch,
        "cores": [max(os.sched_getaffinity(0))],
        "seconds": options.seconds,
        "data": str(folder),
    }
    starts = {
        name: partial(start_worker, name, peer, pythons[peer.venv], "cpu", request)
        for name, peer in peers.items()
        if peer.venv in pythons
    }
    rounds, ready, lost = take_turns(starts, options.rounds, "cpu")
    rows = [row_of(name, rounds, options) for name in rounds]
    for row in rows:
        print(f"{row['contender']:20}{row['cpu_ms_per_image_median']:>10} CPU-ms an image, "
              f"{row['ratio_cpu']} of ours, {row['peak_memory_mib']} MiB")  # fmt: skip
    notes = {"machine": record.machine(), "platform": "cpu", "cores": "1"}
    for name, said in ready.items():
        notes[f"{name} ran"] = ", ".join(f"{k} {v}" for k, v in said["versions"].items())
    if rows:
        record.write(options.output, rows, notes)
    for line in [*missing, *lost]:
        print(f"missing: {line}")
    return 1 if missing or lost else 0


def row_of(name: str, rounds: Rounds, options: argparse.Namespace) -> dict[str, Any]:
    """A row of the result file.

    Columns: see `turns.times`. `peak_memory_mib` sums the peaks of the process and its children;
    pages that they share count in each.
    """
    row = {
        "contender": name,
        "side": options.side,
        "batch": options.batch,
        **times(rounds, name),
        "rounds": len(rounds[name]),
        "peak_memory_mib": max(turn["memory_mib"] for turn in rounds[name]),
    }
    return {k: digits(v) if isinstance(v, float) else v for k, v in row.items()}


if __name__ == "__main__":
    arguments.run(main)
