"""Evaluation's resizing on the device against the host's own, OpenCV's."""

from functools import partial

import jax
import numpy as np
import pytest

from xception_jax.data.render import decode, presets
from xception_jax.serving import resize


def photo(height: int, width: int) -> np.ndarray:
    """Edges and slopes in all directions, and noise."""
    y, x = np.mgrid[:height, :width]
    waves = 90 * np.sin(x[..., None] / [5, 9, 40]) * np.cos(y[..., None] / [7, 30, 4])
    noise = np.random.default_rng(height).normal(0, 20, (height, width, 3))
    return np.clip(128 + waves + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size", "crop"),
    [
        (375, 500, 299, 1.0),
        (500, 333, 150, 0.875),
        (97, 201, 32, 0.8975),
        (64, 64, 32, 1.0),  # by a whole number, which OpenCV does in a way of its own
        (60, 41, 71, 1.0),  # it grows
        (1, 3, 8, 1.0),
    ],
)
def test_it_is_the_hosts_to_one_grey_level(height, width, size, crop):
    image = photo(height, width)
    found = jax.jit(partial(resize.area, size=size, crop=crop))(image[None])[0]
    off = np.abs(np.asarray(found) - presets.area(image, size, crop).astype(np.float32))
    assert off.max() <= 1
    # Where it grows, OpenCV takes the shares as whole numbers of 2048ths.
    assert off.mean() < (0.01 if min(height, width) * crop >= size else 0.2)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = photo(32, 32)
    np.testing.assert_array_equal(resize.area(image[None], 32, 1.0)[0], image)


@pytest.mark.parametrize(("side", "size"), [(64, 32), (41, 32), (20, 32)])
def test_black_stays_black_and_white_white(side, size):
    board = np.zeros((2, side, side, 3), np.uint8)
    board[1] = 255
    found = np.asarray(resize.area(board, size, 1.0))
    assert set(np.unique(found[0])) == {0}
    assert set(np.unique(found[1])) == {255}


@pytest.mark.parametrize("crop", [1.0, 0.95, 0.8975, 0.875, 0.5, 1e-9])
def test_it_keeps_as_many_pixels_as_the_host(crop):
    sides = np.arange(1, 5000)
    expected = [decode.centre_box(side, side + 9, crop)[2] for side in sides]
    np.testing.assert_array_equal(resize.kept(sides, crop), expected)
