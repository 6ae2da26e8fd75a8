"""A metric that is no mean over examples: the expected calibration error (arXiv:1706.04599)."""

import jax
import jax.numpy as jnp
import numpy as np

from xception_jax.training import metrics

BINS = 15


def gap(sums, examples):
    confidence, right = sums.T
    return np.abs(right - confidence).sum() / examples


@metrics.register("ece", figure=gap)
def calibration(logits, batch):
    confidence = jax.nn.softmax(logits).max(axis=-1)
    right = logits.argmax(axis=-1) == batch["label"]
    own = jax.nn.one_hot(jnp.ceil(confidence * BINS).astype(int) - 1, BINS)
    return own[:, :, None] * jnp.stack([confidence, right], axis=-1)[:, None, :]
