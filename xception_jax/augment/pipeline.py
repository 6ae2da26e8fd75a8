"""Augmentation of a batch of images on the device, inside the jitted step.

Every example has its own key, a function of the seed and its place in the stream. So its
augmentation does not depend on the layout of the devices or the number of microbatches. Images stay
uint8 throughout. Operations that are off are not in the compiled program.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from xception_jax.augment import image_ops, mixing
from xception_jax.augment.randaugment import randaugment
from xception_jax.config.fields import Field
from xception_jax.config.registry import Registry
from xception_jax.errors import UsageError

# Separates the examples' keys from those of the steps, which count from 0 and are below 2**31.
_EXAMPLES = 2**32 - 2
# Each kind has its own key, so that its random numbers do not depend on which other kinds are on.
_KINDS = 6
_RANDAUGMENT, _JITTER, _RECTANGLE, _NOISE, _MIX, _MOVE = range(_KINDS)

# For the keys of registered operations: a 31-bit integer is added, which exceeds all kinds above.
_REGISTERED = 2**31

# Number of rectangles that are drawn; the first that fits is erased.
_TRIES = 10

# Takes an example's key, its image, uint8 `[height, width, 3]`, and the value of the field. Returns
# an image of the same shape and dtype.
Operation = Callable[[jax.Array, jax.Array, Any], jax.Array]

_OPERATIONS = Registry[Operation]("augmentation")


def register(name: str, field: Field) -> Callable[[Operation], Operation]:
    """Decorates an operation on images, which runs on the device after those of this package.

    Args:
      name: name of the operation and of its field in `config.augment`.
      field: the field; its default, such as 0 or False, means off.

    Raises:
      UsageError: the name is taken, or the default is not off.
    """

    def decorate(operation: Operation) -> Operation:
        if field.default is None or field.default:
            raise UsageError(f"augmentation {name!r}: the default of its Field must be off, as 0")
        _OPERATIONS.add(name, operation, operation, {f"augment.{name}": field})
        return operation

    return decorate


def registered() -> list[str]:
    """The names of the registered operations."""
    return _OPERATIONS.names()


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation: the fields `augment.*` of a config, which has their help texts.

    Attributes:
      registered: names and values of the registered operations that are on, sorted by name.
    """

    flip: bool = False
    shift: int = 0
    randaugment: int = 0
    magnitude: float = 9.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mixup: float = 0.0
    cutmix: float = 0.0
    registered: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> "Augmentation":
        """Makes the settings from the section `augment` of a config."""
        added = set(registered())
        on = ((name, section[name]) for name in sorted(added) if section.get(name))
        own = {name: value for name, value in section.items() if name not in added}
        return cls(**own, registered=tuple(on))

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed, so that a target is not a single class."""
        return bool(self.mixup or self.cutmix)

    @property
    def changes_images(self) -> bool:
        """Whether an image differs from epoch to epoch, other than by mixing."""
        own = (
            self.flip, self.shift, self.randaugment, self.brightness, self.contrast,
            self.saturation, self.erase, self.registered,
        )  # fmt: skip
        return any(own)


def augment_batch(
    settings: Augmentation,
    seed: int,
    step: jax.Array,
    batch: dict[str, jax.Array],
    classes: int | None = None,
) -> dict[str, jax.Array]:
    """Augments the batch of a step.

    Args:
      settings, seed: static.
      step: the step of the batch.
      batch: see `data.batches`.
      classes: number of classes; needed if examples are mixed.

    Returns:
      The batch with new `image`, uint8 as before. If examples are mixed, also with `targets`,
      float32 `[batch, classes]`.
    """
    keys = example_keys(seed, step, batch["image"].shape[0])
    images = augment(settings, keys, batch["image"])
    if not settings.mixes:
        return {**batch, "image": images}
    if classes is None:
        raise ValueError("mixing needs the number of classes")
    if "labels" in batch:
        targets = batch["labels"].astype(jnp.float32)
    else:
        targets = jax.nn.one_hot(batch["label"], classes)
    images, targets = mix(settings, keys, images, targets)
    return {**batch, "image": images, "targets": targets}


def example_keys(seed: int, step: jax.Array, batch_size: int) -> jax.Array:
    """The keys `[batch_size]` of the examples of a step.

    A function of the seed and of the place in the stream, the 64-bit integer
    `step * batch_size + row`.
    """
    root = jax.random.fold_in(jax.random.key(seed), _EXAMPLES)
    high, low = _place(jnp.asarray(step).astype(jnp.uint32), batch_size)
    fold_in = jax.vmap(jax.random.fold_in)
    return fold_in(jax.vmap(partial(jax.random.fold_in, root))(high), low)


def _place(step: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """The upper and lower 32 bits of `step * batch_size + row`, uint32 `[batch_size]`.

    Computed in halves of 16 bits: by default JAX has no 64-bit integers.
    """
    step_high, step_low = step >> 16, step & 0xFFFF
    size_high, size_low = map(jnp.uint32, divmod(batch_size, 2**16))
    bottom, top = step_low * size_low, step_high * size_high
    cross, other = step_low * size_high, step_high * size_low
    middle = (bottom >> 16) + ((cross & 0xFFFF) + (other & 0xFFFF))
    low = (middle << 16) | (bottom & 0xFFFF)
    high = top + ((cross >> 16) + (other >> 16)) + (middle >> 16)
    lows = low + jnp.arange(batch_size, dtype=jnp.uint32)
    return high + (lows < low), lows


def augment(settings: Augmentation, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Applies flip, shift, RandAugment, colour jitter, erasing, registered operations, in order.

    Args:
      settings: static.
      keys: `[batch]`, see `example_keys`.
      images: uint8 `[batch, height, width, 3]`.

    Returns:
      Images of the same shape and dtype.
    """
    return jax.vmap(partial(_augmented, settings))(keys, images)


