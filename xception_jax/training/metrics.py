"""Metrics of classification.

For data with one label per image, a batch has `label`, int32 `[batch]`. The metrics are `top1` and,
from 20 classes on, `top5`. For data with several labels, it has `labels`, multi-hot uint8
`[batch, classes]`. The metrics are `map`, `precision` and `recall`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xception_jax.config.registry import Registry
from xception_jax.errors import UsageError
from xception_jax.training import sharding

# The number of predictions per image in the mean average precision, as in the paper's JFT
# experiments (arXiv:1610.02357v3, section 4.1).
MAP_PREDICTIONS = 100

# The metrics in percent with their names in a line; which of them exist depends on the data.
SHARES = {
    "top1": "top-1",
    "top5": "top-5",
    "map": f"MAP@{MAP_PREDICTIONS}",
    "precision": "precision",
    "recall": "recall",
}

# With fewer classes, top-5 is nearly always correct.
TOP5_CLASSES = 20

# With more classes, a matrix of all pairs would take too much memory: 21,841 classes, 1.9 GB.
MATRIX_CLASSES = 2000

# The divisor of each metric's sum; other metrics are divided by the number of examples.
_DIVISORS = {"map": "labelled", "precision": "predictions", "recall": "positives"}
_COUNTS = ("examples", *_DIVISORS.values())


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


def means(
    sums: dict[str, Any], figures: "Mapping[str, Figure | None]" = MappingProxyType({})
) -> dict[str, Any]:
    """The metrics from `sums`, and the means of other sums over examples, such as the loss.

    - `top1`, `top5` (from 20 classes on): the share of examples whose label is in the first one or
      five predictions.
    - `map`: the mean of `average_precision` over images with a label.
    - `precision`, `recall`: over all pairs of an image and a class (micro-averaged). A probability
      above 0.5 is a positive prediction.

    A metric without anything to count is 0.

    Args:
      sums: including `examples`, their number.
      figures: the `figure` of each registered metric by name, see `register`.
    """
    found = {}
    for name, total in sums.items():
        if name in _DIVISORS:
            count = sums[_DIVISORS[name]]
            found[name] = total / (count + (count == 0))
        elif figure := figures.get(name):
            found[name] = figure(total, sums["examples"])
        elif name not in _COUNTS:
            found[name] = total / sums["examples"]
    return found


def class_sums(logits: jax.Array, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The sums of a batch for each class, int32; rows with `mask` 0 are ignored.

    With one label per image and up to `MATRIX_CLASSES` classes, `confusion` `[classes, classes]`:
    the examples of each label, by the prediction. Else `images`, `predicted` (with several labels:
    a probability above 0.5) and `right`, `[classes]`.
    """
    real = batch["mask"] > 0
    if "label" in batch:
        classes, label, best = logits.shape[-1], batch["label"], jnp.argmax(logits, axis=1)

        def count(which: Any, shape: tuple[int, ...], among: jax.Array) -> jax.Array:
            return jnp.zeros(shape, jnp.int32).at[which].add(among.astype(jnp.int32))

        if classes <= MATRIX_CLASSES:
            return {"confusion": count((label, best), (classes, classes), real)}
        each = (classes,)
        return {
            "images": count(label, each, real),
            "predicted": count(best, each, real),
            "right": count(label, each, real & (label == best)),
        }
    positive, predicted = (batch["labels"] > 0) & real[:, None], (logits > 0) & real[:, None]
    found = {"images": positive, "predicted": predicted, "right": positive & predicted}
    return {name: jnp.sum(each, axis=0, dtype=jnp.int32) for name, each in found.items()}


def builtin_names(classes: int, multilabel: bool) -> list[str]:
    """The names of the metrics of `sums` and of the loss, for a number of classes."""
    if multilabel:
        return ["loss", *_DIVISORS]
    return ["loss", "top1", *(["top5"] if classes >= TOP5_CLASSES else [])]


