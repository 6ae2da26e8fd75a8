"""Decoding against Pillow, crops and resizing."""

import base64
import io
import json
import os
import subprocess
import sys

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageOps

from tests import pictures
from tests.processes import ROOT
from xception_jax.data.render import decode
from xception_jax.errors import ExampleError

sides = st.integers(1, 400)
WHOLE = {
    kind: pictures.encode(pictures.PICTURE, name)
    for kind, name in {
        "jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF",
    }.items()
}  # fmt: skip


def test_decode_gives_rgb_and_repeats_grey():
    red = np.zeros((3, 5, 3), np.uint8)
    red[..., 2] = 200  # OpenCV writes BGR
    image = decode.decode(cv2.imencode(".png", red)[1].tobytes())
    np.testing.assert_array_equal(image[0, 0], [200, 0, 0])
    grey = decode.decode(cv2.imencode(".png", np.full((3, 5), 9, np.uint8))[1].tobytes())
    np.testing.assert_array_equal(grey, np.full((3, 5, 3), 9))


def pillows(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", pictures.odd())
def test_odd_images_are_what_pillow_makes_of_them(name):
    encoded = pictures.odd()[name]
    image = decode.decode(encoded)
    if "16" in name:  # Pillow saturates these
        grey = np.asarray(pictures.PICTURE.convert("L").convert("RGB"))
        expected = grey if name.startswith("grey") else pictures.PIXELS
        np.testing.assert_array_equal(image, expected)
    else:
        np.testing.assert_allclose(image, pillows(encoded), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotation_is_applied(orientation):
    encoded = pictures.rotated(orientation)
    np.testing.assert_array_equal(decode.decode(encoded), pillows(encoded))


@pytest.mark.parametrize(
    ("name", "fault"),
    {
        **dict.fromkeys(
            pictures.bad(), "its [0-9]+ bytes are a truncated, damaged or unsupported "
        ),
        **dict.fromkeys(
            ("empty.jpg", "random.jpg", "text.png"), "its [0-9]+ bytes are not an image"
        ),
        "huge.png": "it has more than OPENCV_IO_MAX_IMAGE_PIXELS, 134,217,728 pixels",
    }.items(),
)
def test_what_is_no_whole_image_is_refused(name, fault):
    with pytest.raises(ExampleError, match=f"^example 3 cannot be decoded: {fault}"):
        decode.decode(pictures.bad()[name], "example 3")


@hypothesis.given(kind=st.sampled_from(("jpg", "png", "webp", "gif", "bmp", "tif")), data=st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_no_part_of_a_file_is_taken_for_the_whole(kind, data):
    whole = WHOLE[kind]
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(ExampleError):
        decode.decode(cut)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_without_its_last_byte_is_refused(kind):
    """All pixels of a GIF may be there, but nothing says that it is whole."""
    with pytest.raises(ExampleError):
        decode.decode(WHOLE[kind][:-1])


@hypothesis.given(name=st.sampled_from(sorted(pictures.odd())), data=st.data())
@hypothesis.settings(max_examples=60, deadline=None)
def test_flipped_bits_give_an_image_or_an_error_of_the_example(name, data):
    encoded = bytearray(pictures.odd()[name])
    for _ in range(3):
        place = data.draw(st.integers(0, len(encoded) - 1))
        encoded[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        image = decode.decode(bytes(encoded))
    except ExampleError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


@pytest.mark.parametrize(("limit", "said"), [("2239", "2,239"), ("2KB", "2KB")])
def test_the_limit_on_pixels_holds_for_every_format_before_they_are_decoded(limit, said):
    """In a process of its own: OpenCV reads the limit once. 2240 pixels are too many here."""
    code = (
        "import sys, json, base64\n"
        "from xception_jax.data.render import decode\n"
        "from xception_jax.errors import ExampleError\n"
        "for kind, data in json.load(sys.stdin).items():\n"
        "    try:\n"
        "        decode.decode_part(base64.b64decode(data), lambda *_: (0, 0, 1, 1), kind)\n"
        "        print(kind, 'decoded')\n"
        "    except ExampleError as error: print(error)\n"
    )
    files = {kind: base64.b64encode(data).decode() for kind, data in WHOLE.items()}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OPENCV_IO_MAX_IMAGE_PIXELS": limit},
        input=json.dumps(files), cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    fault = f"cannot be decoded: it has more than OPENCV_IO_MAX_IMAGE_PIXELS, {said} pixels"
    assert process.stdout.splitlines() == [f"{kind} {fault}" for kind in WHOLE]


@hypothesis.given(height=sides, width=sides, seed=st.integers(0, 1000))
@hypothesis.settings(deadline=None)
def test_random_box_lies_inside_and_keeps_its_ranges(height, width, seed):
    area, aspect = (0.2, 0.9), (0.75, 4 / 3)
    drawn = np.random.default_rng(seed).random(decode.DRAWS).tolist()
    top, left, h, w = decode.random_box(drawn, height, width, area, aspect)
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assert h > 0
    assert w > 0
    if min(height, width) > 50 and 0.75 < width / height < 4 / 3:
        assert 0.18 < h * w / (height * width) < 0.92
        assert 0.7 < w / h < 1.4


def test_random_box_is_wider_than_high_where_the_range_says_so():
    """A range that is not symmetric: what is width and what is height shows."""
    drawn = np.random.default_rng(0).random((200, decode.DRAWS)).tolist()
    for draws in drawn:
        _, _, h, w = decode.random_box(draws, 400, 500, (0.1, 0.2), (1.5, 2.0))
        assert 1.45 < w / h < 2.05
        _, _, h, w = decode.random_box(draws, 400, 500, (0.1, 0.2), (0.5, 0.6))
        assert 0.48 < w / h < 0.62
    # Of the ten draws the first decides: areas come before aspects, a row before a column.
    draws = [0.25] * 10 + [0.75] * 10 + [0.125, 0.875]
    area, aspect = 0.125 * 400 * 500, 1.5 ** (0.25) * 2.0 ** (0.75)
    h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
    expected = int(0.125 * (400 - h + 1)), int(0.875 * (500 - w + 1)), h, w
    assert decode.random_box(draws, 400, 500, (0.1, 0.2), (1.5, 2.0)) == expected


def test_random_box_comes_as_often_to_every_place_the_last_included():
    """A box of 4 x 4 in 6 x 7: rows 0 to 2, columns 0 to 3."""
    share = 16 / 42
    counts = np.zeros((3, 4), int)
    for drawn in np.random.default_rng(0).random((2400, decode.DRAWS)).tolist():
        top, left, h, w = decode.random_box(drawn, 6, 7, (share, share), (1.0, 1.0))
        assert (h, w) == (4, 4)
        counts[top, left] += 1
    assert counts.min() > 140, "200 are expected"
    assert counts.max() < 270
    edge = [0.5] * 20 + [1 - 2**-53, 1 - 2**-53]
    assert decode.random_box(edge, 6, 7, (share, share), (1.0, 1.0)) == (2, 3, 4, 4)


def test_where_no_draw_fits_the_box_is_the_centred_one_of_the_nearest_aspect():
    draws = [0.0] * decode.DRAWS
    # Nothing of all the area is of these aspects.
    assert decode.random_box(draws, 10, 40, (1.0, 1.0), (0.5, 2.0)) == (0, 10, 10, 20)
    assert decode.random_box(draws, 40, 10, (1.0, 1.0), (0.5, 2.0)) == (10, 0, 20, 10)
    assert decode.random_box(draws, 1, 9, (1.0, 1.0), (0.1, 0.2)) == (0, 4, 1, 1)
    box = decode.random_box(draws, 11, 41, (1.0, 1.0), (0.5, 2.0))
    assert box == (0, 9, 11, 22)
    assert {type(side) for side in box} == {int}, "a slice takes no others"


def test_the_whole_image_where_area_and_aspect_are_one():
    box = decode.random_box([0.5] * decode.DRAWS, 8, 8, (1.0, 1.0), (1.0, 1.0))
    assert box == (0, 0, 8, 8)


@hypothesis.given(height=sides, width=sides, fraction=st.floats(0.01, 1))
def test_centre_box_is_a_centred_square_inside(height, width, fraction):
    top, left, h, w = decode.centre_box(height, width, fraction)
    assert h == w == max(1, round(min(height, width) * fraction))
    assert 0 <= height - h - 2 * top <= 1
    assert 0 <= width - w - 2 * left <= 1


def resized(image: np.ndarray, size: int) -> np.ndarray:
    made = np.zeros((3, size, size, 3), np.uint8)
    decode.resize(image, made[1])
    assert not made[[0, 2]].any()
    return made[1]


@pytest.mark.parametrize(
    "box", [(0, 0, 90, 120), (5, 0, 75, 64), (0, 9, 64, 100), (0, 0, 118, 119), (0, 0, 320, 50)]
)
def test_crops_shrink_more_smoothly_than_by_interpolation_alone(box):
    noise = np.random.default_rng(0).integers(0, 256, (320, 130, 3), np.uint8)
    image = cv2.blur(noise, (2, 2))
    top, left, height, width = box
    part = image[top : top + height, left : left + width]
    pillows = Image.fromarray(part).resize((64, 64), Image.Resampling.BILINEAR)

    def distance(made: np.ndarray) -> float:
        return np.std(made.astype(float) - np.asarray(pillows))

    made = resized(part, 64)
    assert distance(made) < 0.8 * distance(cv2.resize(part, (64, 64)))


def test_a_crop_that_grows_is_interpolated():
    noise = np.random.default_rng(0).integers(0, 256, (10, 20, 3), np.uint8)
    made = resized(noise, 24)
    np.testing.assert_array_equal(made, cv2.resize(noise, (24, 24)))


def test_crops_are_averaged_where_they_shrink_much():
    board = np.indices((40, 40)).sum(0) % 2 * 255
    image = np.repeat(board[..., None], 3, 2).astype(np.uint8)
    small = resized(image, 10)
    assert small.shape == (10, 10, 3)
    assert set(np.unique(small)) <= {127, 128}, "no pattern of the checkerboard is left"
