"""The worker's end of a measurement: `python worker.py NAME` serves the peer in `NAME.py`.

Runs in every peer's virtual environment, so this module imports only the standard library and
modules of our package that need nothing else. The parent writes lines of JSON to the standard input
and reads answers from the standard output:

    <- {"kind": "training", "side": 96, ...}   the fields of `Work`, once
    -> {"compile_seconds": ..., ...}           built, compiled and warm
    <- {}                                      one round, as often as the parent likes
    -> {"wall": ..., "cpu": ..., ...}          seconds an image, and the most memory so far

After each answer the parent suspends this process and its children until the next message, so that
no batches are made ahead during other turns. A turn continues where the one before, or the warm-up,
ended. It starts with as many prepared batches as it leaves, so its time is the cost of its own
batches.

A peer's module has `build(work)`, which makes the model and its input and returns `run(steps)`.
This function returns when the last step is done. A module may also have `facts(work)`, which
returns more fields for the answer. The module is imported after the process is bound to its cores,
since XLA, torch and TensorFlow size their thread pools on import.
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
    """The parent's request.

    Attributes:
      kind: `forward` or `training`.
      side: side of the images, pixels.
      batch: images a step.
      dtype: dtype of the computation, `float32` or `bfloat16`.
      model: a name of `xception_jax.models`; peers other than ours have only `xception`.
      overrides: overrides of the model's arguments.
      variant: variant of the peer, see its module.
      platform: `cpu` or `gpu`.
      cores: numbers of the cores to run on; none: all cores.
      keep_memory: see `xception_jax.runtime.allocator`.
      seconds: minimum length of a turn, by the rate of the warm-up.
      packages: packages whose versions are reported.
      data: folder of pictures, for peers that only read.
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
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # Otherwise the parent waits for an answer while a child outlives this process.
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
    # Before the warm-up, since this is a pause in which batches are made ahead.
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
    """Seconds a step in the steady state.

    Runs steps without a pause, each time twice as many as before, until they take `seconds`. Then
    the batches prepared before the last run are negligible.
    """
    steps = 1
    while (took := _seconds(run, steps)["wall"]) < seconds:
        steps *= 2
    return took / steps


def _seconds(run: Callable[[int], None], steps: int) -> dict[str, float]:
    """Wall and CPU seconds of `run(steps)`, as `wall` and `cpu`."""
    begin = _clocks()
    run(steps)
    return {name: now - begin[name] for name, now in _clocks().items()}


def _clocks() -> dict[str, float]:
    """The time, and the CPU time of all threads and children."""
    children = sum(_cpu_of(child) for child in _children())
    return {"wall": time.perf_counter(), "cpu": time.process_time() + children}


def _cpu_of(process: int) -> float:
    """User and system CPU seconds of another process, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_memory() -> float:
    """Peak resident MiB of this process and its children, on Linux.

    The sum of the single peaks; shared pages count in each process.
    """
    kilobytes = 0
    for process in (os.getpid(), *_children()):
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        kilobytes += int(status.partition("VmHWM:")[2].split()[0])
    return kilobytes / 1024


def _children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid]


if __name__ == "__main__":
    # The peers' modules import `Work` from `worker`, which must be this module, not a second one.
    sys.modules["worker"] = sys.modules["__main__"]
    serve(sys.argv[1])
