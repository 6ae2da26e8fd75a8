"""The mesh, and the shardings of a run's arrays.

A batch is sharded over all devices. `mesh.shard` shards parts of the state over the axis `data`
by their size (ZeRO, arXiv:1910.02054). `mesh.model` shards the head's large layers over the axis
`model` by `sharding_rules.RULES`. Without either, the state is replicated.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from rich.table import Table

from xception_jax.errors import UsageError
from xception_jax.training.sharding_rules import MODEL, SHARDED, spec
from xception_jax.utils.console import table

Tree = Any  # a pytree of arrays


def make_mesh(data: int = -1, model: int = 1, shard: str = "none") -> Mesh:
    """A mesh of the first `data` x `model` devices, or of all if `data` is -1; see `lay_out`.

    The devices of a process are adjacent, so that its part of a batch is contiguous, see
    `data.batches`.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return lay_out(found[: None if data == -1 else data * model], model, shard)


def lay_out(devices: Sequence[Any], model: int = 1, shard: str = "none") -> Mesh:
    """A mesh of these devices with the axes `data` and, if `model` > 1, `model`."""
    axes = axes_of(len(devices), model, shard)
    shape = tuple(axes.values())
    return Mesh(np.array(devices).reshape(shape), tuple(axes), (AxisType.Auto,) * len(shape))


def without_devices(count: int, model: int = 1, shard: str = "none") -> AbstractMesh:
    """The mesh of a number of devices that need not exist: for tables, not for arrays."""
    axes = axes_of(count, model, shard)
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def axes_of(devices: int, model: int, shard: str) -> dict[str, int]:
    """Names and sizes of the mesh's axes.

    If arrays are sharded over `data`, there is one axis for each of its prime factors: `data0`,
    `data1` etc. For example, 728 channels are divisible by 8 but not by 16; the other dimension of
    the kernel then takes the remaining factor.
    """
    data = devices // model
    axes = {"data": data}
    if SHARDED[shard] and data > 1:
        axes = {f"data{i}": factor for i, factor in enumerate(_primes(data))}
    return axes | ({MODEL: model} if model > 1 else {})


