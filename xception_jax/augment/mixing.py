"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): two examples become two mixed ones.

Examples 2k and 2k + 1 of the stream are partners. They lie side by side in the batch, so that
where a device's share is even no pixel travels between devices, and who is whose partner depends on
nothing but the place in the stream. Both use the same weight, so a pair keeps what it had: every
pixel of CutMix' rectangles is exchanged, none is lost.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from xception_jax.augment import image_ops

# Fractional bits of a pixel's share: 255 levels still fit into an int32.
_BITS = 22


def mix(
    keys: jax.Array, images: jax.Array, targets: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes rows 2k and 2k + 1 of a batch.

    Args:
      keys: `[batch]`, the examples'; the first of a pair draws for both.
      images: uint8 `[batch, height, width, channels]`, the batch even.
      targets: float32 `[batch, classes]`, one-hot or multi-hot.
      mixup, cutmix: alpha of the Beta(alpha, alpha) that an image's share is drawn from; 0: off.
        With both on, each pair takes one of them, half of the pairs each.

    Returns:
      Images, rounded to uint8, and targets, mixed in the proportion of the pixels.

    Raises:
      ValueError: the batch is odd.
    """
    if len(images) % 2:
        raise ValueError(f"a batch of {len(images)} has an example without a partner")
    _, height, width, _ = images.shape
    first = keys.reshape(-1, 2)[:, 0]
    own, share = jax.vmap(lambda key: weights(key, height, width, mixup, cutmix))(first)
    # Whole numbers, as in `image_ops`: which level a pixel rounds to depends on no compiler.
    fixed = jnp.round(own * 2**_BITS).astype(jnp.int32)[:, None, :, :, None]
    mixed = _mixed(images.astype(jnp.int32), fixed, 2**_BITS)
    return ((mixed + 2 ** (_BITS - 1)) >> _BITS).astype(jnp.uint8), _mixed(
        targets, share[:, None, None], 1
    )


def weights(
    key: jax.Array, height: int, width: int, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Draws a pair's weights: each pixel's, float32 `[height, width]`, and their mean.

    They are the share of the image itself; its partner has the rest. The same everywhere for
    mixup; 0 inside of a rectangle and 1 outside for CutMix.
    """
    which, uniform, *middle = jax.random.uniform(key, (4,))
    if not cutmix:
        share = beta(uniform, mixup)
        return jnp.full((height, width), share), share
    pixels = _outside(jnp.stack(middle), beta(uniform, cutmix), height, width)
    if mixup:
        pixels = jnp.where(which < 0.5, pixels, beta(uniform, mixup))
    return pixels, jnp.mean(pixels)


def beta(uniform: jax.Array, alpha: float) -> jax.Array:
    """What is Beta(alpha, alpha) distributed where `uniform` is even in [0, 1).

    By a table of 4096 quantiles: `jax.random.beta` rejects draws in a loop, and whether any example
    needs another round is a question that all devices would have to settle together.
    """
    places = np.linspace(0, 1, 4097)
    quantiles = scipy.special.betaincinv(alpha, alpha, places)
    return jnp.interp(uniform, jnp.asarray(places, jnp.float32), jnp.float32(quantiles))


def _outside(middle: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """1 outside of a rectangle with the image's aspect and 1 - `share` of its area, else 0.

    Its centre is anywhere in the image, at `middle` in [0, 1) of its height and width; what reaches
    beyond the edge is cut off (the paper's section 3.1), so that the share can be more.
    """
    sides = jnp.asarray([height, width])
    size = jnp.round(jnp.sqrt(1 - share) * sides)
    corner = jnp.floor(middle * sides) - size // 2
    return 1 - image_ops.rectangle(corner, size, height, width).astype(jnp.float32)


def _mixed(values: jax.Array, own: jax.Array, all_parts: int) -> jax.Array:
    """Of `all_parts`, `own` of each row and the rest of its partner; `own` is `[pairs, 1, ...]`."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    partners = pairs[:, ::-1]
    return (all_parts * partners + own * (pairs - partners)).reshape(values.shape)
