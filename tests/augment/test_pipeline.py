"""On-device augmentation against numpy by hand, and what each example's draws depend on."""

from functools import partial

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from xception_jax import config as config_lib
from xception_jax.augment import pipeline
from xception_jax.augment.pipeline import Augmentation
from xception_jax.training import sharding

IMAGES = np.random.default_rng(0).integers(1, 255, (64, 6, 6, 3), np.uint8)
KEYS = pipeline.example_keys(0, 0, 64)
ALL = Augmentation(
    flip=True, shift=1, randaugment=1, brightness=0.4, contrast=0.4, saturation=0.4, erase=0.5,
    mixup=0.2, cutmix=1.0,
)  # fmt: skip
# Compiled faster; what is asked of these programs does not depend on how well.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def augmented(images=IMAGES, **settings):
    run = quick(partial(pipeline.augment, Augmentation(**settings)))
    return np.asarray(run(pipeline.example_keys(0, 0, len(images)), images))


def test_settings_are_the_fields_of_the_config():
    assert Augmentation.from_config(config_lib.default().augment) == Augmentation()
    config = config_lib.default()
    config.augment.cutmix, config.augment.erase_area = 0.5, (0.1, 0.2)
    settings = Augmentation.from_config(config.augment)
    assert settings == Augmentation(cutmix=0.5, erase_area=(0.1, 0.2))
    assert settings.mixes
    assert not Augmentation(erase=1.0, flip=True).mixes


def test_what_is_off_is_not_in_the_program():
    run = jax.jit(partial(pipeline.augment, Augmentation()))
    text = run.lower(KEYS, IMAGES).compile().as_text()
    assert " copy(" in text
    assert "fusion" not in text
    assert " call(" not in text


def test_flip_mirrors_about_half_and_leaves_the_rest():
    flipped = augmented(flip=True)
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    same = (flipped == IMAGES).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 20 < mirrored.sum() < 44


def test_shift_moves_by_at_most_its_pixels_and_brings_in_black():
    shifted = augmented(shift=2)
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = set()
    for i in range(len(IMAGES)):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if np.array_equal(padded[i, row : row + 6, column : column + 6], shifted[i])
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 15, "all directions occur"


def test_flips_and_shifts_are_those_that_runs_have_begun_with():
    """Pins their draws, by a key of their own."""

    @quick
    @jax.vmap
    def draws(key):
        flip_key, shift_key = jax.random.split(jax.random.split(key, 6)[5])
        return jax.random.bernoulli(flip_key), jax.random.randint(shift_key, (2,), 0, 3)

    flips_and_shifts = jax.device_get(draws(KEYS))
    moved = augmented(flip=True, shift=1)
    padded = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for row, (flip, (top, left)) in enumerate(zip(*flips_and_shifts, strict=True)):
        image = padded[row, :, ::-1] if flip else padded[row]
        np.testing.assert_array_equal(moved[row], image[top : top + 6, left : left + 6])


def test_jitter_is_pillows_with_factors_drawn_evenly():
    draw = jax.vmap(lambda key: jax.random.uniform(jax.random.split(key, 6)[1], (3,), minval=-1))
    even = np.asarray(quick(draw)(KEYS))
    assert (np.abs(even.mean(0)) < 0.25).all()
    assert (np.ptp(even, 0) > 1.8).all()
    found = augmented(brightness=0.3, contrast=0.5, saturation=0.9)
    for i in range(len(IMAGES)):
        image = Image.fromarray(IMAGES[i])
        for enhance, most, draw in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color),
            (0.3, 0.5, 0.9), even[i], strict=True,
        ):  # fmt: skip
            image = enhance(image).enhance(1 + np.float32(most) * draw)
        differs = np.abs(np.int16(found[i]) - np.asarray(image))
        assert differs.max() <= 1, "where a level falls on a whole number"
        assert differs.mean() < 0.01


def test_erasing_fills_a_rectangle_of_the_size_asked_for_with_noise():
    side, area, aspect = 32, (0.1, 0.3), (0.5, 2.0)
    images = np.zeros((200, side, side, 3), np.uint8)
    images[:] = np.arange(side)[:, None, None]
    erased = augmented(images, erase=0.5, erase_area=area, erase_aspect=aspect)
    touched = (erased != images).any(-1)
    count = 0
    for rows, columns, where in zip(touched.any(2), touched.any(1), touched, strict=True):
        if not where.any():
            continue
        count += 1
        (top, *_, bottom), (left, *_, right) = np.flatnonzero(rows), np.flatnonzero(columns)
        height, width = bottom - top + 1, right - left + 1
        assert where[top : bottom + 1, left : right + 1].all(), "3 bytes at random are other ones"
        assert where.sum() == height * width
        # A side is rounded to whole pixels.
        assert (height - 0.5) * (width - 0.5) <= area[1] * side**2
        assert (height + 0.5) * (width + 0.5) >= area[0] * side**2
        assert (width - 0.5) / (height + 0.5) <= aspect[1]
        assert (width + 0.5) / (height - 0.5) >= aspect[0]
    assert 70 < count < 130, "half of the images"
    noise = erased[touched]
    assert abs(noise.mean() - 127.5) < 1
    assert len(np.unique(noise)) == 256


