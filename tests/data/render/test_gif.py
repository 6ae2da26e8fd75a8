"""GIF: the first image, found by the container's check and decoded by Pillow."""

import struct
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from tests import pictures
from xception_jax.data.render import decode
from xception_jax.errors import ExampleError


def coded_gif(width: int, height: int, codes: list[int]) -> bytes:
    """A GIF of 256 colours with these codes of nine bits."""
    bits = "".join(f"{code:09b}"[::-1] for code in codes)
    data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    blocks = b"".join(
        bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)
    )
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0xF7, 0, 0) + bytes(768)
    image = struct.pack("<cHHHHBB", b",", 0, 0, width, height, 0, 8)
    return screen + image + blocks + b"\0;"


def test_a_gif_of_clear_codes_takes_no_time():
    """OpenCV takes 0.6 s for 90 KB of them."""
    begun = time.process_time()
    with pytest.raises(ExampleError, match="its codes are not an image"):
        decode.decode(coded_gif(1000, 1000, [256] * 300_000))
    assert decode.decode(coded_gif(2, 1, [256, 7, 7, 257])).shape == (1, 2, 3)
    assert time.process_time() - begun < 2


def test_a_gif_is_as_opencv_has_it_over_tables_frames_and_transparency():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 16, (40, 56), np.uint8)
    colours = rng.integers(0, 256, 48, np.uint8).tobytes()
    image = Image.fromarray(indices, "P")
    image.putpalette(colours)
    other = Image.fromarray(rng.integers(0, 16, (40, 56), np.uint8), "P")
    other.putpalette(colours)
    for options in (
        {}, {"transparency": 3}, {"interlace": 0}, {"transparency": 3, "background": 5},
        {"save_all": True, "append_images": [other], "disposal": 2},
        {"save_all": True, "append_images": [other], "transparency": 1, "disposal": 3},
    ):  # fmt: skip
        encoded = pictures.encode(image, "GIF", **options)
        expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode.decode(encoded), expected, str(options))
        # Its image becomes a part of a larger whole.
        wide = encoded[:6] + struct.pack("<HH", 90, 70) + encoded[10:]
        at = wide.index(b",\0\0\0\0")
        moved = wide[: at + 1] + struct.pack("<HH", 9, 7) + wide[at + 5 :]
        expected = cv2.imdecode(np.frombuffer(moved, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode.decode(moved), expected, str(options))
