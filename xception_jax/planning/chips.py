"""TPU chips by their public figures, and slices of them by their common names.

Sources. Peak rates, HBM and links of v5e, v6e and TPU7x: docs.cloud.google.com/tpu/docs/v5e, /v6e
and /tpu7x (the last has v5p too); of v4: /v4 and arXiv:2304.01433, table 4. Names such as `v5p-8`
count TensorCores where a chip has two, and chips elsewhere: the same pages, and
AI-Hypercomputer/maxtext, `accelerator_to_spec_map.py`.
"""

import math
import re
from dataclasses import dataclass

from xception_jax.errors import UsageError, nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
    "16x16x16",
)  # fmt: skip


@dataclass(frozen=True)
class Chip:
    """A kind of TPU.

    Attributes:
      kind: its name in topologies.
      device_kind: JAX' name of it.
      cores: TensorCores of a chip.
      devices: JAX' devices of a chip. On v4 and v5p both cores are one device, and each does half
        of every operation; the schedule that the compiler writes down is that of one core.
      tflops: peak of a chip in bfloat16, 10^12 operations/s.
      ghz: clock. Its public value on v4. Elsewhere the peak over the operations of a cycle: 2^17 on
        a v5e device, 2^18 on v5p, 2^19 on v6e and TPU7x. The compiler's schedules of a large
        product of matrices come to 92 to 98 % of these (tests/planning/test_compiler.py).
      gb_per_s: bandwidth of a chip's HBM.
      hbm_gib: its size.
      usable_gib: of it, what libtpu 0.0.52 grants the program of a device; a program that takes
        more is refused when it is compiled.
      link_gb_per_s: one way over one link between chips.
      shapes: the usual slices.
      names: what stands before the number in names such as `v5litepod-16`.
    """

    kind: str
    device_kind: str
    cores: int
    devices: int
    tflops: float
    ghz: float
    gb_per_s: float
    hbm_gib: float
    usable_gib: float
    link_gb_per_s: float
    shapes: tuple[str, ...]
    names: tuple[str, ...]

    def memory_cycles(self, count: int) -> float:
        """Cycles in which a device's memory moves so many bytes."""
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
        Chip("v4", "TPU v4", 2, 1, 275, 1.05, 1200, 32, 30.75, 50, _CUBES, ("v4",)),
        Chip("v5e", "TPU v5 lite", 1, 1, 197, 1.5, 819, 16, 15.75, 50, _FLAT,
             ("v5litepod", "v5e")),
        Chip("v5p", "TPU v5", 2, 1, 459, 1.75, 2765, 95, 95.73, 100, _CUBES, ("v5p",)),
        Chip("v6e", "TPU v6 lite", 1, 1, 918, 1.75, 1640, 32, 31.24, 100, _FLAT, ("v6e",)),
        Chip("tpu7x", "TPU7x", 2, 2, 2307, 2.2, 7380, 192, 94.74, 100, ("1x1x1", *_CUBES),
             ("tpu7x",)),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """A slice: chips of a kind in a grid or a cube."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As `v5e:4x4`."""
        return f"{self.chip.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def options(self) -> dict[str, str]:
        """What JAX' topologies are asked for besides the name."""
        # Without it v4 gives each core as a device, which Cloud TPU does not.
        return {"chip_config_name": "megacore"} if self.chip.kind == "v4" else {}

    @property
    def flags(self) -> str:
        """What libtpu needs to be told, as flags."""
        # On TPU7x libtpu 0.0.52 gives a large all-reduce to the SparseCores, in a form that JAX
        # 0.10.2 cannot read: "async-update instruction should have 1 operands".
        offload = "--xla_tpu_enable_sparse_core_collective_offload_all_reduce=false"
        return offload if self.chip.kind == "tpu7x" else ""

    @property
    def request(self) -> dict[str, object]:
        """Its part of a request to the compiler, see `compiler.ask`."""
        return {"topology": self.name, "options": self.options, "flags": self.flags}

    @property
    def link_rate(self) -> float:
        """Bytes a second, one way, over a link along each axis that has several chips; 0: none."""
        return sum(size > 1 for size in self.shape) * self.chip.link_gb_per_s * 1e9


def names() -> list[str]:
    """Every name that `parse` takes for a usual slice: `v5e:4x4`, `v5litepod-16`, `v5e-16`, ..."""
    pairs = [(chip, shape) for chip in CHIPS.values() for shape in chip.shapes]
    return [name for chip, shape in pairs for name in _names(chip, shape)]


def _names(chip: Chip, shape: str) -> list[str]:
    chips = math.prod(map(int, shape.split("x")))
    return [f"{chip.kind}:{shape}", *(f"{name}-{chips * chip.cores}" for name in chip.names)]


def parse(text: str) -> Topology:
    """A slice by its name.

    Args:
      text: `v5e:4x4` or `v5litepod-16`. On v4, v5p and TPU7x also the larger cubes of Cloud TPU,
        whose sides are multiples of four, in rising order.

    Raises:
      UsageError: there is no such slice; the nearest name is given.
    """
    name = text.strip().lower()
    kind, colon, sides = name.partition(":")
    for chip in CHIPS.values():
        for shape in chip.shapes:
            if name in _names(chip, shape):
                return Topology(chip, tuple(map(int, shape.split("x"))))
        if colon and kind == chip.kind and re.fullmatch(r"\d+x\d+x\d+", sides):
            cube = tuple(map(int, sides.split("x")))
            if chip.cores == 2 and all(n and n % 4 == 0 for n in cube) and sorted(cube) == [*cube]:
                return Topology(chip, cube)
    hint = _nearest(name) or "; it takes KIND:SHAPE such as v5e:4x4, or v5litepod-16"
    known = f"; {kind} comes as {', '.join(CHIPS[kind].shapes)}" if kind in CHIPS else (
        f"; kinds: {', '.join(CHIPS)}")  # fmt: skip
    raise UsageError(f"no TPU slice {text!r}{hint}{known}")


def _nearest(name: str) -> str:
    """As `errors.nearest`; of names that end in a number, the nearest number."""
    kind, _, number = name.rpartition("-")
    alike = [known for known in names() if known.rpartition("-")[0] == kind and kind]
    if not alike or not number.isdecimal():
        return nearest(name, names())
    best = min(alike, key=lambda known: abs(int(known.rpartition("-")[2]) - int(number)))
    return f"; did you mean {best!r}?"
