"""Operations on images against Pillow, level by level."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from xception_jax.augment import image_ops

RNG = np.random.default_rng(0)
IMAGES = {
    "noise": RNG.integers(0, 256, (24, 31, 3), np.uint8),
    # Few levels, not all of 0...255: there is something to stretch and to equalize.
    "smooth": cv2.resize(RNG.integers(30, 200, (4, 5, 3), np.uint8), (31, 24)),
    "one_level": np.full((24, 31, 3), (7, 0, 255), np.uint8),
}


@pytest.fixture(params=IMAGES)
def both(request):
    """An image for us and for Pillow."""
    return jnp.asarray(IMAGES[request.param]), Image.fromarray(IMAGES[request.param])


def test_grey_and_smooth(both):
    image, pillow = both
    np.testing.assert_array_equal(image_ops.grey(image)[..., 0], pillow.convert("L"))
    np.testing.assert_array_equal(image_ops.smooth(image), pillow.filter(ImageFilter.SMOOTH))


def test_an_image_without_an_inside_is_not_smoothed():
    image = jnp.asarray(IMAGES["noise"][:2])
    np.testing.assert_array_equal(image_ops.smooth(image), image)


@pytest.mark.parametrize("factor", [0.1, 0.55, 1.0, 1.9])
def test_blends(both, factor):
    image, pillow = both
    for other, enhance in (
        (jnp.zeros_like(image), ImageEnhance.Brightness),
        (image_ops.mean_grey(image), ImageEnhance.Contrast),
        (image_ops.grey(image), ImageEnhance.Color),
        (image_ops.smooth(image), ImageEnhance.Sharpness),
    ):
        expected = np.asarray(enhance(pillow).enhance(factor))
        np.testing.assert_array_equal(image_ops.blend(image, other, factor - 1), expected)


def test_pictures_do_not_depend_on_the_program():
    """A compiler may fuse a multiplication and an addition, and then rounds otherwise."""
    image, other = jnp.asarray(IMAGES["noise"]), image_ops.grey(jnp.asarray(IMAGES["noise"]))
    rng = np.random.default_rng(0)
    changes = np.float32([*np.arange(-100, 101) / 100, *rng.uniform(-1, 1, 200)])
    matrices = np.float32(np.eye(2, 3) + rng.uniform(-0.5, 0.5, (200, 2, 3)))

    def blends(changes):
        return jax.vmap(lambda change: image_ops.blend(image, other, change))(changes)

    def warps(matrices):
        return jax.vmap(lambda matrix: image_ops.warp(image, matrix, 9))(matrices)

    for function, numbers in ((blends, changes), (warps, matrices)):
        np.testing.assert_array_equal(function(numbers), jax.jit(function)(numbers))


def test_histogram(both):
    image, pillow = both
    counts = np.asarray(image_ops.histogram(image))
    np.testing.assert_array_equal(counts.T.ravel(), pillow.histogram())


def test_tables(both):
    image, pillow = both
    counts = image_ops.histogram(image)
    equal = image_ops.look_up(image, image_ops.equalize_table(counts))
    np.testing.assert_array_equal(equal, ImageOps.equalize(pillow))
    # Pillow reckons with rounded factors, and truncates: a level that is whole may come out lower.
    stretched = np.int16(image_ops.look_up(image, image_ops.autocontrast_table(counts)))
    lower = stretched - np.int16(ImageOps.autocontrast(pillow))
    assert set(np.unique(lower)) <= {0, 1}
    assert np.mean(lower) < 0.01


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize(bits):
    levels = np.arange(256, dtype=np.uint8)[:, None]
    expected = ImageOps.posterize(Image.fromarray(levels), bits)
    np.testing.assert_array_equal(image_ops.posterize_table(jnp.asarray(bits)), expected)


@pytest.mark.parametrize("threshold", [0, 1, 100, 255, 256])
def test_solarize(threshold):
    levels = np.arange(256, dtype=np.uint8)[:, None]
    expected = ImageOps.solarize(Image.fromarray(levels), threshold)
    np.testing.assert_array_equal(image_ops.solarize_table(jnp.asarray(threshold)), expected)


warp = jax.jit(image_ops.warp, static_argnums=2)


@pytest.mark.parametrize("seed", range(8))
def test_warp(seed):
    rng = np.random.default_rng(seed)
    linear = np.eye(2) + rng.uniform(-0.5, 0.5, (2, 2))
    image, shape = IMAGES["noise"], IMAGES["noise"].shape[:2]
    matrix = image_ops.around_centre(
        jnp.float32(linear), jnp.float32(rng.uniform(-5, 5, 2)), *shape
    )
    expected = Image.fromarray(image).transform(
        shape[::-1], Image.Transform.AFFINE, np.asarray(matrix).ravel().tolist(),
        fillcolor=(9, 9, 9),
    )  # fmt: skip
    differs = (np.asarray(warp(image, matrix, 9)) != np.asarray(expected)).any(-1)
    # Pillow reckons with 16 bits behind the point: a place on the border of two pixels is either's.
    assert differs.mean() < 0.01


def test_warp_turns_about_the_centre():
    image = jnp.asarray(IMAGES["noise"])
    half_turn = image_ops.around_centre(-jnp.eye(2), jnp.zeros(2), *image.shape[:2])
    # A hair to the side, or every place would lie on the border of two pixels.
    np.testing.assert_array_equal(warp(image, half_turn.at[:, 2].add(-1e-3), 0), image[::-1, ::-1])
