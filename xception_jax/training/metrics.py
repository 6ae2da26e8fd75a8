"""How right the model's guesses are.

The labels of a batch are its entry `label`, int32 `[batch]`, or, where an image has several,
`labels`, multi-hot uint8 `[batch, classes]`. Which of the two it is decides which metrics there
are: `top1` and, from 20 classes on, `top5`; or `map`, `precision` and `recall`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from xception_jax.config.registry import Registry, where_is
from xception_jax.errors import UsageError
from xception_jax.training import sharding

# Of the mean average precision, as in the paper's JFT experiments (arXiv:1610.02357v3, section
# 4.1): so many of an image's best guesses are looked at.
MAP_GUESSES = 100

# Of fewer classes the first five guesses are a large part, and nearly always right.
TOP5_CLASSES = 20

# What the sum of a metric is divided by; all others by the number of examples.
_DIVISORS = {"map": "labelled", "precision": "guesses", "recall": "positives"}
_COUNTS = ("examples", *_DIVISORS.values())


def labels_of(batch: dict[str, Any]) -> Any:
    """The batch's labels, of the one kind or the other."""
    return batch["labels"] if "labels" in batch else batch["label"]


def sums(
    logits: jax.Array, batch: dict[str, jax.Array], mesh: Mesh | None = None
) -> dict[str, jax.Array]:
    """The batch's metrics, not yet divided: see `means`. Rows whose `mask` is 0 count nowhere.

    Counts that may pass 2^24 are int32, the rest float32. The mesh is that which the batch is cut
    over.
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
    guessed = (logits > 0) & real[:, None]  # a probability above 0.5
    right = jnp.sum(positive & guessed, dtype=jnp.int32)
    return {
        "map": jnp.sum(average_precision(MAP_GUESSES, logits, positive, mesh)),
        "precision": right,
        "recall": right,
        "examples": jnp.sum(real, dtype=jnp.int32),
        "labelled": jnp.sum(jnp.any(positive, axis=1), dtype=jnp.int32),
        "guesses": jnp.sum(guessed, dtype=jnp.int32),
        "positives": jnp.sum(positive, dtype=jnp.int32),
    }


def means(sums: dict[str, Any]) -> dict[str, Any]:
    """The metrics of `sums`, and of other sums over examples, such as the loss.

    `top1`, `top5` (the latter from 20 classes on): share of the examples whose label is among the
    first guesses. `map`: mean of `average_precision` over the images that have a label.
    `precision`, `recall`: over all pairs of an image and a class (micro-averaged), those with a
    probability above 0.5 being the guesses. A metric of which there is nothing to count is 0.
    """
    found = {}
    for name, total in sums.items():
        if name in _DIVISORS:
            count = sums[_DIVISORS[name]]
            found[name] = total / (count + (count == 0))
        elif name not in _COUNTS:
            found[name] = total / sums["examples"]
    return found


def names(classes: int, multilabel: bool) -> list[str]:
    """The metrics of `sums` and the loss, for data of so many classes."""
    if multilabel:
        return ["loss", *_DIVISORS]
    return ["loss", "top1", *(["top5"] if classes >= TOP5_CLASSES else [])]


# Of each example: from logits, float32 `[batch, classes]`, and the batch to float32 `[batch]`.
PerExample = Callable[[jax.Array, dict[str, jax.Array]], jax.Array]
Registered = tuple[tuple[str, PerExample], ...]
_METRICS = Registry[PerExample]("metric")
# What else stands beside metrics in a record of `metrics.jsonl` and in the result of a command.
_OF_RECORDS = ("skipped", "kind", "step", "time", "weights", "split", "seconds")


def register(name: str) -> Callable[[PerExample], PerExample]:
    """Decorates a metric that `config.eval.metrics` can name.

    Its function takes the logits, float32 `[batch, classes]`, and the batch, and gives a number for
    each example, `[batch]`. It is compiled, so it is written with `jax.numpy`. The metric is the
    mean over the set's examples.

    Args:
      name: of the metric, without a slash.

    Raises:
      UsageError: the name is taken, or has a slash.
    """

    def decorate(function: PerExample) -> PerExample:
        taken = (*names(TOP5_CLASSES, False), *names(1, True), *_COUNTS, *_OF_RECORDS)
        if name in taken or "/" in name:
            raise UsageError(
                f"metric {name!r} is taken already, or has a slash in it; take another name"
            )
        _METRICS.add(name, function, where_is(function))
        return function

    return decorate


def registered(asked: tuple[str, ...]) -> Registered:
    """The metrics of these names; raises `UsageError` for one that is not there."""
    return tuple((name, _METRICS.find(name, "config.eval.metrics")) for name in asked)


def further_sums(
    further: Registered, logits: jax.Array, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """The sums of registered metrics over a batch; rows whose `mask` is 0 count nowhere."""
    real = batch["mask"] > 0
    return {name: jnp.sum(jnp.where(real, one(logits, batch), 0)) for name, one in further}


def topk_correct(k: int, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the label is among the k largest logits, else 0.0; float32 `[batch]`.

    Equal logits rank by class number, as `argmax` has it; a label whose logit is NaN is not found.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
    return ((rank < k) & jnp.all(jnp.isfinite(logits), axis=1)).astype(jnp.float32)


def average_precision(
    k: int, logits: jax.Array, positive: jax.Array, mesh: Mesh | None = None
) -> jax.Array:
    """Average precision of each image's k best guesses, float32 `[batch]`.

    The sum, over the guesses that are right, of the share of right ones among the guesses up to
    there, divided by the most that can be right, `min(k, positives)`. 0 for an image without a
    positive, and where a logit is not finite. Equal logits rank by class number.

    Args:
      k: guesses; no more are made than there are classes.
      logits: float32 `[batch, classes]`.
      positive: bool `[batch, classes]`.
      mesh: what the batch is cut over; None: one device.
    """
    k = min(k, logits.shape[-1])

    def guesses(rows: jax.Array) -> jax.Array:
        return jax.lax.top_k(rows, k)[1]

    if mesh is not None:
        # Left to itself, XLA gathers all logits on every device for a top_k.
        rows = sharding.by_example(mesh).spec
        guesses = jax.shard_map(guesses, mesh=mesh, in_specs=rows, out_specs=rows)
    best = guesses(logits)
    right = jnp.take_along_axis(positive, best, axis=1).astype(jnp.float32)
    precision = jnp.cumsum(right, axis=1) / jnp.arange(1, k + 1)
    possible = jnp.clip(jnp.sum(positive, axis=1), 1, k)
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return jnp.where(finite, jnp.sum(right * precision, axis=1) / possible, 0.0)
