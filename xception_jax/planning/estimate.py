"""Memory and time of one step on one device, from the compiler's figures and the chip's rates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xception_jax.planning.tpu.chips import Chip, Topology
from xception_jax.planning.tpu.costs import COLLECTIVES, Cost, Program, exposed_cycles

SCHEDULE = "schedule: for each operation the larger of the compiler's schedule and bytes/bandwidth"
ROOFLINE = "roofline: the larger of flops/peak and bytes/bandwidth of the step; a lower bound"
NONE = "none: the rates of these devices are unknown"

# Bytes over a link for each byte of the payload, on rings and lines. An all-reduce is a
# reduce-scatter and an all-gather, and each of those uses both directions of a link.
_OVER_LINK = {"all-reduce": 1.0, "reduce-scatter": 0.5, "all-gather": 0.5}


@dataclass(frozen=True)
class Memory:
    """Bytes of a device's memory that a step takes.

    Attributes:
      arguments, outputs: the state and the batch; the results.
      aliased: outputs that reuse the memory of arguments (the state is donated).
      temporary: intermediate arrays.
      program: the instructions.
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    program: int

    @property
    def total(self) -> int:
        """The sum that the compiler compares with the device's memory."""
        return self.arguments + self.outputs - self.aliased + self.temporary + self.program


@dataclass(frozen=True)
class Collective:
    """The collectives of a kind in one step: their number and total bytes.

    `inside` is the number between layers, see `costs.Cost`.
    """

    kind: str
    count: int
    bytes: int
    inside: int


@dataclass(frozen=True)
class Step:
    """One step on one device.

    Attributes:
      memory: its memory.
      flops: operations, as XLA counts them in the compiled program.
      bytes: bytes moved between the device and its memory.
      collectives: the collectives, by kind.
      estimate: the method of the time estimate, one of the texts above.
      seconds: time of a step; None if the rates are unknown.
      best_seconds: the same if asynchronous copies between HBM and on-chip memory take no time
        while an operation leaves the memory idle.
      collective_seconds: the part of `seconds` for collectives, counted without overlap.
      unscheduled: operations without a schedule, which count by their bytes only.
      compile_s: compilation time, seconds.
    """

    memory: Memory
    flops: float
    bytes: float
    collectives: tuple[Collective, ...]
    estimate: str
    seconds: float | None = None
    best_seconds: float | None = None
    collective_seconds: float = 0.0
    unscheduled: int = 0
    compile_s: float = 0.0


def of_tpu(
    figures: Mapping[str, Any], hlo: str, cycles: Mapping[str, int], topology: Topology
) -> Step:
    """A step by the TPU compiler's figures.

    Args:
      figures: see `compiler.Answer`.
      hlo: the scheduled program.
      cycles: cycles of its operations; without schedules it is empty, and the estimate is the
        roofline.
      topology: the target of the compilation.
    """
    chip = topology.chip
    costs = list(Program(hlo, cycles).costs())
    communication = _collective_seconds(costs, topology)
    common = {
        "memory": Memory(**figures["memory"]),
        "flops": figures["flops"],
        "collectives": collectives(costs),
        "collective_seconds": communication,
        "compile_s": figures["compile_s"],
    }
    if not cycles:
        seconds = roofline(figures["flops"], figures["bytes_accessed"], chip) + communication
        return Step(**common, bytes=figures["bytes_accessed"], estimate=ROOFLINE, seconds=seconds,
                    best_seconds=seconds)  # fmt: skip
    computed = sum(max(c.cycles, chip.memory_cycles(c.bytes)) for c in costs) / chip.ghz / 1e9
    copies = chip.memory_cycles(sum(c.bytes for c in costs if c.kind == "prefetch"))
    hidden = (copies - exposed_cycles(costs, chip.memory_cycles)) / chip.ghz / 1e9
    return Step(
        **common,
        bytes=sum(c.bytes for c in costs),
        estimate=SCHEDULE,
        seconds=computed + communication,
        best_seconds=computed - hidden + communication,
        unscheduled=sum(c.cycles == 0 and c.kind not in ("prefetch", *COLLECTIVES) for c in costs),
    )


def of_devices(figures: Mapping[str, Any], hlo: str, chip: Chip | None) -> Step:
    """A step compiled for this machine's devices, by XLA's own figures.

    Args:
      figures: see `program.of_compiled`.
      hlo: the optimized program.
      chip: the devices' rates; None: unknown.
    """
    seconds = roofline(figures["flops"], figures["bytes_accessed"], chip) if chip else None
    return Step(
        memory=Memory(**figures["memory"]),
        flops=figures["flops"],
        bytes=figures["bytes_accessed"],
        collectives=collectives(Program(hlo, {}).costs()),
        estimate=ROOFLINE if chip else NONE,
        seconds=seconds,
        best_seconds=seconds,
        compile_s=figures["compile_s"],
    )


def roofline(flops: float, count: float, chip: Chip) -> float:
    """Minimum seconds of a device for this number of operations and bytes."""
    return max(flops / chip.peak_rate, count / chip.memory_rate)


def collectives(costs: Iterable[Cost]) -> tuple[Collective, ...]:
    """The collectives among operations, by kind; those in a loop count once per round."""
    found = [c for c in costs if c.kind in COLLECTIVES]
    return tuple(
        Collective(
            kind,
            count=sum(c.rounds for c in found if c.kind == kind),
            bytes=sum(c.payload for c in found if c.kind == kind),
            inside=sum(c.rounds for c in found if c.kind == kind and c.inside),
        )
        for kind in COLLECTIVES
        if any(c.kind == kind for c in found)
    )


def _collective_seconds(costs: Iterable[Cost], topology: Topology) -> float:
    if not topology.link_rate:
        return 0.0
    over_link = sum(c.payload * _OVER_LINK.get(c.kind, 1.0) for c in costs)
    return over_link / topology.link_rate
