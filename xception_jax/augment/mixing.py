"""Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899): two examples become two mixed ones.

Examples 2k and 2k + 1 of the stream are partners, which depends only on their place in the stream.
They are adjacent in the batch: if a device's share is even, no pixels travel between devices. Both
use the same weight, so a pair keeps all its pixels: CutMix exchanges rectangles and drops nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np

from xception_jax.augment import image_ops

# Fractional bits of a pixel's share: 255 levels still fit into an int32.
_BITS = 22


def mix(
    keys: jax.Array, images: jax.Array, targets: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes rows 2k and 2k + 1 of a batch.

    Args:
      keys: `[batch]`, the examples' keys; the first of a pair draws for both.
      images: uint8 `[batch, height, width, channels]`; the batch size is even.
      targets: float32 `[batch, classes]`, one-hot or multi-hot.
      mixup, cutmix: alpha of the Beta(alpha, alpha) distribution of an image's share; 0: off. If
        both are on, each pair uses one of them, with probability 1/2 each.

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
    # Integers, as in `image_ops`, so that rounding does not depend on the compiler.
    fixed = jnp.round(own * 2**_BITS).astype(jnp.int32)[:, None, :, :, None]
    mixed = _mixed(images.astype(jnp.int32), fixed, 2**_BITS)
    return ((mixed + 2 ** (_BITS - 1)) >> _BITS).astype(jnp.uint8), _mixed(
        targets, share[:, None, None], 1
    )


def weights(
    key: jax.Array, height: int, width: int, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Draws a pair's weights: each pixel's, float32 `[height, width]`, and their mean.

    A weight is the share of the image itself; the rest is its partner's. For mixup all pixels have
    the same weight; for CutMix it is 0 inside a rectangle and 1 outside.
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
    """Transforms `uniform` from [0, 1) to a sample of Beta(alpha, alpha).

    Uses a table of 4096 quantiles. `jax.random.beta` rejects draws in a loop, whose number of
    rounds all devices would have to agree on.
    """
    import scipy.special  # 0.15 s, which only mixing needs

    places = np.linspace(0, 1, 4097)
    quantiles = scipy.special.betaincinv(alpha, alpha, places)
    return jnp.interp(uniform, jnp.asarray(places, jnp.float32), jnp.float32(quantiles))


def _outside(middle: jax.Array, share: jax.Array, height: int, width: int) -> jax.Array:
    """1 outside of a rectangle with the image's aspect and 1 - `share` of its area, else 0.

    Its centre is at `middle`, in [0, 1) of the image's height and width. The part beyond the edge
    is clipped (the paper's section 3.1), so the mean weight may exceed `share`.
    """
    sides = jnp.asarray([height, width])
    size = jnp.round(jnp.sqrt(1 - share) * sides)
    corner = jnp.floor(middle * sides) - size // 2
    return 1 - image_ops.rectangle(corner, size, height, width).astype(jnp.float32)


def _mixed(values: jax.Array, own: jax.Array, all_parts: int) -> jax.Array:
    """`own` parts of each row plus `all_parts - own` of its partner; `own` is `[pairs, 1, ...]`."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    partners = pairs[:, ::-1]
    return (all_parts * partners + own * (pairs - partners)).reshape(values.shape)
