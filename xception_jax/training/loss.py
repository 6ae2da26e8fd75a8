"""The loss of an example."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax


@dataclass(frozen=True)
class Loss:
    """The loss of each example: `loss(logits, targets)`, float32 `[batch]`.

    Attributes:
      name: `softmax`: cross entropy with the distribution that the targets are. `sigmoid`: binary
        cross entropy of each class by itself, summed over the classes (the mean that PyTorch and
        Keras take is smaller by the number of classes, and the gradient of each class with it).
      smoothing: share of the targets spread evenly over all classes, `(1 - s) * t + s / classes`
        (arXiv:1512.00567, section 7); for `sigmoid` too.
      class_weights: a factor on the loss of each class, or None. With `softmax` it weighs the
        class' part of the target, with `sigmoid` both terms of the class' cross entropy. The
        batch's loss stays the sum over its examples divided by their number, whatever they weigh.
    """

    name: str = "softmax"
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __call__(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each example.

        Args:
          logits: float32 `[batch, classes]`.
          targets: int32 `[batch]`, each below the number of classes (the data's side checks it),
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
