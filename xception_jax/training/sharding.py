"""Which device holds what: the mesh, and what the rules come to for a state.

A batch is cut over all devices. Of the state, `mesh.shard` cuts parts over the axis `data`
(ZeRO, arXiv:1910.02054), by size alone; `mesh.model` cuts the head's large layers over the
axis `model`, by `sharding_rules.RULES`. Without either, every device holds all of the state.
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
from xception_jax.training.sharding_rules import CUT, MODEL, spec
from xception_jax.utils.console import table

Tree = Any  # a pytree of arrays


def make_mesh(data: int = -1, model: int = 1, shard: str = "none") -> Mesh:
    """A mesh of the first `data` x `model` devices; `data` is -1: of all; see `lay_out`.

    Those of a process stand side by side: its part of a batch is a contiguous one, see
    `data.batches`.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return lay_out(found[: None if data == -1 else data * model], model, shard)


def lay_out(devices: Sequence[Any], model: int = 1, shard: str = "none") -> Mesh:
    """A mesh of these devices, with the axes `data` and, where it is cut by it, `model`."""
    axes = axes_of(len(devices), model, shard)
    shape = tuple(axes.values())
    return Mesh(np.array(devices).reshape(shape), tuple(axes), (AxisType.Auto,) * len(shape))


def without_devices(count: int, model: int = 1, shard: str = "none") -> AbstractMesh:
    """The mesh of so many devices that are not there: good for tables, not for arrays."""
    axes = axes_of(count, model, shard)
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def axes_of(devices: int, model: int, shard: str) -> dict[str, int]:
    """Names and sizes of the mesh's axes.

    Where arrays are cut over `data`, that is an axis for each of its prime factors, `data0`,
    `data1` and so on: 16 devices do not divide 728 channels, but 8 do, and the other dimension of
    the kernel takes the factor that is left.
    """
    data = devices // model
    axes = {"data": data}
    if CUT[shard] and data > 1:
        axes = {f"data{i}": factor for i, factor in enumerate(_primes(data))}
    return axes | ({MODEL: model} if model > 1 else {})


