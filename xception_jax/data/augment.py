"""What the device does to a batch of images, inside the jitted step.

Every example has a key of its own, a function of the step and its row, so that neither the layout
of the devices nor the number of microbatches changes what happens to it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def normalize(images: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """uint8 pixels to [-1, 1], as the paper's and Keras' Xception take them."""
    return (images.astype(jnp.float32) / 127.5 - 1).astype(dtype)


def augment(key: jax.Array, images: jax.Array, *, flip: bool, shift: int) -> jax.Array:
    """Flips and shifts each image at random.

    Args:
      key: the step's.
      images: uint8 `[batch, height, width, channels]`.
      flip: mirror half of the images left to right.
      shift: move each image by up to so many pixels in each direction; black comes in.

    Returns:
      Images of the same shape and dtype.
    """
    if not flip and not shift:
        return images
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(images.shape[0]))
    return jax.vmap(partial(_augment_one, flip=flip, shift=shift))(keys, images)


def _augment_one(key: jax.Array, image: jax.Array, *, flip: bool, shift: int) -> jax.Array:
    flip_key, shift_key = jax.random.split(key)
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if shift:
        row, column = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    return image
