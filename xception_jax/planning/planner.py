"""A run's plan: its two steps on one topology, and the resulting hours and chip-hours."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.config.fields import Duration
from xception_jax.config.registry import outside_modules
from xception_jax.errors import RunError
from xception_jax.planning import estimate, program, steps
from xception_jax.planning.estimate import Memory, Step
from xception_jax.planning.tpu import compiler
from xception_jax.planning.tpu.chips import CHIPS, Topology
from xception_jax.training import sharding
from xception_jax.training.build import DataSpec
from xception_jax.training.evaluation import batch_size_of

Say = Callable[[str], None]


class DoesNotFitError(RunError):
    """The compiler refuses a program that `needs` more bytes than a device `has`."""

    def __init__(self, where: str, needs: float, has: float):
        super().__init__(
            f"{where} needs {needs / 2**30:.2f} GiB, and a device has {has / 2**30:.2f}; use a "
            f"smaller batch or config.optimizer.microbatch, or config.model.remat=True; --fit "
            f"finds the largest batch"
        )
        self.needs, self.has = needs, has


@dataclass(frozen=True)
class Plan:
    """Memory and time of a run on a topology.

    Attributes:
      topology: its name, or the name of this machine's devices.
      chips, devices: their numbers; 0 chips if only devices are known.
      device_bytes: memory that a program may take on a device; None: unknown.
      peak_rate, memory_rate: operations and bytes a second of a device; None: unknown.
      batch, eval_batch: examples of a step over all devices.
      train, evaluate: the two steps on one device.
      steps: steps of the run; None if the size of the data is unknown.
      evaluations: number of evaluations.
      eval_steps: steps of one evaluation; None if the size of the evaluation split is unknown.
    """

    topology: str
    chips: int
    devices: int
    device_bytes: float | None
    peak_rate: float | None
    memory_rate: float | None
    batch: int
    eval_batch: int
    train: Step
    evaluate: Step
    steps: int | None = None
    evaluations: int | None = None
    eval_steps: int | None = None

    @property
    def images_per_second(self) -> float | None:
        """Images a second in training, over all devices."""
        return self.batch / self.train.seconds if self.train.seconds else None

    @property
    def matrix_share(self) -> float | None:
        """Share of a training step that the matrix units would take at their peak rate."""
        if not self.train.seconds or not self.peak_rate:
            return None
        return self.train.flops / self.peak_rate / self.train.seconds

    @property
    def memory_share(self) -> float | None:
        """Share of a training step that the memory would take at its full bandwidth."""
        if not self.train.seconds or not self.memory_rate:
            return None
        return self.train.bytes / self.memory_rate / self.train.seconds

    @property
    def hours(self) -> float | None:
        """Hours of all steps, and of the evaluations if `eval_steps` is known."""
        if not self.train.seconds or not self.evaluate.seconds or self.steps is None:
            return None
        evaluations = (self.evaluations or 0) * (self.eval_steps or 0) * self.evaluate.seconds
        return (self.steps * self.train.seconds + evaluations) / 3600


def for_topology(config: ConfigDict, topology: Topology, data: DataSpec, say: Say) -> Plan:
    """Compiles both steps for a TPU slice.

    Args:
      config: a resolved config, valid for this number of devices.
      topology: the slice.
      data: facts about the run's data.
      say: prints a line when a long operation starts and ends.

    Raises:
      DoesNotFitError: a step takes more memory than a device has.
      RunError: the compiler fails.
    """

    def compiled(name: str) -> Step:
        answer = compile_step(name, config, topology, data, say)
        return estimate.of_tpu(answer.figures, answer.hlo, answer.cycles, topology)

    chip = topology.chip
    return _plan(
        config, data, compiled("train"), compiled("evaluate"), topology.name,
        chips=topology.chips, devices=topology.devices, device_bytes=chip.usable_gib * 2**30,
        peak_rate=chip.peak_rate, memory_rate=chip.memory_rate,
    )  # fmt: skip


def for_devices(config: ConfigDict, data: DataSpec, say: Say) -> Plan:
    """Compiles both steps for this machine's devices; see `for_topology`."""
    mesh = sharding.mesh_from_config(config)
    device = mesh.devices.flat[0]
    chip = next((c for c in CHIPS.values() if c.device_kind == device.device_kind), None)

    def compiled(name: str) -> Step:
        say(f"compiling {name}_step for {mesh.size} x {device.device_kind}")
        lowered, since = steps.lower(name, config, mesh, data), time.perf_counter()
        executable = lowered.compile()
        figures = program.of_compiled(executable)
        figures["compile_s"] = time.perf_counter() - since
        return estimate.of_devices(figures, executable.as_text(), chip)

    return _plan(
        config, data, compiled("train"), compiled("evaluate"),
        f"{mesh.size} x {device.device_kind}",
        chips=mesh.size // chip.devices if chip else 0, devices=mesh.size,
        device_bytes=_memory_of(device),
        peak_rate=chip.peak_rate if chip else None, memory_rate=chip.memory_rate if chip else None,
    )  # fmt: skip


def _memory_of(device: Any) -> float | None:
    """Bytes that a program may take on a device; for a CPU, the machine's memory."""
    if device.platform == "cpu":
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return float(limit) if limit else None


