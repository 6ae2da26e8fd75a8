"""Measures the cost of a checkpoint's digests: bytes moved, and CPU time on one core.

    python -m benchmarks.digest

Bytes are XLA's counts for the compiled programs, for the state of `configs/imagenet.py`. They are
compared with the bytes of one training step on each slice of `benchmarks/results/plan.csv`.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import arguments, record
from benchmarks.arguments import count
from benchmarks.turns import digits
from configs import imagenet
from xception_jax.training import optimizer
from xception_jax.training import state as state_lib
from xception_jax.training.checkpoint import digest

CLASSES = 1000
PLAN = record.RESULTS / "plan.csv"

Row = dict[str, str]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=count, default=7, help="(%(default)s)")
    add("--width", type=float, default=1.0, help="width of the network (%(default)s)")
    add("--output", type=Path, default=record.RESULTS / "digest.csv", help="CSV file (%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    options = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    shapes = shapes_of_state(options.width)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    moved = {name: bytes_moved(program, shapes) for name, program in PROGRAMS.items()}
    rows = [row("the state", "MB", [held / 1e6])]
    rows += [row(f"{name}, bytes moved", "MB", [size / 1e6]) for name, size in moved.items()]
    for step in record.read(PLAN)[1]:
        images = float(step["images_a_device"])
        what = f"digest 2 beside a step on {step['topology']}, {images:g} images"
        share = moved["digest 2"] / (float(step["gbytes"]) * 1e9)
        rows.append(row(f"{what} a device", "% of its bytes", [100 * share]))
    took = cpu_times(shapes, options.rounds)
    rows += [row(name, "CPU s", values) for name, values in took.items()]
    for name in ("digest 2", "digest 1"):
        ratios = [own / plain for own, plain in zip(took[name], took["sum"], strict=True)]
        rows.append(row(f"{name} to sum", "ratio of CPU times", ratios))
    for each in rows:
        print(f"{each['what']:64}{each['median']:>9} {each['unit']}")
    notes = {
        "machine": record.machine(),
        "versions": record.versions(["jax"]),
        "rounds": str(options.rounds),
    }
    record.write(options.output, rows, notes)


def shapes_of_state(width: float) -> state_lib.TrainState:
    """The state of `configs/imagenet.py`, without its arrays."""
    config = imagenet.get_config()
    config.model.width = width
    transformation, _ = optimizer.from_config(config, 1_281_167)
    make = state_lib.model_maker(config, CLASSES)
    return state_lib.shapes_of(
        partial(state_lib.create, make, transformation, config.ema.decay > 0)
    )


@jax.jit
def _sum(leaf: jax.Array) -> jax.Array:
    """The cheapest operation that reads an array once."""
    return jnp.sum(leaf)


PROGRAMS: dict[str, Any] = {
    "digest 2": digest._digest,
    "digest 1": digest._digest_1,
    "sum": _sum,
}


def bytes_moved(program: Any, shapes: Any) -> float:
    """Bytes that the programs of all leaves move, on this platform."""
    found: dict[Any, float] = {}
    total = 0.0
    for leaf in jax.tree.leaves(shapes):
        key = leaf.shape, leaf.dtype
        if key not in found:
            found[key] = program.lower(leaf).compile().cost_analysis()["bytes accessed"]
        total += found[key]
    return total


def cpu_times(shapes: Any, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each program for a complete state; all run in turn in each round."""
    state = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)

    def plain() -> None:
        jax.block_until_ready([_sum(leaf) for leaf in jax.tree.leaves(state)])

    contenders: dict[str, Callable[[], Any]] = {
        "digest 2": lambda: digest.digests(state, 2),
        "digest 1": lambda: digest.digests(state, 1),
        "sum": plain,
    }
    took: dict[str, list[float]] = {name: [] for name in contenders}
    for measured in (False, *[True] * rounds):  # the first run compiles
        for name, run in contenders.items():
            before = time.process_time()
            run()
            if measured:
                took[name].append(time.process_time() - before)
    return took


def row(what: str, unit: str, values: list[float]) -> Row:
    """A line of the result file."""
    figures = {"median": median(values), "min": min(values), "max": max(values)}
    return {"what": what, "unit": unit, **{k: digits(v) for k, v in figures.items()}}


if __name__ == "__main__":
    arguments.run(main)
