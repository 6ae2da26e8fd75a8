"""RandAugment: every operation against Pillow, and what is drawn."""

import collections
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from xception_jax.augment import randaugment

IMAGE = np.random.default_rng(0).integers(20, 220, (16, 20, 3), np.uint8)
GREY = (128, 128, 128)
# One program, whatever the operation.
apply = jax.jit(randaugment.apply)
# Compiled faster; the rounding of those that are compared is the same.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def affine(matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=GREY)


def expected(name, level):
    """What Pillow makes of the image, by torchvision's ranges."""
    x, y, shear, factor = 10, 8, 0.3 * level, 1 + 0.9 * level
    make = {
        "identity": lambda image: image,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda image: ImageOps.posterize(image, 8 - round(4 * abs(level))),
        "solarize": lambda image: ImageOps.solarize(image, 256 - round(256 * abs(level))),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "saturation": lambda image: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
        "rotate": lambda image: image.rotate(30 * level, fillcolor=GREY),
        "shear_x": affine((1, shear, -shear * y, 0, 1, 0)),
        "shear_y": affine((1, 0, 0, shear, 1, -shear * x)),
        "translate_x": affine((1, 0, 0.45 * level * 20, 0, 1, 0)),
        "translate_y": affine((1, 0, 0, 0, 1, 0.45 * level * 16)),
    }
    return np.asarray(make[name](Image.fromarray(IMAGE)))


@pytest.mark.parametrize("level", [0.9, -0.53, 0.0])
@pytest.mark.parametrize("name", randaugment.NAMES)
def test_operations_are_pillows(name, level):
    found = np.asarray(apply(IMAGE, randaugment.NAMES.index(name), level))
    pillow = expected(name, level)
    if name == "autocontrast":  # see test_image_ops
        assert np.abs(np.int16(found) - pillow).max() <= 1
    differs = (found != pillow).any(-1).mean()
    # Where a place falls on the border of two pixels, or a level on a whole number, rounding rules.
    assert differs < 0.02
    if level == 0 and randaugment.RANGES[name] is not None:
        np.testing.assert_array_equal(found, IMAGE)


def test_operations_and_signs_are_drawn_evenly_and_follow_one_another():
    """Which ones were drawn shows in the picture: 15 operations, of which nine have a sign."""
    count, names = 1500, randaugment.NAMES

    def two(key):
        image = jnp.asarray(IMAGE)
        return randaugment.randaugment(key, image, operations=2, magnitude=9.0)

    keys = jax.random.split(jax.random.key(0), count)
    found = [image.tobytes() for image in np.asarray(quick(jax.vmap(two))(keys))]
    every = [(name, level) for name in names for level in (0.9, -0.9)]
    one = quick(randaugment.apply)
    known = collections.defaultdict(list)
    for first in every:
        once = one(IMAGE, names.index(first[0]), first[1])
        for second in every:
            twice = one(once, names.index(second[0]), second[1])
            known[np.asarray(twice).tobytes()].append((first, second))
    assert set(found) <= known.keys(), "nothing but two operations, one after the other"
    # A picture that several pairs make (with the identity, say) counts for each in part.
    for place in range(2):
        drawn = collections.Counter()
        for picture in found:
            for pair in known[picture]:
                drawn[pair[place]] += 1 / len(known[picture])
        assert all(abs(drawn[which] - 50) < 5 * 50**0.5 for which in every), drawn
