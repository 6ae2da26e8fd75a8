"""Decoding, crops and resizing."""

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from xception_jax.data import decode
from xception_jax.errors import RunError

sides = st.integers(1, 400)


def test_decode_gives_rgb_and_repeats_grey():
    red = np.zeros((3, 5, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    image = decode.decode(cv2.imencode(".png", red)[1].tobytes())
    np.testing.assert_array_equal(image[0, 0], [200, 0, 0])
    grey = decode.decode(cv2.imencode(".png", np.full((3, 5), 9, np.uint8))[1].tobytes())
    np.testing.assert_array_equal(grey, np.full((3, 5, 3), 9))


@pytest.mark.parametrize("bad", [b"", b"no image at all"])
def test_decode_refuses_what_is_no_image(bad):
    with pytest.raises(RunError, match=r"example 3 cannot be decoded: its \d+ bytes are no image"):
        decode.decode(bad, "example 3")


@hypothesis.given(height=sides, width=sides, seed=st.integers(0, 1000))
@hypothesis.settings(deadline=None)
def test_random_box_lies_inside_and_keeps_its_ranges(height, width, seed):
    area, aspect = (0.2, 0.9), (0.75, 4 / 3)
    rng = np.random.default_rng(seed)
    top, left, h, w = decode.random_box(rng, height, width, area, aspect)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0
    if min(height, width) > 50 and 0.75 < width / height < 4 / 3:
        assert 0.18 < h * w / (height * width) < 0.92
        assert 0.7 < w / h < 1.4


def test_the_whole_image_where_area_and_aspect_are_one():
    box = decode.random_box(np.random.default_rng(0), 8, 8, (1.0, 1.0), (1.0, 1.0))
    assert box == (0, 0, 8, 8)


@hypothesis.given(height=sides, width=sides, fraction=st.floats(0.01, 1))
def test_centre_box_is_a_centred_square_inside(height, width, fraction):
    top, left, h, w = decode.centre_box(height, width, fraction)
    assert h == w == max(1, round(min(height, width) * fraction))
    assert 0 <= height - h - 2 * top <= 1
    assert 0 <= width - w - 2 * left <= 1


def test_resizing_averages_where_it_shrinks():
    board = np.indices((40, 40)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    small = decode.crop_and_resize(image, (0, 0, 40, 40), 10)
    assert small.shape == (10, 10, 3)
    assert set(np.unique(small)) <= {127, 128}, "no pattern of the checkerboard is left"
