"""How evaluation makes an image of a picture: as this project, Inception, Keras or timm do.

Weights do best on images made as in their training. All presets end in pixels that the step scales
to [-1, 1], as Keras' and timm's Xceptions take them. Keras' and timm's resizing is Pillow's.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from xception_jax.data.render import decode
from xception_jax.data.source import Example

# Pixels of a resized picture, of which more than the centre is not made: 50 MB.
_LARGE = 2**24


def area(image: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The centred square of `crop` of the shorter side, averaged where it shrinks."""
    height, width, _ = image.shape
    top, left, side, _ = decode.centre_box(height, width, crop)
    how = cv2.INTER_AREA if size < side else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + side, left : left + side], (size, size), interpolation=how)


def inception(image: np.ndarray, size: int, crop: float) -> np.ndarray:
    """The central `crop` of both sides, squeezed to a square, bilinear without antialiasing.

    The paper says no more than "single crop"; this is what Inception, which it is compared with,
    was published with: `preprocess_for_eval` in tensorflow/models, research/slim/preprocessing/
    inception_preprocessing.py, where `crop` is 0.875. A pixel shows the place of its upper left
    corner, not of its centre.
    """
    # The longer side first: floats of all of it times `size` could be more than there is room for.
    for axis in np.argsort(image.shape[:2])[::-1]:
        side = image.shape[axis]
        start = int((side - side * crop) / 2)
        kept = side - 2 * start
        places = np.arange(size, dtype=np.float32) * np.float32(kept / size)
        low = places.astype(np.int32)
        high = np.minimum(low + 1, kept - 1)
        share = (places - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        first, second = (
            np.take(image, start + at, axis).astype(np.float32, copy=False) for at in (low, high)
        )
        image = first + (second - first) * share
    return np.round(image).astype(np.uint8)


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
    rows, columns = (
        shorter if side == min(height, width) else int(side * shorter / min(height, width))
        for side in (height, width)
    )
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    picture = Image.fromarray(image)
    if rows * columns <= _LARGE:
        resized = picture.resize((columns, rows), Image.Resampling.BICUBIC)
        return np.asarray(resized)[top : top + size, left : left + size]
    # What is long and narrow would grow beyond all measure: only what is kept of it is made. That
    # is the same to the rounding between the two passes, of which Pillow chooses the order.
    down, across = height / rows, width / columns
    kept = left * across, top * down, (left + size) * across, (top + size) * down
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=kept))


PRESETS: dict[str, Callable[[np.ndarray, int, float], np.ndarray]] = {
    "area": area,
    "inception": inception,
    "keras": keras,
    "timm": timm,
}


def seen(images: decode.Images, height: int, width: int) -> tuple[float, float, float, float]:
    """The part of a picture that evaluation makes its image of: top, left, height, width; pixels.

    Args:
      images: how it is made.
      height, width: of the picture.
    """
    crop = images.eval_crop
    if images.eval_preset == "area":
        return decode.centre_box(height, width, crop)
    if images.eval_preset == "inception":
        top, left = int((height - height * crop) / 2), int((width - width * crop) / 2)
        return top, left, height - 2 * top, width - 2 * left
    if images.eval_preset == "timm":
        side = min(height, width) * images.size / math.floor(images.size / crop)
        return (height - side) / 2, (width - side) / 2, side, side
    return 0, 0, height, width


def render_center(images: decode.Images, example: Example, into: np.ndarray) -> None:
    """Makes what evaluation sees of an example, as its preset does.

    Args:
      images: how.
      example: a stored image.
      into: takes the result, uint8 `[size, size, 3]`.

    Raises:
      ExampleError, MemoryError: see `decode.decode`.
    """
    image = decode.decode(example.encoded, example.name, exif=images.exif, white=images.white)
    into[:] = PRESETS[images.eval_preset](image, images.size, images.eval_crop)