# Takes logits, float32 `[batch, classes]`, and the batch; returns an array `[batch, ...]` or a tree
# of such arrays, as a dict.
PerExample = Callable[[jax.Array, dict[str, jax.Array]], Any]
# Takes the sums of these over the examples, float64, and the number of examples.
Figure = Callable[[Any, float], Any]


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
      name: the metric's name.
      per_example: returns the values to sum over the set.
      figure: computes the metric from the sums; None: the sum divided by the number of examples.
    """

    name: str
    per_example: PerExample
    figure: Figure | None = None

    def sum(self, logits: jax.Array, batch: dict[str, jax.Array]) -> Any:
        """The sums over a batch; rows with `mask` 0 are ignored."""
        real = batch["mask"] > 0

        def refuse(returned: str) -> None:
            raise UsageError(
                f"metric {self.name!r} returns {returned} for a batch of {len(real)}; expected a "
                f"number per example, or, with figure=, an array"
            )

        def total(each: Any) -> jax.Array:
            own = np.ndim(each) == 1 or self.figure is not None
            if np.shape(each)[:1] != real.shape or not own:
                refuse(f"an array {list(np.shape(each))}")
            rows = real.reshape(-1, *[1] * (np.ndim(each) - 1))
            return jnp.sum(jnp.where(rows, each, 0), axis=0)

        values = self.per_example(logits, batch)
        if self.figure is None and not jax.tree_util.all_leaves([values]):
            refuse(f"a {type(values).__name__}")
        return jax.tree.map(total, values)

    def check(self, logits: jax.ShapeDtypeStruct, batch: Mapping[str, Any]) -> None:
        """Checks what the functions return, for shapes of logits and of a batch.

        `figure` is called on sums of zeros, which it may be unable to divide by.

        Raises:
          UsageError: it is not what `register` says. Nothing was compiled.
        """
        sums = jax.eval_shape(self.sum, logits, batch)
        if self.figure is None:
            return
        zeros = jax.tree.map(lambda each: np.float64(np.zeros(each.shape)), sums)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                found = np.asarray(self.figure(zeros, 1.0))
            except (ArithmeticError, IndexError, ValueError):
                return
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                raise UsageError(
                    f"metric {self.name!r}: figure= fails: {type(error).__name__}: {reason}"
                ) from None
        if found.ndim or found.dtype.kind not in "biuf":
            what = f"an array {list(found.shape)}" if found.ndim else f"{found[()]!r}"
            raise UsageError(f"metric {self.name!r}: figure= returns {what}; expected a number")


Registered = tuple[Metric, ...]
_METRICS = Registry[Metric]("metric")
# Other names in a record of `metrics.jsonl` or in the result of a command.
_OF_RECORDS = ("skipped", "kind", "step", "time", "weights", "split", "seconds")


def register(name: str, *, figure: Figure | None = None) -> Callable[[PerExample], PerExample]:
    """Decorates a function as a metric for `config.eval.metrics`.

    The function takes the logits, float32 `[batch, classes]`, and the batch. It returns one number
    per example, `[batch]`. It is compiled, so it must use `jax.numpy`. The metric is the mean over
    the set's examples.

    If the metric is not such a mean, the function returns an array per example, `[batch, ...]`, or
    a dict of arrays. They are summed over the set. `figure(sums, examples)` computes the metric
    from the sums, which are NumPy arrays, and the number of examples. Before a run, it is called
    once on zeros.

    Args:
      name: the metric's name, without a slash.
      figure: see above; None: the mean.

    Raises:
      UsageError: the name is already used, or has a slash.
    """

    def decorate(function: PerExample) -> PerExample:
        builtin = (*builtin_names(TOP5_CLASSES, False), *builtin_names(1, True))
        taken = (*builtin, *_COUNTS, *_OF_RECORDS)
        if name in taken or "/" in name:
            raise UsageError(f"metric {name!r} is already used, or has a slash; use another name")
        _METRICS.add(name, Metric(name, function, figure), function)
        return function

    return decorate


def registered(asked: tuple[str, ...]) -> Registered:
    """The metrics with these names; raises `UsageError` if one does not exist."""
    return tuple(_METRICS.find(name, "config.eval.metrics") for name in asked)


def further_sums(
    further: Registered, logits: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, Any]:
    """The sums of registered metrics over a batch, by name."""
    return {metric.name: metric.sum(logits, batch) for metric in further}


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
