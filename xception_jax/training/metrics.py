"""Metrics of classification.

For data with one label per image, a batch has `label`, int32 `[batch]`. The metrics are `top1` and,
from 20 classes on, `top5`. For data with several labels, it has `labels`, multi-hot uint8
`[batch, classes]`. The metrics are `map`, `precision` and `recall`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from xception_jax.config.registry import Registry, where_is
from xception_jax.errors import UsageError
from xception_jax.training import sharding

# The number of predictions per image in the mean average precision, as in the paper's JFT
# experiments (arXiv:1610.02357v3, section 4.1).
MAP_PREDICTIONS = 100

# With fewer classes, top-5 is nearly always correct.
TOP5_CLASSES = 20

# The divisor of each metric's sum; other metrics are divided by the number of examples.
_DIVISORS = {"map": "labelled", "precision": "predictions", "recall": "positives"}
_COUNTS = ("examples", *_DIVISORS.values())


def labels_of(batch: dict[str, Any]) -> Any:
    """The batch's `labels` or `label`."""
    return batch["labels"] if "labels" in batch else batch["label"]


def sums(
    logits: jax.Array, batch: dict[str, jax.Array], mesh: Mesh | None = None
) -> dict[str, jax.Array]:
    """The sums of a batch's metrics, see `means`. Rows with `mask` 0 are ignored.

    Counts that can exceed 2^24 are int32, all others float32. `mesh` is the mesh over which the
    batch is sharded.
    """
    real = batch["mask"] > 0
    if "labels" not in batch:
        ranks = (1, 5) if logits.shape[-1] >= TOP5_CLASSES else (1,)
        found = {}
        for k in ranks:
            correct = topk_correct(k, logits, batch["label"])
            found[f"top{k}"] = jnp.sum(jnp.where(real, correct, 0))
        return found | {"examples": jnp.sum(real, dtype=jnp.float32)}
    positive = (batch["labels"] > 0) & real[:, None]
    predicted = (logits > 0) & real[:, None]  # a probability above 0.5
    correct = jnp.sum(positive & predicted, dtype=jnp.int32)
    return {
        "map": jnp.sum(average_precision(MAP_PREDICTIONS, logits, positive, mesh)),
        "precision": correct,
        "recall": correct,
        "examples": jnp.sum(real, dtype=jnp.int32),
        "labelled": jnp.sum(jnp.any(positive, axis=1), dtype=jnp.int32),
        "predictions": jnp.sum(predicted, dtype=jnp.int32),
        "positives": jnp.sum(positive, dtype=jnp.int32),
    }


def means(sums: dict[str, Any]) -> dict[str, Any]:
    """The metrics from `sums`, and the means of other sums over examples, such as the loss.

    - `top1`, `top5` (from 20 classes on): the share of examples whose label is in the first one or
      five predictions.
    - `map`: the mean of `average_precision` over images with a label.
    - `precision`, `recall`: over all pairs of an image and a class (micro-averaged). A probability
      above 0.5 is a positive prediction.

    A metric without anything to count is 0.
    """
    found = {}
    for name, total in sums.items():
        if name in _DIVISORS:
            count = sums[_DIVISORS[name]]
            found[name] = total / (count + (count == 0))
        elif name not in _COUNTS:
            found[name] = total / sums["examples"]
    return found


def builtin_names(classes: int, multilabel: bool) -> list[str]:
    """The names of the metrics of `sums` and of the loss, for a number of classes."""
    if multilabel:
        return ["loss", *_DIVISORS]
    return ["loss", "top1", *(["top5"] if classes >= TOP5_CLASSES else [])]


# Takes logits, float32 `[batch, classes]`, and the batch; returns float32 `[batch]`.
PerExample = Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
Registered = tuple[tuple[str, PerExample], ...]
_METRICS = Registry[PerExample]("metric")
# Other names in a record of `metrics.jsonl` or in the result of a command.
_OF_RECORDS = ("skipped", "kind", "step", "time", "weights", "split", "seconds")


def register(name: str) -> Callable[[PerExample], PerExample]:
    """Decorates a function as a metric for `config.eval.metrics`.

    The function takes the logits, float32 `[batch, classes]`, and the batch. It returns one number
    per example, `[batch]`. It is compiled, so it must use `jax.numpy`. The metric is the mean over
    the set's examples.

    Args:
      name: the metric's name, without a slash.

    Raises:
      UsageError: the name is already used, or has a slash.
    """

    def decorate(function: PerExample) -> PerExample:
        taken = (
            *builtin_names(TOP5_CLASSES, False),
            *builtin_names(1, True),
            *_COUNTS,
            *_OF_RECORDS,
        )
        if name in taken or "/" in name:
            raise UsageError(f"metric {name!r} is already used, or has a slash; use another name")
        _METRICS.add(name, function, where_is(function))
        return function

    return decorate


def registered(asked: tuple[str, ...]) -> Registered:
    """The metrics with these names; raises `UsageError` if one does not exist."""
    return tuple((name, _METRICS.find(name, "config.eval.metrics")) for name in asked)


def further_sums(
    further: Registered, logits: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The sums of registered metrics over a batch; rows with `mask` 0 are ignored."""
    real = batch["mask"] > 0
    return {name: jnp.sum(jnp.where(real, one(logits, batch), 0)) for name, one in further}


def topk_correct(k: int, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 if the label is in the k largest logits, else 0.0; float32 `[batch]`.

    Equal logits are ranked by class number, as in `argmax`. With a logit that is not finite, the
    result is 0.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
    return ((rank < k) & jnp.all(jnp.isfinite(logits), axis=1)).astype(jnp.float32)


def average_precision(
    k: int, logits: jax.Array, positive: jax.Array, mesh: Mesh | None = None
) -> jax.Array:
    """Average precision of each image's k best predictions, float32 `[batch]`.

    For each correct prediction, take the share of correct ones among the predictions up to there.
    The result is the sum of these shares, divided by the maximum number of correct predictions,
    `min(k, positives)`. It is 0 for an image without a positive, or with a logit that is not
    finite. Equal logits are ranked by class number.

    Args:
      k: the number of predictions, limited to the number of classes.
      logits: float32 `[batch, classes]`.
      positive: bool `[batch, classes]`.
      mesh: the mesh over which the batch is sharded; None: one device.
    """
    k = min(k, logits.shape[-1])

    def predictions(rows: jax.Array) -> jax.Array:
        return jax.lax.top_k(rows, k)[1]

    if mesh is not None:
        # Without shard_map, XLA gathers all logits on every device for a top_k.
        rows = sharding.by_example(mesh).spec
        predictions = jax.shard_map(predictions, mesh=mesh, in_specs=rows, out_specs=rows)
    best = predictions(logits)
    correct = jnp.take_along_axis(positive, best, axis=1).astype(jnp.float32)
    precision = jnp.cumsum(correct, axis=1) / jnp.arange(1, k + 1)
    possible = jnp.clip(jnp.sum(positive, axis=1), 1, k)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.sum(correct * precision, axis=1) / possible, 0.0)
