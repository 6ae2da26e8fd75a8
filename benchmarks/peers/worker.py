"""The worker's end of a measurement: `python worker.py NAME` serves the peer in `NAME.py`.

Runs in every peer's virtual environment, so nothing but the standard library is imported here,
and of our package what needs no more than that.
The parent writes lines of JSON on the standard input and reads answers on the standard output:

    <- {"kind": "training", "side": 96, ...}   the fields of `Work`, once
    -> {"compile_seconds": ..., ...}           built, compiled and warm
    <- {}                                      one round, as often as the parent likes
    -> {"wall": ..., "cpu": ..., ...}          seconds an image, and what it spent while waiting

A peer's module has `build(work)`, which makes the model and its input and returns `run(steps)`:
that many steps, and not before the last of them is done does it return. A module may also have
`facts(work)`, more things to tell the parent, and `PREFETCHES = True`: what it does while it waits
is for its next turn, and counts. The module is imported after the process has been
bound to its cores, since XLA, torch and TensorFlow size their thread pools when they start.
"""

import importlib
import json
import math
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from xception_jax.allocator import keep_freed_memory


@dataclass(frozen=True)
class Work:
    """What the parent asks for.

    Attributes:
      kind: `forward` or `training`.
      side: of the images, in pixels.
      batch: images a step.
      dtype: `float32` or `bfloat16`, of the computation.
      model: a name of `xception_jax.models`; the peers other than ours know `xception` alone.
      overrides: of the model's arguments.
      variant: of the peer, see its module.
      platform: `cpu` or `gpu`.
      cores: numbers of the cores to stay on; none: all that there are.
      keep_memory: see `xception_jax.allocator`.
      seconds: that a round should take at least.
      packages: whose versions to report.
      data: folder of pictures, for the peers that only read.
    """

    kind: str
    side: int
    batch: int
    dtype: str = "float32"
    model: str = "xception"
    overrides: dict[str, Any] = field(default_factory=dict)
    variant: str = ""
    platform: str = "cpu"
    cores: tuple[int, ...] = ()
    keep_memory: bool = False
    seconds: float = 1.0
    packages: tuple[str, ...] = ()
    data: str = ""


def serve(name: str) -> None:
    """Serves the peer in the module `name` until the standard input ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work = Work(**json.loads(sys.stdin.readline()))
    if work.cores:
        os.sched_setaffinity(0, work.cores)
    if work.keep_memory and not keep_freed_memory():
        raise SystemExit("no mallopt here, so freed memory cannot be kept; --allocator default")

    peer = importlib.import_module(name)
    run = peer.build(work)
    first = _seconds(run, 1)
    warm = _seconds(run, 1)
    steps = max(1, math.ceil(work.seconds / warm["wall"]))
    answer(
        {
            "compile_seconds": first["wall"] - warm["wall"],
            "steps": steps,
            "versions": {package: metadata.version(package) for package in work.packages},
            **(peer.facts(work) if hasattr(peer, "facts") else {}),
        }
    )
    since = _clocks()
    for _ in sys.stdin:
        waited = _since(since)
        spent = _seconds(run, steps)
        if getattr(peer, "PREFETCHES", False):
            spent["cpu"] += waited["cpu"]
            waited["cpu"] = 0.0
        images = steps * work.batch
        answer(
            {
                "wall": spent["wall"] / images,
                "cpu": spent["cpu"] / images,
                "waited_wall": waited["wall"],
                "waited_cpu": waited["cpu"],
                "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
        since = _clocks()


def _clocks() -> dict[str, float]:
    """The time, and what all threads and all children have spent of the processor's."""
    children = sum(_cpu_of(child.pid) for child in multiprocessing.active_children())
    return {"wall": time.perf_counter(), "cpu": time.process_time() + children}


def _cpu_of(process: int | None) -> float:
    """User's and system's seconds of another process, from Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _since(then: dict[str, float]) -> dict[str, float]:
    return {name: now - then[name] for name, now in _clocks().items()}


def _seconds(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """What `run(steps)` takes."""
    begin = _clocks()
    run(steps)
    return _since(begin)


if __name__ == "__main__":
    # The peers' modules `from worker import Work`: let them find this module, not a second one.
    sys.modules["worker"] = sys.modules["__main__"]
    serve(sys.argv[1])
