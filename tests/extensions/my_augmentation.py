"""An augmentation: some of the images become negatives."""

import jax
import jax.numpy as jnp

from xception_jax.augment import pipeline
from xception_jax.config import Field


@pipeline.register("negative", Field(0.0, "share of the images; 0: off", float, low=0.0, high=1.0))
def negative(key, image, share):
    return jnp.where(jax.random.bernoulli(key, share), 255 - image, image)
