"""The loss of an example, and whether its label is among the model's first guesses."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy of each example, float32 `[batch]`.

    Args:
      logits: float32 `[batch, classes]`.
      labels: int32 `[batch]`, each below the number of classes (the data's side checks it).
      smoothing: share of the target spread evenly over all classes (arXiv:1512.00567, section 7).
    """
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def in_top(k: int, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1.0 where the label is among the k largest logits, else 0.0; float32 `[batch]`.

    Equal logits rank by class number, as `argmax` has it; a label whose logit is NaN is not found.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
    return ((rank < k) & jnp.all(jnp.isfinite(logits), axis=1)).astype(jnp.float32)
