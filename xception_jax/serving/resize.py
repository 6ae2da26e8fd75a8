"""Evaluation's own crop and resize, as a function that runs on any device: for exported models.

A run resizes on the host (`render.presets`). An exported program has no host, so it does the
same by two products of matrices, which hold which share of each pixel goes where. It agrees with
the host's to one grey level: OpenCV rounds the shares too where an image grows.
"""

import jax
import jax.numpy as jnp
import numpy as np


def area(images: jax.Array, size: int, crop: float) -> jax.Array:
    """`presets.area` of a batch: the centred square of `crop` of the shorter side.

    Args:
      images: uint8 `[batch, height, width, 3]`; all of its sides may be symbolic.
      size: side of the result, pixels.
      crop: share of the shorter side that is kept.

    Returns:
      float32 `[batch, size, size, 3]`, whole numbers from 0 to 255.
    """
    height, width = images.shape[1:3]
    length = kept(jnp.minimum(jnp.asarray(height), jnp.asarray(width)), crop)
    rows, columns = (_shares(side, length, size) for side in (height, width))
    resized = jnp.einsum(
        "or,brsc,ps->bopc", rows, images.astype(jnp.float32), columns,
        precision=jax.lax.Precision.HIGHEST,  # a TPU's default would round the shares to 8 bits
    )  # fmt: skip
    # OpenCV rounds halves to even numbers, but up where it halves an image.
    rounded = jnp.where(length == 2 * size, jnp.floor(resized + 0.5), jnp.round(resized))
    return jnp.clip(rounded, 0, 255)


def kept(shorter: jax.Array, crop: float) -> jax.Array:
    """Pixels of the shorter side that are kept, as `decode.centre_box` has them."""
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
    """How much of each pixel of a side is in each pixel of the result, `[size, side]`.

    The middle `length` of `side` pixels become `size`: averages over the area where they shrink,
    else linear between the centres of pixels.
    """
    place = jnp.arange(size)[:, None]
    pixel = jnp.arange(side)[None] - (jnp.asarray(side) - length) // 2
    # In whole numbers: both grids as parts of one with `length * size` cells.
    first = jnp.maximum(place * length, pixel * size)
    last = jnp.minimum((place + 1) * length, (pixel + 1) * size)
    averaged = jnp.maximum(last - first, 0) / length
    centre = jnp.clip((place + 0.5) * (length / size) - 0.5, 0, length - 1)
    between = jnp.maximum(1 - jnp.abs(pixel - centre), 0)
    return jnp.where(length > size, averaged, between)
