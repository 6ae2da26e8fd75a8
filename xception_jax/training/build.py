"""Builds the functions of a run from its config, for training, evaluation, export and plans.

Nothing is compiled, no weights are created, and the devices need not exist.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.data.source import Source
from xception_jax.training import metrics, optimizer, sharding
from xception_jax.training import state as state_lib
from xception_jax.training import step as step_lib
from xception_jax.training.loss import Loss
from xception_jax.training.sharding import Layout
from xception_jax.training.state import TrainState

MakeModel = Callable[[nnx.Rngs], nnx.Module]


@dataclass(frozen=True)
class DataSpec:
    """The properties of the data that the functions of a run depend on.

    Attributes:
      classes: the number of classes.
      multilabel: whether an example can have any number of labels.
      examples: the size of the training split; None if unknown.
      eval_examples: the size of the evaluation split; None if unknown.
    """

    classes: int
    multilabel: bool = False
    examples: int | None = None
    eval_examples: int | None = None

    @classmethod
    def of(cls, source: Source) -> "DataSpec":
        """The properties of a training split."""
        return cls(len(source.class_names), source.multilabel, len(source))


@dataclass(frozen=True)
class Functions:
    """The functions of a run.

    Attributes:
      config: resolved, see `config.resolve`.
      layout: the layout of the state on the mesh.
      init: creates the state from a key.
      shapes: the `TrainState` as `jax.ShapeDtypeStruct`s.
      frozen: parts of the model that are not trained.
      train_step: jitted; see `step.jit_train_step`.
      evaluate_batch_of: returns the jitted step of a set by its name, see `build_evaluation`.
    """

    config: ConfigDict
    layout: Layout
    init: Callable[[jax.Array], TrainState]
    shapes: TrainState
    frozen: tuple[str, ...]
    train_step: jax.stages.Wrapped
    evaluate_batch_of: Callable[[str], jax.stages.Wrapped]

    @property
    def evaluate_batch(self) -> jax.stages.Wrapped:
        """The evaluation step on `data.eval_split`."""
        return self.evaluate_batch_of("")


def build(
    config: ConfigDict,
    data: DataSpec,
    mesh: Mesh | AbstractMesh | None = None,
    make_model: MakeModel | None = None,
) -> Functions:
    """The functions of a run.

    Args:
      config: resolved, see `config.resolve`.
      data: of the run. Where the number of examples is not known, the schedule has other constants.
      mesh: of devices that need not be there; None: what the config asks for, of those that are.
      make_model: in place of the config's.

    Raises:
      UsageError: the model, the images or the mesh do not go together.
    """
    make_model = make_model or state_lib.model_maker(config, data.classes)
    graphdef = state_lib.graphdef_of(make_model, config.data.image_size)
    examples = data.examples or 1000 * config.data.batch_size
    transformation, schedule = optimizer.from_config(config, examples)
    init = partial(state_lib.create, make_model, transformation, config.ema.decay > 0)
    shapes = state_lib.shapes_of(init)
    if mesh is None:
        mesh = sharding.mesh_from_config(config)
    layout = Layout.of(shapes, mesh, config.mesh.shard)
    frozen = state_lib.frozen_parts(graphdef, vars(shapes))
    step_config = step_lib.StepConfig.from_config(
        config, graphdef, transformation, schedule, mesh.size,
        classes=data.classes, multilabel=data.multilabel, frozen=frozen,
    )  # fmt: skip
    return Functions(
        config=config,
        layout=layout,
        init=init,
        shapes=shapes,
        frozen=frozen,
        train_step=step_lib.jit_train_step(step_config, layout),
        evaluate_batch_of=_evaluation(config, graphdef, layout, data.multilabel),
    )


def build_evaluation(
    config: ConfigDict, data: DataSpec, layout: Layout, per_class: bool = False
) -> Callable[[str], jax.stages.Wrapped]:
    """The evaluation steps only, for weights with their own layout.

    Args:
      config: resolved.
      data: of the evaluation set.
      layout: of the weights.
      per_class: whether the step of `data.eval_split` also counts each class.

    Returns:
      A function from the name of a set (empty for `data.eval_split`) to the jitted
      `step.evaluate_batch` with the set's metrics. Sets with equal metrics share a step.
    """
    graphdef = build_graphdef(config, data.classes)
    return _evaluation(config, graphdef, layout, data.multilabel, per_class)


def build_graphdef(config: ConfigDict, classes: int) -> Any:
    """The graph definition of the config's model, see `state.graphdef_of`."""
    return state_lib.graphdef_of(state_lib.model_maker(config, classes), config.data.image_size)


def _evaluation(
    config: ConfigDict, graphdef: Any, layout: Layout, multilabel: bool, per_class: bool = False
) -> Callable[[str], jax.stages.Wrapped]:
    # Plain, so that runs which smooth or weigh otherwise can be compared.
    loss = Loss(config_lib.loss_name(config, multilabel))

    @cache
    def jitted(names: tuple[str, ...], per_class: bool) -> jax.stages.Wrapped:
        further = metrics.registered(names)
        return step_lib.jit_evaluate_batch(graphdef, loss, layout, further, per_class)

    return lambda name: jitted(config_lib.eval_metrics(config, name), per_class and not name)
