"""Which device holds what. For now: the batch is cut over the axis `data`, all else is whole."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(data: int = -1) -> Mesh:
    """A mesh of the first `data` devices (-1: of all) with the one axis `data`.

    Those of a process stand side by side: its part of a batch is a contiguous one, see
    `data.stream`.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    devices = np.array(found[: None if data == -1 else data])
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array, whole, on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis cut over the axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))
