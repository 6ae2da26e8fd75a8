"""Lowers a run's jitted steps from shapes only, also for devices that are not present."""

from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from xception_jax.training import evaluation, sharding, step
from xception_jax.training.build import DataSpec, MakeModel, build

STEPS = ("train", "evaluate")


def lower(
    name: str,
    config: ConfigDict,
    mesh: Mesh,
    data: DataSpec,
    make_model: MakeModel | None = None,
) -> Any:
    """Lowers the step that a run jits for training, or for evaluation.

    Args:
      name: one of `STEPS`.
      config, mesh, data, make_model: see `build.build`.

    Returns:
      `jax.stages.Lowered`.
    """
    functions = build(config, data, mesh, make_model)
    shapes, layout = functions.shapes, functions.layout
    if name == "evaluate":
        size = evaluation.batch_size_of(config, mesh.size)
        weights = sharding.place(shapes.weights(), layout.weights)
        return functions.evaluate_batch.lower(weights, batch_of(size, config, mesh, data))
    state = sharding.place(shapes, layout.state)
    return functions.train_step.lower(state, batch_of(config.data.batch_size, config, mesh, data))


def layout_table(config: ConfigDict, data: DataSpec, devices: int) -> Table:
    """The part of a run's state on each of `devices` devices, see `sharding.layout_table`."""
    mesh = sharding.without_devices(devices, config.mesh.model, config.mesh.shard)
    functions = build(config, data, mesh)
    return sharding.layout_table(functions.shapes, functions.layout)


def batch_of(count: int, config: ConfigDict, mesh: Mesh, data: DataSpec) -> Any:
    """Shapes of a batch of `count` examples over all devices, see `data.batches`."""
    shapes = step.batch_shapes(count, config.data.image_size, data.classes, data.multilabel)
    return sharding.place(shapes, sharding.by_example(mesh))
