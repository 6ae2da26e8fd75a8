"""RandAugment (arXiv:1909.13719): a few random operations with the same magnitude.

Ranges are those of torchvision's `RandAugment`, results those of Pillow. At magnitude 0 an
operation with a magnitude changes nothing.
"""

import jax
import jax.numpy as jnp

from xception_jax.augment import image_ops

# The effect of an operation at magnitude 10, in its own unit; None: it has no magnitude.
RANGES: dict[str, float | None] = {
    "identity": None,
    "autocontrast": None,
    "equalize": None,
    "invert": None,
    "posterize": 4,  # bits fewer
    "solarize": 256,  # levels that are inverted, from the lightest on
    "brightness": 0.9,  # this and the next three: factor 1 plus or minus this
    "contrast": 0.9,
    "saturation": 0.9,
    "sharpness": 0.9,
    "rotate": 30,  # degrees, counter-clockwise
    "shear_x": 0.3,  # pixels a pixel
    "shear_y": 0.3,
    "translate_x": 0.45,  # of the side
    "translate_y": 0.45,
}
NAMES = tuple(RANGES)

# Pixels from outside the image are mid-grey: close to 0 for the model.
_FILL = 128


def randaugment(
    key: jax.Array, image: jax.Array, *, operations: int, magnitude: float
) -> jax.Array:
    """Draws operations of `NAMES` uniformly and applies one after the other.

    Args:
      key: the example's key.
      image: uint8 `[height, width, 3]`.
      operations: number of operations, the paper's N.
      magnitude: 0 to 10, the paper's M; its sign is random.

    Returns:
      An image of the same shape and dtype.
    """
    strength = magnitude / 10
    for which, sign in jax.random.uniform(key, (operations, 2)):
        level = jnp.where(sign < 0.5, strength, -strength)
        image = apply(image, jnp.floor(which * len(NAMES)).astype(jnp.int32), level)
    return image


def apply(image: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
    """Applies one operation: a warp, a look-up and a blend, two of which change nothing.

    Args:
      image: uint8 `[height, width, 3]`.
      operation: int32, an index of `NAMES`.
      level: float32, the magnitude / 10, with its sign.
    """
    # Image statistics are those of the operation's input, since idle steps change nothing.
    image = image_ops.warp(image, _matrix(operation, level, image), _FILL)
    image = image_ops.look_up(image, _table(operation, level, image))
    return image_ops.blend(image, *_blend(operation, level, image))


def _is(name: str, operation: jax.Array) -> jax.Array:
    return operation == NAMES.index(name)


def _strength(name: str, operation: jax.Array, level: jax.Array) -> jax.Array:
    """The strength in the operation's unit; 0 if `operation` is another one."""
    return jnp.where(_is(name, operation), level * (RANGES[name] or 0), 0.0)


def _matrix(operation: jax.Array, level: jax.Array, image: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    angle, shear_x, shear_y, shift_x, shift_y = (
        _strength(name, operation, level)
        for name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    )
    cosine, sine = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    linear = jnp.asarray([[cosine, shear_x - sine], [shear_y + sine, cosine]])
    offset = jnp.asarray([shift_x * width, shift_y * height])
    return image_ops.around_centre(linear, offset, height, width)


def _table(operation: jax.Array, level: jax.Array, image: jax.Array) -> jax.Array:
    counts = image_ops.histogram(image)
    dropped, inverted = (
        jnp.round(_strength(name, operation, jnp.abs(level))).astype(jnp.int32)
        for name in ("posterize", "solarize")
    )
    threshold = image_ops.LEVELS - inverted
    tables = {
        "autocontrast": image_ops.autocontrast_table(counts),
        "equalize": image_ops.equalize_table(counts),
        "invert": image_ops.solarize_table(jnp.asarray(0)),
        "posterize": image_ops.posterize_table(8 - dropped),
        "solarize": image_ops.solarize_table(threshold),
    }
    untouched = jnp.arange(image_ops.LEVELS, dtype=jnp.uint8)[:, None]
    for name, table in tables.items():
        untouched = jnp.where(_is(name, operation), table, untouched)
    return untouched


def _blend(operation: jax.Array, level: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    others = {
        "contrast": image_ops.mean_grey(image),
        "saturation": image_ops.grey(image),
        "sharpness": image_ops.smooth(image),
    }
    other = jnp.zeros_like(image)  # brightness
    for name, candidate in others.items():
        other = jnp.where(_is(name, operation), candidate, other)
    changes = [_strength(name, operation, level) for name in ("brightness", *others)]
    return other, jnp.sum(jnp.stack(changes))