def _primes(number: int) -> list[int]:
    factor = next((f for f in range(2, math.isqrt(number) + 1) if number % f == 0), number)
    return [factor, *(_primes(number // factor) if factor < number else [])]


def data_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes that together are `data`."""
    return tuple(name for name in mesh.axis_names if name != MODEL)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The full array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis sharded over all devices."""
    names = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(names[0] if len(names) == 1 else names))


def for_head(features: jax.Array, mesh: Mesh) -> tuple[jax.Array, Any]:
    """Features `[batch, channels]` sharded for the head, and its `place` (see `network.Place`).

    The devices along the axis `model` share the head's layers, so each needs all of their
    examples. The features are therefore sharded over `data` only, and the output of a layer also
    like its bias. Everything before the head is sharded by example over all devices.
    """

    def put(array: jax.Array, *columns: Any) -> jax.Array:
        where = PartitionSpec(data_axes(mesh), *columns)
        placed: jax.Array = jax.lax.with_sharding_constraint(array, NamedSharding(mesh, where))
        return placed

    def place(layer: str, output: jax.Array) -> jax.Array:
        # Without this constraint, XLA gathers the weights and continues by example.
        return put(output, *spec(f"head.{layer}.bias", output.shape[1:], dict(mesh.shape), False))

    # First as they are, so that the other sharding does not propagate backwards: then all devices
    # of `model` would compute the same.
    features = jax.lax.with_sharding_constraint(features, by_example(mesh))
    return put(features), place


@dataclass(frozen=True)
class Layout:
    """The shardings of a run's arrays. Each is a tree, or one sharding for a full tree.

    Attributes:
      mesh: the devices, or `without_devices`.
      state: of the `TrainState` between steps.
      weights: of `{"params", "batch_stats"}` for the model: replicated, except over `model`.
      update: of gradients and new parameters for the optimizer: like its own arrays. None: like
        the parameters. `to_compute` and `to_update` need it.
    """

    mesh: Any
    state: Any
    weights: Any
    update: Tree | None = None

    @classmethod
    def replicated(cls, mesh: Mesh | AbstractMesh) -> "Layout":
        """All arrays replicated."""
        return cls(mesh, replicated(mesh), replicated(mesh))

    @classmethod
    def of(cls, shapes: Any, mesh: Mesh | AbstractMesh, shard: str = "none") -> "Layout":
        """The layout of a state.

        Args:
          shapes: the `TrainState` as arrays or `jax.ShapeDtypeStruct`s.
          mesh: from `lay_out` for this `shard`.
          shard: a key of `SHARDED`.

        Raises:
          UsageError: no layer of the head is divisible by the mesh's axis `model`.
        """
        if not SHARDED[shard] and MODEL not in mesh.axis_names:
            return cls.replicated(mesh)
        parts = {
            field.name: _lay(getattr(shapes, field.name), mesh, field.name in SHARDED[shard])
            for field in fields(shapes)
        }
        weights = {k: _lay(getattr(shapes, k), mesh, False) for k in ("params", "batch_stats")}
        specs = [leaf.spec for leaf in jax.tree.leaves(weights)]
        if MODEL in mesh.axis_names and not any(MODEL in spec for spec in specs):
            raise UsageError(
                f"config.mesh.model is {mesh.shape[MODEL]}, but no layer of the head is divisible "
                f"by it; use a divisor of config.model.fc_units or of the number of classes, or 1"
            )
        update = _lay(shapes.params, mesh, True) if SHARDED[shard] else None
        return cls(mesh, replace(shapes, **parts), weights, update)

    def to_compute(self, params: Tree) -> Tree:
        """In a step: parameters for the model, gathered if they are sharded."""
        return jax.lax.with_sharding_constraint(params, self.weights["params"])

    def to_update(self, params: Tree) -> Tree:
        """In a step: gradients or parameters (None: frozen) for the optimizer."""

        def lay(leaf: jax.Array | None, *places: NamedSharding) -> jax.Array | None:
            for where in places if leaf is not None else ():
                leaf = jax.lax.with_sharding_constraint(leaf, where)
            return leaf

        # First as in the model, so that the sharding does not propagate backwards: XLA would shard
        # convolutions by channels.
        return jax.tree.map(
            lay, params, self.weights["params"], self.update, is_leaf=lambda leaf: leaf is None
        )


def mesh_from_config(config: ConfigDict) -> Mesh:
    """The mesh of a config, made of the available devices."""
    asked = config.mesh
    return make_mesh(asked.data, asked.model, asked.shard)


def place(shapes: Tree, shardings: Any) -> Tree:
    """`jax.ShapeDtypeStruct`s with these shardings."""
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def _lay(tree: Tree, mesh: Mesh | AbstractMesh, over_data: bool) -> Tree:
    """Shardings of a tree by the paths and the sizes of its leaves."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, spec(name, leaf.shape, dict(mesh.shape), over_data))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def layout_table(shapes: Any, layout: Layout) -> Table:
    """A table of the shardings of a state, with the bytes in total and per device."""
    placed = place(shapes, layout.state)
    axes = dict(layout.mesh.shape)
    rows, total_bytes, held_bytes = [], 0, 0
    for part in fields(placed):
        groups: dict[str, Counter[str]] = {}
        for leaf in jax.tree.leaves(getattr(placed, part.name)):
            group = groups.setdefault(_words(leaf.sharding.spec, axes), Counter())
            group["arrays"] += 1
            group["total"] += leaf.size * leaf.dtype.itemsize
            group["held"] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for words, group in sorted(groups.items()):
            rows.append((part.name, words, f"{group['arrays']}", f"{group['total']:,}",
                         f"{group['held']:,}"))  # fmt: skip
            total_bytes, held_bytes = total_bytes + group["total"], held_bytes + group["held"]
    rows.append(("all", "", "", f"{total_bytes:,}", f"{held_bytes:,}"))
    data = math.prod(layout.mesh.shape[name] for name in data_axes(layout.mesh))
    model = axes.get(MODEL, 1)
    return table(
        f"state on {data} x {model} devices (data x model); batches are sharded over all",
        ("state", "sharding", "arrays", "bytes", "bytes per device"),
        rows,
    )


def _words(spec: PartitionSpec, axes: dict[str, int]) -> str:
    """A spec in words: `data / 8, model / 2`, or `replicated`."""
    names = [
        name
        for entry in spec
        for name in (entry if isinstance(entry, tuple) else (entry,))
        if name is not None
    ]
    data = math.prod(axes[name] for name in names if name != MODEL)
    words = [f"data / {data}"] if data > 1 else []
    words += [f"model / {axes[MODEL]}"] if MODEL in names else []
    return ", ".join(words) or "replicated"
