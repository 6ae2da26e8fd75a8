"""TPU slices by name: their shapes, hosts, machine types and labels.

Sources, all under docs.cloud.google.com: tpu/docs/v4, v5e, v5p, v6e and tpu7x (shapes and chips of
a host), tpu/docs/runtimes (runtime versions), kubernetes-engine/docs/concepts/plan-tpus (machine
types and node labels), compute/docs/tpus/tpu-machines (what Compute Engine offers).
"""

import math
import re
from dataclasses import dataclass

from xception_jax.errors import UsageError, nearest


@dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
      prefix: of the accelerator types of the Cloud TPU API, as in `v5litepod-16`.
      cores: TensorCores a chip, by which `v4-8` and its like count; 1 where they count chips.
      largest: chips of the largest slice.
      shapes: its slices with less than 64 chips; larger ones are in steps of four where flat is
        False.
      flat: whether shapes have two dimensions, all of which are listed.
      machine: machine type for each number of chips a host may have, `{chips: type}`.
      label: value of the node label `cloud.google.com/gke-tpu-accelerator`.
      runtime: runtime version of the Cloud TPU API; None where that API does not have it.
      image: image family on Compute Engine; None where only the Cloud TPU API and GKE have it.
    """

    prefix: str
    cores: int
    largest: int
    flat: bool
    shapes: tuple[str, ...]
    machine: dict[int, str]
    label: str
    runtime: str | None
    image: str | None


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_UBUNTU = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"

GENERATIONS = {
    "v4": Generation(
        "v4", 2, 4096, False, _CUBES, {4: "ct4p-hightpu-4t"},
        "tpu-v4-podslice", "tpu-ubuntu2204-base", None,
    ),
    "v5e": Generation(
        "v5litepod", 1, 256, True, _FLAT,
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", None,
    ),
    "v5p": Generation(
        "v5p", 2, 6144, False, _CUBES, {4: "ct5p-hightpu-4t"},
        "tpu-v5p-slice", "v2-alpha-tpuv5", _UBUNTU,
    ),
    "v6e": Generation(
        "v6e", 1, 256, True, _FLAT,
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        "tpu-v6e-slice", "v2-alpha-tpuv6e", _UBUNTU,
    ),
    "tpu7x": Generation(
        "tpu7x", 2, 9216, False, _CUBES, {4: "tpu7x-standard-4t"},
        "tpu7x", None, "ubuntu-accel-2404-amd64-tpu-tpu7x",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """A slice: `generation` is a key of `GENERATIONS`, `topology` its shape, as `4x4`."""

    generation: str
    topology: str

    @property
    def kind(self) -> Generation:
        """What all slices of its generation share."""
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        """Of the whole slice."""
        return math.prod(map(int, self.topology.split("x")))

    @property
    def chips_per_host(self) -> int:
        """One host holds up to eight chips; where there are several hosts, each holds four."""
        return self.chips if self.chips in self.kind.machine else 4

    @property
    def hosts(self) -> int:
        """Machines, and so processes."""
        return self.chips // self.chips_per_host

    @property
    def machine_type(self) -> str:
        """Of each host."""
        return self.kind.machine[self.chips_per_host]

    @property
    def accelerator_type(self) -> str:
        """Its name in the Cloud TPU API, which does not tell shapes of one size apart."""
        return f"{self.kind.prefix}-{self.chips * self.kind.cores}"

    @property
    def is_default_shape(self) -> bool:
        """Whether `accelerator_type` says all there is to say."""
        return self.topology == _default_shape(self.kind, self.chips)

    def __str__(self) -> str:
        return f"{self.generation}:{self.topology}"


def parse(text: str) -> Slice:
    """The slice of a name, `v5litepod-16`, `v6e-8`, `tpu7x-8`, or of a shape, `v4:2x2x4`.

    Raises:
      UsageError: there is no such slice; the nearest is named.
    """
    names = {"v5litepod": "v5e"} | {name: name for name in GENERATIONS}
    match = re.fullmatch(r"([a-z0-9]+?)(?:-(\d+)|:(\d+(?:x\d+)+))", text)
    if not match or match[1] not in names:
        known = [f"{name}-8" for name in names] + [f"{name}:" for name in names]
        raise UsageError(
            f"no TPU type {text!r}{nearest(text, known)}; generations are {', '.join(names)}; "
            f"write v5litepod-16, v6e-8 or a shape, v5p:2x2x4"
        )
    generation = names[match[1]]
    kind = GENERATIONS[generation]
    if match[3]:
        return Slice(generation, _checked(generation, match[3]))
    chips, rest = divmod(int(match[2]), kind.cores)
    shape = None if rest else _default_shape(kind, chips)
    if shape is None:
        sizes = [str(size * kind.cores) for size in _sizes(kind)]
        raise UsageError(
            f"no slice {text!r}; {match[1]}- goes with "
            f"{'chips' if kind.cores == 1 else 'cores, two a chip'}: {', '.join(sizes)}; "
            f"other sizes go by shape, as {generation}:{kind.shapes[-1]}"
        )
    return Slice(generation, shape)


def _sizes(kind: Generation) -> list[int]:
    """Chips of the slices that have a name: those listed, then powers of two."""
    listed = [math.prod(map(int, shape.split("x"))) for shape in kind.shapes]
    return listed if kind.flat else listed + [2**n for n in range(6, kind.largest.bit_length())]


def _default_shape(kind: Generation, chips: int) -> str | None:
    """The shape that a size stands for: the one nearest to a cube."""
    for shape in kind.shapes:
        if math.prod(map(int, shape.split("x"))) == chips:
            return shape
    if kind.flat or chips not in _sizes(kind):
        return None
    sides, axis = [4, 4, 4], 2
    while math.prod(sides) < chips:
        sides[axis] *= 2
        axis = (axis - 1) % 3
    return "x".join(map(str, sides))


def _checked(generation: str, shape: str) -> str:
    kind = GENERATIONS[generation]
    if _exists(kind, shape):
        return shape
    rising = "x".join(sorted(shape.split("x"), key=int))
    meant = f"; did you mean {rising!r}?" if _exists(kind, rising) else nearest(shape, kind.shapes)
    more = "" if kind.flat else f" and multiples of four in rising order, to {kind.largest:,} chips"
    raise UsageError(
        f"{generation} has no shape {shape!r}{meant}; shapes are {', '.join(kind.shapes)}{more}"
    )


def _exists(kind: Generation, shape: str) -> bool:
    sides = [int(side) for side in shape.split("x")]
    cubes = len(sides) == 3 and sides == sorted(sides) and all(s % 4 == 0 < s for s in sides)
    return shape in kind.shapes or (not kind.flat and cubes and math.prod(sides) <= kind.largest)
