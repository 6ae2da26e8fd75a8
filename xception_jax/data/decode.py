"""What the host does to one image: decode, crop, resize. All uint8, RGB, with OpenCV."""

import math
import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from xception_jax.data import turbojpeg
from xception_jax.data.turbojpeg import Box
from xception_jax.errors import ExampleError

# The pipeline's own threads each handle an image; OpenCV's would only compete with them.
cv2.setNumThreads(0)
# What it warns of is an `ExampleError` here, with the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Numbers that `random_box` takes.
DRAWS = 22

# How files begin, to say what one is, or was meant to be.
_BEGINNINGS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}


def decode(encoded: bytes, name: str = "it") -> np.ndarray:
    """Decodes any format that OpenCV reads to uint8 `[height, width, 3]`, RGB.

    Grey is repeated, 16 bits are scaled to 8, CMYK is converted, an EXIF rotation is applied. Of an
    animation it is the first frame. Transparency is dropped, as by Pillow's `convert("RGB")`; in a
    TIFF it is laid over black.

    Raises:
      ExampleError: the bytes are no image, are truncated or damaged as far as their format lets
        one know, or the image has more pixels than the environment variable
        `OPENCV_IO_MAX_IMAGE_PIXELS` allows. `name` is what the complaint calls them.
      MemoryError: there is no room for the image at present.
    """
    buffer = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB) if buffer.size else None
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"no memory to decode {len(encoded):,} bytes") from None
        raise ExampleError(name, f"cannot be decoded: {_explain(error)}") from None
    if image is None:
        kind = kind_of(encoded)
        fault = f"are a truncated, damaged or unsupported {kind}" if kind else "are no image"
        raise ExampleError(name, f"cannot be decoded: its {len(encoded)} bytes {fault}")
    return image


def kind_of(encoded: bytes) -> str | None:
    """The format that a file begins like, as `JPEG`; None: of none that is known here."""
    return next((kind for begins, kind in _BEGINNINGS.items() if encoded.startswith(begins)), None)


def decode_part(
    encoded: bytes, choose: Callable[[int, int], Box], name: str = "it", *, whole: bool = False
) -> np.ndarray:
    """The part of an image that `choose` names by its height and width, as `decode` has it.

    Of a JPEG only that part is decoded, where libturbojpeg 3 is installed, unless `whole`. That
    refuses what is refused as a whole, and no more.

    Raises:
      ExampleError: see `decode`.
    """
    part = None if whole else turbojpeg.part(encoded, choose)
    if part is not None:
        return part
    image = decode(encoded, name)
    top, left, height, width = choose(*image.shape[:2])
    return image[top : top + height, left : left + width]


def _explain(error: cv2.error) -> str:
    """What OpenCV's exception means, in one line."""
    if "CV_IO_MAX_IMAGE_" in str(error):
        most = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
        pixels = f"{int(most):,}" if most.isdecimal() else most  # OpenCV understands 128MB too
        return f"it has more than OPENCV_IO_MAX_IMAGE_PIXELS, {pixels} pixels"
    return " ".join(str(error).split())


def random_box(
    drawn: Sequence[float],
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """The part of an image that Inception's training sees (arXiv:1409.4842, section 6).

    Args:
      drawn: the example's own `DRAWS` random numbers, from 0 to 1.
      height, width: of the image.
      area: least and largest share of the image's area.
      aspect: least and largest width / height; drawn evenly on a logarithmic scale.

    Returns:
      A box inside the image. Where ten draws do not fit: the largest centred box whose aspect is
      nearest to the image's.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for of_area, of_aspect in zip(drawn[:10], drawn[10:20], strict=True):
        pixels = (area[0] + of_area * (area[1] - area[0])) * height * width
        ratio = math.exp(low + of_aspect * (high - low))
        h, w = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(drawn[20] * (height - h + 1)), int(drawn[21] * (width - w + 1)), h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    h, w = max(h, 1), max(w, 1)
    return (height - h) // 2, (width - w) // 2, h, w


def centre_box(height: int, width: int, fraction: float) -> Box:
    """The centred square whose side is `fraction` of the image's shorter side."""
    side = max(1, round(min(height, width) * fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def resize(part: np.ndarray, into: np.ndarray) -> None:
    """Makes any image fill another one, uint8 `[size, size, 3]`, antialiased where it shrinks.

    Where a side shrinks to half or less, it is averaged over areas. That takes four times as long
    as linear interpolation; otherwise three taps make the latter as wide as Pillow's antialiased
    one, from which it then differs about as little as the average does.
    """
    height, width, _ = part.shape
    size, _, _ = into.shape
    most = max(height, width) / size
    if most >= 2:
        # In two steps where the other side grows: OpenCV averages only where none does.
        shrunk = min(width, size), min(height, size)
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    elif most > 1:
        rows, columns = _widening(height / size), _widening(width / size)
        part = cv2.sepFilter2D(part, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    cv2.resize(part, (size, size), dst=into, interpolation=cv2.INTER_LINEAR)


def _widening(shrinkage: float) -> np.ndarray:
    """Three taps with the second moment that a triangle gains when it is stretched so far."""
    side = max(shrinkage**2 - 1, 0) / 12
    return np.asarray([side, 1 - 2 * side, side], np.float32)
