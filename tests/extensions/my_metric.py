"""A metric: the squared distance of the probabilities from the label (Brier's score)."""

import jax
import jax.numpy as jnp

from xception_jax.training import metrics


@metrics.register("brier")
def brier(logits, batch):
    labels = jax.nn.one_hot(batch["label"], logits.shape[-1])
    return jnp.sum((jax.nn.softmax(logits) - labels) ** 2, axis=-1)