def _primes(number: int) -> list[int]:
    factor = next((f for f in range(2, math.isqrt(number) + 1) if number % f == 0), number)
    return [factor, *(_primes(number // factor) if factor < number else [])]


def data_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes that `data` is made of."""
    return tuple(name for name in mesh.axis_names if name != MODEL)


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same array, whole, on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """The first axis cut over all devices."""
    names = mesh.axis_names
    return NamedSharding(mesh, PartitionSpec(names[0] if len(names) == 1 else names))


def for_head(features: jax.Array, mesh: Mesh) -> tuple[jax.Array, Any]:
    """Features `[batch, channels]` as the head takes them, and its `place` (see `network.Place`).

    The devices of the mesh's axis `model` share the head's layers, so each takes all of their
    examples: the features are cut over `data` alone, and a layer's output also as its bias is.
    Everything before is cut by example over all devices.
    """

    def put(array: jax.Array, *columns: Any) -> jax.Array:
        where = PartitionSpec(data_axes(mesh), *columns)
        placed: jax.Array = jax.lax.with_sharding_constraint(array, NamedSharding(mesh, where))
        return placed

    def place(layer: str, output: jax.Array) -> jax.Array:
        # Left to itself, XLA gathers the weights and goes on by example.
        return put(output, *spec(f"head.{layer}.bias", output.shape[1:], dict(mesh.shape), False))

    # First as they are, lest the other cut spreads backwards: the devices of `model` would all
    # compute the same.
    features = jax.lax.with_sharding_constraint(features, by_example(mesh))
    return put(features), place


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a run lie; shardings are trees, or one for all of a tree.

    Attributes:
      mesh: the devices, or `without_devices`.
      state: shardings of the `TrainState` between steps.
      weights: of `{"params", "batch_stats"}` where the model computes: whole, but for `model`.
      update: of the gradients and the new parameters where the optimizer computes: as its own
        arrays; None: as everywhere. `to_compute` and `to_update` need it.
    """

    mesh: Any
    state: Any
    weights: Any
    update: Tree | None = None

    @classmethod
    def replicated(cls, mesh: Mesh | AbstractMesh) -> "Layout":
        """All of it on every device."""
        return cls(mesh, replicated(mesh), replicated(mesh))

    @classmethod
    def of(cls, shapes: Any, mesh: Mesh | AbstractMesh, shard: str = "none") -> "Layout":
        """That of a state.

        Args:
          shapes: the `TrainState` as arrays or `jax.ShapeDtypeStruct`s.
          mesh: from `lay_out` for this `shard`.
          shard: a key of `CUT`.

        Raises:
          UsageError: the mesh has an axis `model` that divides none of the head's layers.
        """
        if not CUT[shard] and MODEL not in mesh.axis_names:
            return cls.replicated(mesh)
        parts = {
            field.name: _lay(getattr(shapes, field.name), mesh, field.name in CUT[shard])
            for field in fields(shapes)
        }
        weights = {k: _lay(getattr(shapes, k), mesh, False) for k in ("params", "batch_stats")}
        specs = [leaf.spec for leaf in jax.tree.leaves(weights)]
        if MODEL in mesh.axis_names and not any(MODEL in spec for spec in specs):
            raise UsageError(
                f"config.mesh.model is {mesh.shape[MODEL]}, which divides no layer of the head; "
                f"take a divisor of config.model.fc_units or of the number of classes, or 1"
            )
        update = _lay(shapes.params, mesh, True) if CUT[shard] else None
        return cls(mesh, replace(shapes, **parts), weights, update)

    def to_compute(self, params: Tree) -> Tree:
        """Within a step: parameters as the model takes them, gathered where they are cut."""
        return jax.lax.with_sharding_constraint(params, self.weights["params"])

    def to_update(self, params: Tree) -> Tree:
        """Within a step: gradients or parameters (None: frozen) as the optimizer takes them."""

        def lay(leaf: jax.Array | None, *places: NamedSharding) -> jax.Array | None:
            for where in places if leaf is not None else ():
                leaf = jax.lax.with_sharding_constraint(leaf, where)
            return leaf

        # First as in the model, lest the cut spreads backwards: XLA would cut convolutions by
        # channels.
        return jax.tree.map(
            lay, params, self.weights["params"], self.update, is_leaf=lambda leaf: leaf is None
        )


def mesh_from_config(config: ConfigDict) -> Mesh:
    """The mesh that a config asks for, of the devices that are there."""
    asked = config.mesh
    return make_mesh(asked.data, asked.model, asked.shard)


def place(shapes: Tree, shardings: Any) -> Tree:
    """`jax.ShapeDtypeStruct`s of arrays that lie so."""
    if isinstance(shardings, NamedSharding):
        one = shardings
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )


def _lay(tree: Tree, mesh: Mesh | AbstractMesh, over_data: bool) -> Tree:
    """Shardings of a tree, by the paths and the sizes of its leaves."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, spec(name, leaf.shape, dict(mesh.shape), over_data))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def layout_table(shapes: Any, layout: Layout) -> Table:
    """What of a state is cut how, and how many bytes a device holds of it."""
    placed = place(shapes, layout.state)
    axes = dict(layout.mesh.shape)
    rows, whole_bytes, held_bytes = [], 0, 0
    for part in fields(placed):
        groups: dict[str, Counter[str]] = {}
        for leaf in jax.tree.leaves(getattr(placed, part.name)):
            group = groups.setdefault(_words(leaf.sharding.spec, axes), Counter())
            group["arrays"] += 1
            group["whole"] += leaf.size * leaf.dtype.itemsize
            group["held"] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for words, group in sorted(groups.items()):
            rows.append((part.name, words, f"{group['arrays']}", f"{group['whole']:,}",
                         f"{group['held']:,}"))  # fmt: skip
            whole_bytes, held_bytes = whole_bytes + group["whole"], held_bytes + group["held"]
    rows.append(("all", "", "", f"{whole_bytes:,}", f"{held_bytes:,}"))
    data = math.prod(layout.mesh.shape[name] for name in data_axes(layout.mesh))
    model = axes.get(MODEL, 1)
    return table(
        f"state on {data} x {model} devices (data x model); batches are cut over all",
        ("state", "cut", "arrays", "bytes", "bytes a device"),
        rows,
    )


def _words(spec: PartitionSpec, axes: dict[str, int]) -> str:
    """A spec for people: `data / 8, model / 2`, or `whole`."""
    names = [
        name
        for entry in spec
        for name in (entry if isinstance(entry, tuple) else (entry,))
        if name is not None
    ]
    data = math.prod(axes[name] for name in names if name != MODEL)
    words = [f"data / {data}"] if data > 1 else []
    words += [f"model / {axes[MODEL]}"] if MODEL in names else []
    return ", ".join(words) or "whole"
