"""TPU slices on Google Cloud: hosts, machine types and labels.

Names and shapes are those of `xception_jax.utils.slices`. Sources, all under docs.cloud.google.com:
tpu/docs/v4, v5e, v5p, v6e and tpu7x (chips of a host), tpu/docs/runtimes (runtime versions),
kubernetes-engine/docs/concepts/plan-tpus (machine types and node labels),
compute/docs/tpus/tpu-machines (what Compute Engine offers).
"""

from dataclasses import dataclass

from xception_jax.utils import slices


@dataclass(frozen=True)
class Generation:
    """Rental facts of one generation of TPUs.

    Attributes:
      machine: machine type for each possible number of chips of a host, `{chips: type}`.
      label: value of the node label `cloud.google.com/gke-tpu-accelerator`.
      runtime: runtime version of the Cloud TPU API; None if that API does not have it.
      image: image family on Compute Engine; None if only the Cloud TPU API and GKE have it.
    """

    machine: dict[int, str]
    label: str
    runtime: str | None
    image: str | None


_UBUNTU = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"

GENERATIONS = {
    "v4": Generation({4: "ct4p-hightpu-4t"}, "tpu-v4-podslice", "tpu-ubuntu2204-base", None),
    "v5e": Generation(
        {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite", None,
    ),
    "v5p": Generation({4: "ct5p-hightpu-4t"}, "tpu-v5p-slice", "v2-alpha-tpuv5", _UBUNTU),
    "v6e": Generation(
        {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        "tpu-v6e-slice", "v2-alpha-tpuv6e", _UBUNTU,
    ),
    "tpu7x": Generation(
        {1: "tpu7x-standard-1t", 4: "tpu7x-standard-4t"},
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
        """The rental facts of its generation."""
        return GENERATIONS[self.generation]

    @property
    def _shapes(self) -> slices.Kind:
        return slices.KINDS[self.generation]

    @property
    def chips(self) -> int:
        """Number of chips of the slice."""
        return slices.chips_of(self.topology)

    @property
    def chips_per_host(self) -> int:
        """A single host has up to eight chips; with several hosts, each has four."""
        return self.chips if self.chips in self.kind.machine else 4

    @property
    def hosts(self) -> int:
        """Number of machines, which is the number of processes."""
        return self.chips // self.chips_per_host

    @property
    def machine_type(self) -> str:
        """Machine type of each host."""
        return self.kind.machine[self.chips_per_host]

    @property
    def accelerator_type(self) -> str:
        """Its name in the Cloud TPU API, which is the same for all shapes of one size."""
        return f"{self._shapes.prefixes[0]}-{self.chips * self._shapes.cores}"

    @property
    def is_default_shape(self) -> bool:
        """Whether `accelerator_type` also determines the shape."""
        return self.topology == self._shapes.default_shape(self.chips)

    def __str__(self) -> str:
        return f"{self.generation}:{self.topology}"


def parse(text: str) -> Slice:
    """The slice of a name, `v5litepod-16`, `v6e-8`, `tpu7x-8`, or of a shape, `v4:2x2x4`.

    Raises:
      UsageError: there is no such slice; the message names the nearest.
    """
    kind, shape = slices.parse(text)
    return Slice(kind.name, shape)
