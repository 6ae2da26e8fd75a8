"""Public figures of TPU chips; the slices are in `xception_jax.utils.slices`.

Sources. Peak rates, HBM and links of v5e, v6e and TPU7x: docs.cloud.google.com/tpu/docs/v5e, /v6e
and /tpu7x (which also has v5p). Of v4: /v4 and arXiv:2304.01433, table 4.
"""

import math
from dataclasses import dataclass

from xception_jax.utils import slices


@dataclass(frozen=True)
class Chip:
    """A kind of TPU.

    Attributes:
      kind: its name in topologies.
      device_kind: JAX' name for it.
      devices: JAX devices of a chip. On v4 and v5p both cores are one device, and each does half of
        every operation; the compiler's schedule is for one core.
      tflops: peak of a chip in bfloat16, 10^12 operations/s.
      ghz: clock. The public value on v4; elsewhere the peak divided by the operations a cycle: 2^17
        on a v5e device, 2^18 on v5p, 2^19 on v6e and TPU7x. The compiler's schedules of a large
        matrix product reach 92 to 98 % of the peak (tests/planning/tpu/test_compiler.py).
      gb_per_s: bandwidth of a chip's HBM.
      hbm_gib: size of a chip's HBM.
      usable_gib: the part of the HBM that libtpu 0.0.52 allows for the program of a device. The
        compiler refuses a program that takes more.
      link_gb_per_s: rate of one link between chips, one way.
    """

    kind: str
    device_kind: str
    devices: int
    tflops: float
    ghz: float
    gb_per_s: float
    hbm_gib: float
    usable_gib: float
    link_gb_per_s: float

    def memory_cycles(self, count: int) -> float:
        """Cycles that a device's memory takes to move `count` bytes."""
        return count * self.ghz / self.memory_rate * 1e9

    @property
    def memory_rate(self) -> float:
        """Bytes a second of a device."""
        return self.gb_per_s / self.devices * 1e9

    @property
    def peak_rate(self) -> float:
        """Operations a second of a device, in bfloat16."""
        return self.tflops / self.devices * 1e12


CHIPS = {
    chip.kind: chip
    for chip in (
        Chip("v4", "TPU v4", 1, 275, 1.05, 1200, 32, 30.75, 50),
        Chip("v5e", "TPU v5 lite", 1, 197, 1.5, 819, 16, 15.75, 50),
        Chip("v5p", "TPU v5", 1, 459, 1.75, 2765, 95, 95.73, 100),
        Chip("v6e", "TPU v6 lite", 1, 918, 1.75, 1640, 32, 31.24, 100),
        Chip("tpu7x", "TPU7x", 2, 2307, 2.2, 7380, 192, 94.74, 100),
    )
}


@dataclass(frozen=True)
class Topology:
    """A slice: chips of a kind in a grid or a cube."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name, as `v5e:4x4`."""
        return f"{self.chip.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def options(self) -> dict[str, str]:
        """Options for JAX' topologies, in addition to the name."""
        # Without this, each core of v4 is a device, unlike on Cloud TPU.
        return {"chip_config_name": "megacore"} if self.chip.kind == "v4" else {}

    @property
    def flags(self) -> str:
        """Flags for libtpu."""
        # On TPU7x libtpu 0.0.52 offloads a large all-reduce to the SparseCores, in a form that JAX
        # 0.10.2 cannot read: "async-update instruction should have 1 operands".
        offload = "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false"
        return offload if self.chip.kind == "tpu7x" else ""

    @property
    def request(self) -> dict[str, object]:
        """Its part of a request to the compiler, see `compiler.compile_program`."""
        return {"topology": self.name, "options": self.options, "flags": self.flags}

    @property
    def link_rate(self) -> float:
        """Bytes a second, one way, over a link along each axis with several chips; 0: no axis."""
        return sum(size > 1 for size in self.shape) * self.chip.link_gb_per_s * 1e9


def parse(text: str) -> Topology:
    """A slice by its name, `v5litepod-16`, or its shape, `v5e:4x4`; see `slices.parse`."""
    kind, shape = slices.parse(text)
    return Topology(CHIPS[kind.name], tuple(map(int, shape.split("x"))))


def like(device_kind: str, devices: int) -> str:
    """The usual slice of `devices` devices of a kind, JAX' name of which is given; else `SLICE`."""
    for chip in CHIPS.values():
        if chip.device_kind == device_kind and devices % chip.devices == 0:
            shape = slices.KINDS[chip.kind].default_shape(devices // chip.devices)
            return f"{chip.kind}:{shape}" if shape else "SLICE"
    return "SLICE"
