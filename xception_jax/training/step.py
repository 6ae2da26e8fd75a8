"""A training step and the evaluation of a batch: pure functions, jitted once."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax.augment import pipeline
from xception_jax.training import metrics, sharding
from xception_jax.training.loss import SOFTMAX, Loss, labels_of
from xception_jax.training.sharding import Layout
from xception_jax.training.sharding_rules import MODEL
from xception_jax.training.state import (
    TrainState,
    Tree,
    combine,
    keep_frozen,
    partition,
)

Batch = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


@dataclass(frozen=True)
class StepConfig:
    """The static arguments of a training step.

    Attributes:
      graphdef: the model's, see `state.graphdef_of`.
      optimizer: from `training.optimizer`.
      schedule: from `training.optimizer`; only to report the learning rate.
      frozen: parts of the model that are not trained, see `state.frozen_parts`.
      matmul_precision: the model's, see `models.network.Network`.
      seed: of augmentation and dropout.
      augmentation: see `augment.pipeline`.
      classes: their number; needed if examples are mixed.
      loss: the loss of each example.
      accumulate: the number of microbatches per batch, which the model processes in turn.
      virtual_batch: of batch normalization; needed if `accumulate` > 1.
      ema_decay: of the averaged weights; 0 without averages.
      mesh: the devices; None: one. `jit_train_step` sets it.
      layout: of a state whose optimizer arrays are sharded; None: they are replicated.
        `jit_train_step` sets it.
    """

    graphdef: Any
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    frozen: tuple[str, ...]
    matmul_precision: str | None
    seed: int = 0
    augmentation: pipeline.Augmentation = field(default_factory=pipeline.Augmentation)
    classes: int | None = None
    loss: Loss = SOFTMAX
    accumulate: int = 1
    virtual_batch: int | None = None
    ema_decay: float = 0.0
    mesh: Mesh | None = None
    layout: Layout | None = None

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        graphdef: Any,
        optimizer: optax.GradientTransformation,
        schedule: optax.Schedule,
        devices: int,
        classes: int | None = None,
        multilabel: bool = False,
        frozen: tuple[str, ...] = (),
    ) -> "StepConfig":
        """The arguments for a config, a number of devices and the classes of the data."""
        return cls(
            graphdef=graphdef,
            optimizer=optimizer,
            schedule=schedule,
            seed=config.seed,
            augmentation=pipeline.Augmentation.from_config(config.augment),
            classes=classes,
            loss=Loss(
                config_lib.loss_name(config, multilabel),
                config.loss.label_smoothing,
                config.loss.class_weights,
            ),
            accumulate=config_lib.microbatch_count(config, devices),
            virtual_batch=config.model.bn_virtual_batch,
            ema_decay=config.ema.decay,
            frozen=frozen,
            matmul_precision=config_lib.matmul_precision(config),
        )


def apply(
    graphdef: Any,
    weights: Tree,
    pixels: jax.Array | None,
    *,
    features: jax.Array | None = None,
    train: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, Tree]:
    """Runs the model.

    Args:
      graphdef: from `state.graphdef_of`.
      weights: `{"params", "batch_stats"}`.
      pixels: `[batch, height, width, 3]`, from 0 to 255, RGB.
      features: the images' `Network.frozen_output`, in place of the pixels.
      train: whether to use batch statistics and dropout.
      key: the key for dropout, in training.
      mesh: the devices; needed if the head is sharded over them, see `sharding.for_head`.

    Returns:
      Logits `[batch, classes]`, and the updated batch statistics.
    """
    model = nnx.merge(graphdef, weights["params"], weights["batch_stats"], copy=True)
    rngs = None if key is None else nnx.Rngs(dropout=key)
    asked = model.matmul_precision
    with jax.default_matmul_precision(asked) if asked else nullcontext():
        if features is None:
            pooled, place = model.pool(model.features(model.normalize(pixels), train=train)), None
        else:
            pooled, place = model.after_frozen(features, train=train), None
        if mesh is not None and MODEL in mesh.axis_names:
            pooled, place = sharding.for_head(pooled, mesh)
        logits = model.classify(pooled, train=train, rngs=rngs, place=place)
    return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def train_step(config: StepConfig, state: TrainState, batch: Batch) -> tuple[TrainState, Scalars]:
    """One optimizer step.

    Args:
      config: static.
      state: at step s.
      batch: of step s, see `data.batches`; or with `features` in place of `image`, see
        `data.features`. Features are not augmented.

    Returns:
      The state at step s + 1, and float32 scalars: `loss`, the metrics of `metrics.means` and
      `grad_norm` over the batch before the update, and `learning_rate`. With mixed examples, the
      loss uses the mixed targets, and the metrics use the labels of each row before mixing.
    """
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    if "image" in batch:
        batch = pipeline.augment_batch(
            config.augmentation, config.seed, state.step, batch, config.classes
        )
    asked = config.matmul_precision
    # Gradients also inside: only there the backward pass of a `jax.custom_vjp` is traced.
    with jax.default_matmul_precision(asked) if asked else nullcontext():
        gradients, batch_stats, sums = _gradients(config, state, batch, dropout_key)
    trained = partition(state.params, config.frozen) if config.frozen else state.params
    if config.layout:
        gradients, trained = config.layout.to_update(gradients), config.layout.to_update(trained)
    updates, opt_state = config.optimizer.update(gradients, state.opt_state, trained)
    params = optax.apply_updates(trained, updates)
    if config.layout:
        params = config.layout.to_update(params)
    if config.frozen:
        params = combine(params, state.params)
        batch_stats = keep_frozen(batch_stats, state.batch_stats, config.frozen)
    weights, ema = {"params": params, "batch_stats": batch_stats}, state.ema
    if state.ema is not None:
        # In the first steps the averages follow faster, as in TensorFlow.
        decay = jnp.minimum(config.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = optax.incremental_update(weights, state.ema, 1 - decay)
        if config.frozen:
            ema = {k: keep_frozen(ema[k], state.ema[k], config.frozen) for k in weights}
    return TrainState(step=state.step + 1, opt_state=opt_state, ema=ema, **weights), {
        **metrics.means(sums),
        "grad_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(config.schedule(state.step), jnp.float32),
    }


def _gradients(
    config: StepConfig, state: TrainState, batch: Batch, key: jax.Array
) -> tuple[Tree, Tree, Scalars]:
    """Gradients of the mean loss, the updated batch statistics, and the sums of the metrics.

    The gradients are None for frozen leaves.
    """
    examples = batch["mask"].sum()
    weights = config.layout.to_compute(state.params) if config.layout else state.params
    trained = partition(weights, config.frozen) if config.frozen else weights

    def loss_of(params: Tree, part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        if config.frozen:
            params = combine(params, weights)
        all_weights = {"params": params, "batch_stats": state.batch_stats}
        logits, batch_stats = apply(
            config.graphdef, all_weights, part.get("image"), features=part.get("features"),
            train=True, key=key, mesh=config.mesh,
        )  # fmt: skip
        losses = config.loss(logits, part.get("targets", labels_of(part)))
        loss = jnp.sum(losses * part["mask"])
        return loss / examples, (
            batch_stats,
            {"loss": loss, **metrics.sums(logits, part, config.mesh)},
        )

    gradient_of = jax.grad(loss_of, has_aux=True)
    if config.accumulate == 1:
        gradients, (batch_stats, sums) = gradient_of(trained, batch, key)
        return gradients, batch_stats, sums

    def add(total: Tree, part_and_key: Any) -> tuple[Tree, Scalars]:
        gradients, (batch_stats, sums) = gradient_of(trained, *part_and_key)
        # The running statistics are linear in the batch's, so the mean over the parts is exact.
        batch_stats = jax.tree.map(lambda leaf: leaf / config.accumulate, batch_stats)
        return jax.tree.map(jnp.add, total, (gradients, batch_stats)), sums

    parts = split_microbatches(batch, config.accumulate, config.virtual_batch)
    keys = jax.random.split(key, config.accumulate)
    nothing = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (trained, state.batch_stats)
    )
    (gradients, batch_stats), sums = jax.lax.scan(add, nothing, (parts, keys))
    return gradients, batch_stats, jax.tree.map(partial(jnp.sum, axis=0), sums)


def split_microbatches(batch: Batch, parts: int, virtual_batch: int | None) -> Batch:
    """Splits `[batch, ...]` arrays into `[parts, batch / parts, ...]` along virtual batches.

    Part p gets every parts-th virtual batch. So each device splits its own shard, and the content
    of a part does not depend on the number of devices.
    """
    if virtual_batch is None:
        raise ValueError("gradient accumulation needs virtual batches: the statistics of a full "
                         "batch cannot be computed from its parts")  # fmt: skip

    def split(array: jax.Array) -> jax.Array:
        runs = array.reshape(-1, parts, virtual_batch, *array.shape[1:])
        return runs.swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])

    parted: Batch = jax.tree.map(split, batch)
    return parted


def batch_shapes(
    count: int, side: int, classes: int, multilabel: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of `count` images of `side` pixels, see `data.batches`."""
    label = ((count, classes), jnp.uint8) if multilabel else ((count,), jnp.int32)
    shapes = {
        "image": ((count, side, side, 3), jnp.uint8),
        "mask": ((count,), jnp.float32),
        "labels" if multilabel else "label": label,
    }
    return {name: jax.ShapeDtypeStruct(*each) for name, each in shapes.items()}


