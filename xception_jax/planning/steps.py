"""The steps that a run jits, lowered for devices that need not be there, from shapes alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.table import Table

from xception_jax import config as config_lib
from xception_jax.training import evaluation, metrics, optimizer, sharding
from xception_jax.training import state as state_lib
from xception_jax.training import step as step_lib

STEPS = ("train", "evaluate")


@dataclass(frozen=True)
class Data:
    """What a plan has to know of a run's data.

    Attributes:
      classes: their number.
      multilabel: whether an example has any number of labels.
      examples, eval_examples: of the training and the evaluation split; None: not known.
    """

    classes: int
    multilabel: bool = False
    examples: int | None = None
    eval_examples: int | None = None


def lower(
    name: str,
    config: ConfigDict,
    mesh: Mesh,
    data: Data,
    make_model: Callable[[nnx.Rngs], nnx.Module] | None = None,
) -> Any:
    """Lowers the step that `train.prepare` jits for training, or for evaluation.

    Args:
      name: one of `STEPS`.
      config: resolved, see `config.resolve`.
      mesh: of devices that are there, or of a topology's.
      data: of the run.
      make_model: in place of the config's.

    Returns:
      `jax.stages.Lowered`.
    """
    make_model = make_model or state_lib.model_maker(config, data.classes)
    structure = state_lib.structure_of(make_model, config.data.image_size)
    transformation, schedule = _optimizer(config, data)
    init = partial(state_lib.create, make_model, transformation, config.ema.decay > 0)
    shapes = state_lib.shapes_of(init)
    layout = sharding.Layout.of(shapes, mesh, config.mesh.shard)
    state = sharding.place(shapes, layout.state)
    if name == "evaluate":
        loss = metrics.Loss(config_lib.loss_name(config, data.multilabel))
        evaluate: Any = step_lib.jit_evaluate_batch(structure, loss, layout)
        size = evaluation.batch_size_of(config, mesh.size)
        weights = sharding.place(shapes.weights(), layout.weights)
        return evaluate.lower(weights, batch_of(size, config, mesh, data))
    recipe = step_lib.Recipe.from_config(
        config,
        structure,
        transformation,
        schedule,
        mesh.size,
        classes=data.classes,
        multilabel=data.multilabel,
    )
    train: Any = step_lib.jit_train_step(recipe, layout)
    return train.lower(state, batch_of(config.data.batch_size, config, mesh, data))


def _optimizer(config: ConfigDict, data: Data) -> Any:
    """What `optimizer.from_config` makes, for data whose size need not be known."""
    # Of a size that is not known any will do: only constants of the schedule depend on it.
    return optimizer.from_config(config, data.examples or 1000 * config.data.batch_size)


def layout_table(config: ConfigDict, data: Data, devices: int) -> Table:
    """What of the run's state each of so many devices holds, see `sharding.layout_table`."""
    make_model = state_lib.model_maker(config, data.classes)
    init = partial(state_lib.create, make_model, _optimizer(config, data)[0], config.ema.decay > 0)
    shapes, asked = state_lib.shapes_of(init), config.mesh
    mesh = sharding.without_devices(devices, asked.model, asked.shard)
    return sharding.layout_table(shapes, sharding.Layout.of(shapes, mesh, asked.shard))


def batch_of(count: int, config: ConfigDict, mesh: Mesh, data: Data) -> Any:
    """Shapes of a batch of so many examples over all devices, see `data.batches`."""
    side = config.data.image_size
    shapes = {
        "image": ((count, side, side, 3), jnp.uint8),
        "mask": ((count,), jnp.float32),
    }
    if data.multilabel:
        shapes["labels"] = ((count, data.classes), jnp.uint8)
    else:
        shapes["label"] = ((count,), jnp.int32)
    cut = sharding.by_example(mesh)
    return {k: jax.ShapeDtypeStruct(*v, sharding=cut) for k, v in shapes.items()}