def rectangles(erase_area, erase_aspect, height=24, width=40):
    """Top, left, height and width of what is erased of many images, which are not square."""
    settings = Augmentation(erase=1.0, erase_area=erase_area, erase_aspect=erase_aspect)
    keys = jax.random.split(jax.random.key(0), 1500)
    made = quick(jax.vmap(lambda key: pipeline._rectangle(settings, key, height, width)))(keys)
    found = []
    for where in np.asarray(made):
        rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
        found.append((rows[0], columns[0], len(rows), len(columns)))
    return np.asarray(found)


def test_an_erased_rectangle_is_wider_than_high_where_the_range_says_so():
    _, _, heights, widths = rectangles((0.1, 0.3), (2.0, 3.0)).T
    assert ((widths + 0.5) / (heights - 0.5) >= 2).all()
    assert ((widths - 0.5) / (heights + 0.5) <= 3).all()
    aspects = widths / heights
    assert aspects.min() < 2.15
    assert aspects.max() > 2.85
    assert abs(np.log(aspects).mean() - np.log(6) / 2) < 0.03, "even on a logarithmic scale"
    areas = heights * widths / (24 * 40)
    assert areas.min() < 0.12
    assert areas.max() > 0.28


def test_an_erased_rectangle_comes_as_often_to_every_place_the_last_included():
    share = 22 * 37 / (24 * 40)
    tops, lefts, heights, widths = rectangles((share, share), (37 / 22, 37 / 22)).T
    assert set(heights) == {22}
    assert set(widths) == {37}
    for places, count in ((tops, 3), (lefts, 4)):
        found = np.bincount(places, minlength=count)
        assert len(found) == count
        assert found.min() > 0.8 * 1500 / count


@hypothesis.given(
    step=st.integers(0, 2**31 - 1) | st.sampled_from((2**31 // 6, 2**32 // 6)),
    size=st.sampled_from((1, 6, 96, 65_535, 65_537, 200_000)),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_places_in_the_stream_are_whole_numbers_of_64_bits(step, size):
    high, low = (np.asarray(half) for half in pipeline._place(jnp.uint32(step), size))
    assert (high.dtype, low.dtype) == (np.uint32, np.uint32)
    places = (high.astype(np.uint64) << np.uint64(32)) + low
    np.testing.assert_array_equal(places, np.uint64(step * size) + np.arange(size, dtype=np.uint64))


@pytest.mark.parametrize("place", [0, 7, 2**32 - 1, 2**32, 12 * (2**31 - 1)])
def test_a_key_depends_on_the_seed_and_the_place_in_the_stream_alone(place):
    root = jax.random.fold_in(jax.random.key(5), 2**32 - 2)
    expected = jax.random.fold_in(jax.random.fold_in(root, place >> 32), place & 0xFFFFFFFF)
    for size in (12, 18):
        step, row = divmod(place, size)
        assert pipeline.example_keys(5, np.int32(step), size)[row] == expected


def test_nothing_depends_on_the_devices_or_the_size_of_the_batch():
    """A batch of 32 on eight devices is what the two batches of 16 are on one."""
    targets = np.eye(64, dtype=np.float32)[:32]

    def run(step, images, targets):
        keys = pipeline.example_keys(5, step, len(images))
        return pipeline.mix(ALL, keys, pipeline.augment(ALL, keys, images), targets)

    cut = sharding.by_example(sharding.make_mesh(8))
    compiled = quick(run, in_shardings=(None, cut, cut)).lower(3, IMAGES[:32], targets).compile()
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
        assert f" {collective}(" not in compiled.as_text(), "partners are on the same device"
    together = compiled(3, IMAGES[:32], targets)
    alone = quick(run)
    parts = [alone(step, IMAGES[rows], targets[rows])
             for step, rows in ((6, slice(16)), (7, slice(16, 32)))]  # fmt: skip
    for whole, *halves in zip(together, *parts, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert (np.asarray(together[0]) != IMAGES[:32]).any((1, 2, 3)).sum() > 28