def _plan(
    config: ConfigDict, data: DataSpec, train: Step, evaluate: Step, name: str, **more: Any
) -> Plan:
    batch, eval_batch = config.data.batch_size, batch_size_of(config, more["devices"])
    counts: dict[str, int] = {}
    if data.examples:
        size = {"batch_size": batch, "epoch": data.examples}
        counts["steps"] = Duration.parse(config.duration).steps(**size)
        every = config_lib.period(config, "eval.every", data.examples)
        last, before = (every.passed(counts["steps"] - less, **size) for less in (0, 1))
        counts["evaluations"] = last if last > before else last + 1  # the last step evaluates too
        if data.eval_examples is not None:
            counts["eval_steps"] = -(-data.eval_examples // eval_batch)
    return Plan(name, batch=batch, eval_batch=eval_batch, train=train, evaluate=evaluate, **counts,
                **more)  # fmt: skip


def compile_step(
    name: str,
    config: ConfigDict,
    topology: Topology,
    data: DataSpec,
    say: Say,
    *,
    schedules: bool = True,
) -> compiler.Answer:
    """Compiles one step of a run for a slice; see `for_topology`."""
    what = f"the {'training' if name == 'train' else 'evaluation'} step"
    where = f"{what} of {config.data.batch_size} images on {topology.name}"
    say(f"compiling {where}; takes minutes, unless it has been compiled before")
    since = time.perf_counter()
    request = {
        **topology.request,
        "schedules": schedules,
        "step": name,
        "config": config_lib.flatten(config),
        "imports": outside_modules(),
        "path": sys.path,
        "data": asdict(data),
    }
    answer = compiler.compile_program(request, known=compiler.folder_of_answers())
    say(f"  done after {time.perf_counter() - since:.0f} s")
    if "refused" in answer.figures:
        raise DoesNotFitError(where, **answer.figures["refused"])
    return answer


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits on a device.

    Attributes:
      remat: whether blocks are computed again for their gradients.
      batch: examples on a device; 0: not even the smallest batch fits.
      bytes: memory of this batch.
      refused: the next larger batch.
      refused_bytes: memory that the next larger batch needs.
      device_bytes: memory of a device.
      tries: number of compiled programs.
    """

    remat: bool
    batch: int
    bytes: float
    refused: int
    refused_bytes: float
    device_bytes: float
    tries: int


def fit(config: ConfigDict, topology: Topology, data: DataSpec, *, remat: bool, say: Say) -> Fit:
    """Finds the largest batch that fits on a device of a slice.

    The compiler decides on both sides of the limit: it accepts `batch` and refuses `refused`. The
    next batch to try is extrapolated from the growth of memory.

    Args:
      config: a resolved config. Its batch and microbatch are not used; a device's share is a
        multiple of `model.bn_virtual_batch`, or of 8 without it.
      topology, data, say: see `for_topology`.
      remat: replaces the config's `model.remat`.
    """
    unit = config.model.bn_virtual_batch or 8

    has = topology.chip.usable_gib * 2**30

    def compiled(units: int) -> Try:
        changed = ConfigDict(config).copy_and_resolve_references()
        changed.model.remat, changed.optimizer.microbatch = remat, 0
        changed.data.batch_size = units * unit * topology.devices
        try:
            answer = compile_step("train", changed, topology, data, say, schedules=False)
            found = Try(True, Memory(**answer.figures["memory"]).total)
        except DoesNotFitError as error:
            found = Try(False, error.needs)
        verdict = "fits" if found.fits else "refused"
        say(f"  {units * unit} images a device: {verdict}, {found.bytes / 2**30:.2f} GiB")
        return found

    found = search(compiled, has)
    best = max((n for n, tried in found.items() if tried.fits), default=0)
    return Fit(
        remat, best * unit, found[best].bytes if best else 0.0, (best + 1) * unit,
        found[best + 1].bytes, has, len(found),
    )  # fmt: skip


@dataclass(frozen=True)
class Try:
    """Whether a program fits on a device, and the bytes that it needs."""

    fits: bool
    bytes: float


def search(compiled: Callable[[int], Try], has: float) -> dict[int, Try]:
    """Tries numbers until one fits and the next one does not.

    Args:
      compiled: the compiler's result for a number; bytes grow with the number.
      has: approximate bytes of a device, used only to choose the next number.

    Returns:
      The tries, by number.
    """
    found: dict[int, Try] = {}
    number = 2
    while True:
        found[number] = compiled(number)
        low = max((n for n, tried in found.items() if tried.fits), default=0)
        high = min((n for n, tried in found.items() if not tried.fits), default=None)
        if high is not None and high - low == 1:
            return found
        number = _next_number(found, has, low, high)


def _next_number(found: Mapping[int, Try], has: float, low: int, high: int | None) -> int:
    """The number at which memory is full, on a line through the two tries nearest to the limit.

    The result is between `low`, which fits, and `high`, which does not.
    """
    points = [(0, 0.0), *((n, tried.bytes) for n, tried in found.items())]
    near, far = sorted(points, key=lambda point: abs(point[1] - has))[:2]
    slope = (far[1] - near[1]) / (far[0] - near[0])
    most = high - 1 if high is not None else 4 * max(low, 1)
    full = near[0] + (has - near[1]) / slope if slope > 0 else (low + most) / 2
    return min(max(int(full), low + 1), most)
