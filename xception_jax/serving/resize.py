"""The crop and resize of evaluation as a function on any device, for exported programs.

A run resizes on the host (`render.presets`). An exported program does the same with two matrix
products, whose matrices have the weight of each input pixel in each output pixel. The results
differ by at most one grey level, because OpenCV also rounds the weights if an image grows.
"""

import jax
import jax.numpy as jnp
import numpy as np


def area(images: jax.Array, size: int, crop: float) -> jax.Array:
    """`presets.area` of a batch: the centred square of `crop` of the shorter side.

    Args:
      images: uint8 `[batch, height, width, 3]`; the first three sizes can be symbolic.
      size: side of the result, pixels.
      crop: the fraction of the shorter side to keep.

    Returns:
      float32 `[batch, size, size, 3]`, integers from 0 to 255.
    """
    height, width = images.shape[1:3]
    length = kept(jnp.minimum(jnp.asarray(height), jnp.asarray(width)), crop)
    rows, columns = (_shares(side, length, size) for side in (height, width))
    resized = jnp.einsum(
        "or,brsc,ps->bopc", rows, images.astype(jnp.float32), columns,
        precision=jax.lax.Precision.HIGHEST,  # a TPU's default would round the weights to 8 bits
    )  # fmt: skip
    # OpenCV rounds halves to even, but up if it halves an image.
    rounded = jnp.where(length == 2 * size, jnp.floor(resized + 0.5), jnp.round(resized))
    return jnp.clip(rounded, 0, 255)


def kept(shorter: jax.Array, crop: float) -> jax.Array:
    """The number of pixels of the shorter side to keep, as in `decode.centre_box`."""
    return jnp.maximum(jnp.round(shorter * jnp.float32(crop)).astype(jnp.int32), 1)


def side_before(size: int, crop: float) -> int:
    """The side of a square of which `area` keeps the middle `size` pixels, as they are.

    Who has made an image on the host pads it to this side for a program that crops by itself.
    """
    side = size
    while int(np.round(np.float32(side) * np.float32(crop))) < size:
        side += 1
    return side


def _shares(side: int, length: jax.Array, size: int) -> jax.Array:
    """The weight of each pixel of a side in each pixel of the result, `[size, side]`.

    The middle `length` of `side` pixels become `size` pixels: area averages to shrink, else linear
    interpolation between the centres of pixels.
    """
    place = jnp.arange(size)[:, None]
    pixel = jnp.arange(side)[None] - (jnp.asarray(side) - length) // 2
    # In integers: both grids are divisions of one grid with `length * size` cells.
    first = jnp.maximum(place * length, pixel * size)
    last = jnp.minimum((place + 1) * length, (pixel + 1) * size)
    averaged = jnp.maximum(last - first, 0) / length
    centre = jnp.clip((place + 0.5) * (length / size) - 0.5, 0, length - 1)
    between = jnp.maximum(1 - jnp.abs(pixel - centre), 0)
    return jnp.where(length > size, averaged, between)