def mix(
    settings: Augmentation, keys: jax.Array, images: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Calls `mixing.mix` with the settings, which must mix; the last operation of all."""
    own = jax.vmap(lambda key: jax.random.split(key, _KINDS)[_MIX])(keys)
    return mixing.mix(own, images, targets, mixup=settings.mixup, cutmix=settings.cutmix)


def _move(settings: Augmentation, key: jax.Array, image: jax.Array) -> jax.Array:
    flip_key, shift_key = jax.random.split(key)
    if settings.flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1], image)
    if settings.shift:
        shift = settings.shift
        row, column = jax.random.randint(shift_key, (2,), 0, 2 * shift + 1)
        padded = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
    return image


def _augmented(settings: Augmentation, key: jax.Array, image: jax.Array) -> jax.Array:
    own = jax.random.split(key, _KINDS)
    if settings.flip or settings.shift:
        image = _move(settings, own[_MOVE], image)
    if settings.randaugment:
        image = randaugment(
            own[_RANDAUGMENT], image,
            operations=settings.randaugment, magnitude=settings.magnitude,
        )  # fmt: skip
    even = jax.random.uniform(own[_JITTER], (3,), minval=-1, maxval=1)
    if settings.brightness:
        image = image_ops.blend(image, jnp.zeros_like(image), settings.brightness * even[0])
    if settings.contrast:
        image = image_ops.blend(image, image_ops.mean_grey(image), settings.contrast * even[1])
    if settings.saturation:
        image = image_ops.blend(image, image_ops.grey(image), settings.saturation * even[2])
    if settings.erase:
        inside = _rectangle(settings, own[_RECTANGLE], *image.shape[:2])
        # Four bytes a pixel at once: drawing 8 bits costs as much as drawing 32.
        noise = jax.random.bits(own[_NOISE], image.shape[:2], jnp.uint32)
        noise = jax.lax.bitcast_convert_type(noise, jnp.uint8)[..., : image.shape[-1]]
        image = jnp.where(inside[..., None], noise, image)
    for name, value in settings.registered:
        # A key by name, so that the random numbers do not depend on which other operations are on.
        own_key = jax.random.fold_in(key, _REGISTERED + zlib.crc32(name.encode()) // 2)
        image = _OPERATIONS.find(name)(own_key, image, value)
    return image


def _rectangle(settings: Augmentation, key: jax.Array, height: int, width: int) -> jax.Array:
    """The mask of the erased pixels (arXiv:1708.04896, algorithm 1): bool `[height, width]`."""
    draws = jax.random.uniform(key, (2 * _TRIES + 3,))
    (least, most), aspects = settings.erase_area, jnp.log(jnp.asarray(settings.erase_aspect))
    areas = (least + (most - least) * draws[:_TRIES]) * height * width
    ratios = jnp.exp(aspects[0] + (aspects[1] - aspects[0]) * draws[_TRIES : 2 * _TRIES])
    heights, widths = jnp.round(jnp.sqrt(areas / ratios)), jnp.round(jnp.sqrt(areas * ratios))
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    size = jnp.stack([heights, widths])[:, jnp.argmax(fits)]
    corner = jnp.floor(draws[-3:-1] * (jnp.asarray([height, width]) - size + 1))
    wanted = (draws[-1] < settings.erase) & fits.any()
    return image_ops.rectangle(corner, size, height, width) & wanted
