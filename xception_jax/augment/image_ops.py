"""Operations on one image with Pillow's results, without branches on the device.

Pillow's operations by a table of levels are one look-up here. Its operations that blend with
another image are one blend, and every affine map is one gather. So a policy that draws an operation
for each image of a batch costs these three operations, not all the operations that it may draw.

Arithmetic on pixels and coordinates uses integers. In floating point, a compiler may fuse a
multiplication and an addition in one program and not in another. Truncation to uint8 would turn
this rounding into another level, so an image would depend on the JAX version and the device.

Images are uint8 `[height, width, 3]`, RGB.
"""

import jax
import jax.numpy as jnp

LEVELS = 256

# Fractional bits of a blend's change: 255 * (1 + 1 + 5) levels still fit into an int32.
_BLEND_BITS = 20
# Fractional bits of a matrix, as in Pillow: coordinates below 8192 fit.
_WARP_BITS = 16


def grey(image: jax.Array) -> jax.Array:
    """Luma by ITU-R 601-2, rounded as Pillow's `convert("L")`: uint8 `[height, width, 1]`."""
    weights = jnp.asarray([19595, 38470, 7471])
    return ((image @ weights + 2**15) >> 16).astype(jnp.uint8)[..., None]


def mean_grey(image: jax.Array) -> jax.Array:
    """The rounded mean luma, uint8 `[1, 1, 1]`, which `ImageEnhance.Contrast` blends with."""
    total = jnp.sum(grey(image), dtype=jnp.int32, keepdims=True)
    count = image.shape[0] * image.shape[1]
    return ((total + count // 2) // count).astype(jnp.uint8)


def smooth(image: jax.Array) -> jax.Array:
    """Pillow's filter `SMOOTH`: 3x3, the centre weighs five; the outermost pixels are unchanged."""
    if min(image.shape[:2]) < 3:
        return image
    wide = image.astype(jnp.int32)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    inside = jnp.floor(total / 13 + 0.5).astype(jnp.uint8)
    return jax.lax.dynamic_update_slice(image, inside, (1, 1, 0))


def blend(image: jax.Array, other: jax.Array, change: jax.Array) -> jax.Array:
    """`image` at change 0, `other` at -1, away from `other` above 0; clipped to 0...255, truncated.

    `change` is the factor of Pillow's `ImageEnhance`, minus 1. With `other` black this is its
    `Brightness`, with `mean_grey` `Contrast`, with `grey` `Color` (saturation), with `smooth`
    `Sharpness`.

    Args:
      image: uint8 `[height, width, 3]`.
      other: uint8, with a shape that broadcasts to the image's.
      change: float32, -1 to 5.
    """
    wide = image.astype(jnp.int32)
    fixed = jnp.round(change * 2**_BLEND_BITS).astype(jnp.int32)
    # Rounding shifts the change by up to half a unit, 255 times. An exact level must not drop by 1.
    total = (wide << _BLEND_BITS) + fixed * (wide - other) + LEVELS // 2
    return jnp.clip(total >> _BLEND_BITS, 0, 255).astype(jnp.uint8)


def histogram(image: jax.Array) -> jax.Array:
    """Counts of each level in each channel: int32 `[256, 3]`."""
    # Channel by channel: all at once takes more memory for indices.
    channels = jnp.moveaxis(image, -1, 0)
    return jnp.stack([jnp.bincount(c.ravel(), length=LEVELS) for c in channels], axis=1)


def look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """Replaces each level by the table's: uint8 `[256, 3]`, a column for each channel."""
    columns = zip(jnp.moveaxis(image, -1, 0), table.T, strict=True)
    return jnp.stack([column[channel] for channel, column in columns], axis=-1)


def autocontrast_table(counts: jax.Array) -> jax.Array:
    """Stretches each channel to 0...255, as `ImageOps.autocontrast`.

    Args:
      counts: see `histogram`.
    """
    levels = jnp.arange(LEVELS)[:, None]
    low = jnp.argmax(counts > 0, axis=0)
    high = LEVELS - 1 - jnp.argmax(counts[::-1] > 0, axis=0)
    stretched = jnp.clip((levels - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, levels).astype(jnp.uint8)


def equalize_table(counts: jax.Array) -> jax.Array:
    """Makes each channel's levels about equally frequent, as `ImageOps.equalize`.

    Args:
      counts: see `histogram`.
    """
    levels = jnp.arange(LEVELS)[:, None]
    below = jnp.cumsum(counts, axis=0) - counts
    # The number of pixels below the highest level; 0 if there is only one level.
    highest = LEVELS - 1 - jnp.argmax(counts[::-1] > 0, axis=0)
    step = jnp.take_along_axis(below, highest[None], axis=0) // 255
    equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, equal, levels).astype(jnp.uint8)


def posterize_table(bits: jax.Array) -> jax.Array:
    """Keeps the `bits` (1 to 8) highest bits of a level, as `ImageOps.posterize`: one column."""
    dropped = 8 - bits
    return (jnp.arange(LEVELS)[:, None] >> dropped << dropped).astype(jnp.uint8)


def solarize_table(threshold: jax.Array) -> jax.Array:
    """Inverts the levels from `threshold` on, as `ImageOps.solarize`: one column."""
    levels = jnp.arange(LEVELS)[:, None]
    return jnp.where(levels < threshold, levels, 255 - levels).astype(jnp.uint8)


def warp(image: jax.Array, matrix: jax.Array, fill: int) -> jax.Array:
    """An affine map with nearest pixels, as Pillow's `transform(size, AFFINE, matrix)`.

    Args:
      image: uint8 `[height, width, channels]`.
      matrix: float32 `[2, 3]`; maps the centre of a result pixel, (x, y, 1), to a position in the
        image.
      fill: the level for positions outside the image.
    """
    height, width, _ = image.shape
    # Twice the coordinates, which are half-integers.
    x, y = 2 * jnp.arange(width) + 1, 2 * jnp.arange(height)[:, None] + 1
    fixed = jnp.round(matrix * 2**_WARP_BITS).astype(jnp.int32)
    column, row = ((a * x + b * y + 2 * c) >> (_WARP_BITS + 1) for a, b, c in fixed)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    picked = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], picked, jnp.uint8(fill))


def rectangle(corner: jax.Array, size: jax.Array, height: int, width: int) -> jax.Array:
    """The mask of a rectangle in an image: bool `[height, width]`.

    Args:
      corner: its upper left corner, row and column; integers, possibly outside the image.
      size: its height and width.
      height, width: size of the image.
    """
    row, column = jnp.arange(height)[:, None], jnp.arange(width)
    within_rows = (row >= corner[0]) & (row < corner[0] + size[0])
    return within_rows & (column >= corner[1]) & (column < corner[1] + size[1])


def around_centre(linear: jax.Array, offset: jax.Array, height: int, width: int) -> jax.Array:
    """The matrix for `warp` that maps by `linear` about the image's centre, then by `offset`.

    Args:
      linear: float32 `[2, 2]`.
      offset: float32 `[2]`, x and y in pixels.
      height, width: size of the image.
    """
    centre = jnp.asarray([width / 2, height / 2])
    # Not a matrix product: a TPU rounds its factors to bfloat16 by default.
    moved = jnp.sum(linear * centre, axis=1)
    return jnp.column_stack([linear, centre - moved + offset])
