"""The loss of an example."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class Loss:
    """The loss of each example: `loss(logits, targets)`, float32 `[batch]`.

    Attributes:
      name: `softmax`: cross entropy with the targets as a distribution. `sigmoid`: binary cross
        entropy of each class, summed over the classes. (PyTorch and Keras use the mean, so their
        loss and gradients are smaller by the number of classes.)
      smoothing: share of the targets spread evenly over all classes, `(1 - s) * t + s / classes`
        (arXiv:1512.00567, section 7); also for `sigmoid`.
      class_weights: a factor of each class's loss, or None. With `softmax` it multiplies the
        class's part of the target, with `sigmoid` both terms of the class's cross entropy. The
        batch's loss is still divided by the number of examples, not by their weights.
    """

    name: str = "softmax"
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each example.

        Args:
          logits: float32 `[batch, classes]`.
          targets: int32 `[batch]`, each below the number of classes (the data module checks it),
            or multi-hot or soft, `[batch, classes]` of any dtype.
        """
        losses: jax.Array
        weights = None
        if self.class_weights is not None:
            weights = jnp.asarray(self.class_weights, jnp.float32)
        if self.name == "softmax" and targets.ndim == 1 and not self.smoothing:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return losses if weights is None else losses * weights[targets]
        if targets.ndim == 1:
            targets = jax.nn.one_hot(targets, logits.shape[-1])
        targets = targets.astype(jnp.float32)
        if self.smoothing:
            targets = optax.smooth_labels(targets, self.smoothing)
        if self.name == "softmax":
            weighted = targets if weights is None else targets * weights
            losses = optax.softmax_cross_entropy(logits, weighted)
        else:
            losses = optax.sigmoid_binary_cross_entropy(logits, targets)
            losses = jnp.sum(losses if weights is None else losses * weights, axis=-1)
        return losses


SOFTMAX = Loss()


def labels_of(batch: dict[str, Any]) -> Any:
    """The batch's `labels` or `label`."""
    return batch["labels"] if "labels" in batch else batch["label"]
