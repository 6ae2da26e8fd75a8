"""The worker's end of a measurement: `python worker.py NAME` serves the peer in `NAME.py`.

Runs in every peer's virtual environment, so nothing but the standard library is imported here,
and of our package what needs no more than that.
The parent writes lines of JSON on the standard input and reads answers on the standard output:

    <- {"kind": "training", "side": 96, ...}   the fields of `Work`, once
    -> {"compile_seconds": ..., ...}           built, compiled and warm
    <- {}                                      one round, as often as the parent likes
    -> {"wall": ..., "cpu": ..., ...}          seconds an image, and the most memory so far

After each answer the parent stops this process and its children until it asks again, so that
nothing is made ahead while others have their turn. A turn follows on the one before, or on the
warm-up, as if there had been no pause: with as much begun ahead as it leaves behind, so what it
takes is what its own batches cost.

A peer's module has `build(work)`, which makes the model and its input and returns `run(steps)`:
that many steps, and not before the last of them is done does it return. A module may also have
`facts(work)`, more things to tell the parent. The module is imported after the process has been
bound to its cores, since XLA, torch and TensorFlow size their thread pools when they start.
"""

import importlib
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from xception_jax.runtime.allocator import keep_freed_memory


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
      keep_memory: see `xception_jax.runtime.allocator`.
      seconds: that a turn should take at least, by the rate of the warm-up.
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
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Else a child that outlives this process keeps the parent waiting for an answer.
    os.register_at_fork(after_in_child=answers.close)

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    work = Work(**json.loads(sys.stdin.readline()))
    if work.cores:
        os.sched_setaffinity(0, work.cores)
    if work.keep_memory and not keep_freed_memory():
        raise SystemExit("no mallopt here, so freed memory cannot be kept; --allocator default")

    peer = importlib.import_module(name)
    run = peer.build(work)
    first = _seconds(run, 1)["wall"]
    # Not after the warm-up, for it is a pause in which batches are made ahead.
    said = {
        "versions": {package: metadata.version(package) for package in work.packages},
        **(peer.facts(work) if hasattr(peer, "facts") else {}),
    }
    warm = _warm_up(run, work.seconds)
    steps = max(1, math.ceil(work.seconds / warm))
    answer({"compile_seconds": first - warm, "steps": steps, **said})
    for _ in sys.stdin:
        spent = _seconds(run, steps)
        images = steps * work.batch
        answer({**{clock: s / images for clock, s in spent.items()}, "memory_mib": _peak_memory()})


def _warm_up(run: Callable[[int], None], seconds: float) -> float:
    """Seconds a step takes in the steady state.

    Steps are run without a pause, each time twice as many as before, until that takes `seconds`.
    By then what was made before the first of the last run's steps is nothing beside them.
    """
    steps = 1
    while (took := _seconds(run, steps)["wall"]) < seconds:
        steps *= 2
    return took / steps


def _seconds(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """What `run(steps)` takes: of the time (`wall`) and of the processor's (`cpu`)."""
    begin = _clocks()
    run(steps)
    return {name: now - begin[name] for name, now in _clocks().items()}


def _clocks() -> dict[str, float]:
    """The time, and what all threads and all children have spent of the processor's."""
    children = sum(_cpu_of(child) for child in _children())
    return {"wall": time.perf_counter(), "cpu": time.process_time() + children}


def _cpu_of(process: int) -> float:
    """User's and system's seconds of another process, from Linux."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_memory() -> float:
    """MiB that this process and its children have had resident at most, from Linux.

    The sum of each one's own peak; pages that they share count in each.
    """
    kilobytes = 0
    for process in (os.getpid(), *_children()):
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        kilobytes += int(status.partition("VmHWM:")[2].split()[0])
    return kilobytes / 1024


def _children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


if __name__ == "__main__":
    # The peers' modules `from worker import Work`: let them find this module, not a second one.
    sys.modules["worker"] = sys.modules["__main__"]
    serve(sys.argv[1])
