"""How evaluation makes an image of a picture: as this project does, as Keras or as timm.

Weights do best on images made as in their training. All presets end in pixels that the step scales
to [-1, 1], as Keras' and timm's Xceptions take them. The libraries' own resizing is Pillow's.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from xception_jax.data import decode


def area(image: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centred square of `crop` of the shorter side, averaged where it shrinks."""
    height, width, _ = image.shape
    return decode.crop_and_resize(image, decode.centre_box(height, width, crop), size)


def keras(image: np.ndarray, size: int, crop: float) -> np.ndarray:
    """All of the picture, squeezed to a square of nearest pixels: `keras.utils.load_img`."""
    if crop != 1:
        raise ValueError(f"crop is {crop}; Keras takes all of the picture, 1.0")
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST))


def timm(image: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centre of the picture, whose shorter side has become `size / crop`, antialiased bicubic.

    `timm.data.create_transform(size, crop_pct=crop, interpolation="bicubic")`, to the rounding of
    the picture's sides.
    """
    height, width, _ = image.shape
    shorter = math.floor(size / crop)
    height, width = (
        shorter if side == min(height, width) else int(side * shorter / min(height, width))
        for side in (height, width)
    )
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(resized)[top : top + size, left : left + size]


PRESETS: dict[str, Callable[[np.ndarray, int, float], np.ndarray]] = {
    "area": area,
    "keras": keras,
    "timm": timm,
}