def evaluate_batch(
    graphdef: Any,
    loss: Loss,
    mesh: Mesh,
    further: metrics.Registered,
    per_class: bool,
    weights: Tree,
    batch: Batch,
) -> Scalars:
    """Sums over the unmasked examples of a batch: `loss`, further metrics, `metrics.sums`.

    With `per_class` also `per_class`, see `metrics.class_sums`.
    """
    logits, _ = apply(
        graphdef, weights, batch.get("image"), features=batch.get("features"), mesh=mesh
    )
    losses = loss(logits, labels_of(batch))
    return {
        "loss": jnp.sum(jnp.where(batch["mask"] > 0, losses, 0)),
        **metrics.further_sums(further, logits, batch),
        **metrics.sums(logits, batch, mesh),
        **({"per_class": metrics.class_sums(logits, batch)} if per_class else {}),
    }


def jit_train_step(config: StepConfig, layout: Layout) -> jax.stages.Wrapped:
    """`train_step` on the layout's devices, with a donated state and a sharded batch."""
    replicated, by_example = sharding.replicated(layout.mesh), sharding.by_example(layout.mesh)
    config = replace(config, mesh=layout.mesh, layout=layout if layout.update is not None else None)
    return jax.jit(
        partial(train_step, config),
        in_shardings=(layout.state, by_example),
        out_shardings=(layout.state, replicated),
        donate_argnums=0,
    )


def jit_evaluate_batch(
    graphdef: Any,
    loss: Loss,
    layout: Layout,
    further: metrics.Registered = (),
    per_class: bool = False,
) -> jax.stages.Wrapped:
    """`evaluate_batch` on the layout's devices, with `layout.weights`."""
    replicated, by_example = sharding.replicated(layout.mesh), sharding.by_example(layout.mesh)
    return jax.jit(
        partial(evaluate_batch, graphdef, loss, layout.mesh, further, per_class),
        in_shardings=(layout.weights, by_example),
        out_shardings=replicated,
    )
