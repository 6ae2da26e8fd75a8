"""The host's operations on one image: decode, crop, resize. All uint8, RGB, with OpenCV."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from xception_jax.data.render import containers, levels, turbojpeg
from xception_jax.data.render.containers import Claim, kind_of
from xception_jax.data.render.turbojpeg import Box
from xception_jax.data.source import Example
from xception_jax.errors import ExampleError
from xception_jax.utils.console import make_console

__all__ = ["Box", "Claim", "decode", "decode_part", "examine", "kind_of", "random_box",
           "render_crop", "resize"]  # fmt: skip

# Each of the pipeline's threads handles an image; OpenCV's threads would only compete with them.
cv2.setNumThreads(0)
# Its warnings would repeat an `ExampleError`, which also has the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Random numbers that `random_box` takes.
DRAWS = 22

# Bytes that a decode may take for each pixel that OPENCV_IO_MAX_IMAGE_PIXELS allows: the result and
# one copy of it. Formats that take more bytes a pixel may have fewer pixels.
_BYTES_A_PIXEL = 6.3

# The limit on pixels, read once, in OpenCV's syntax: 134217728, or 128MB.
_SET = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]
_UNIT = {"kb": 2**10, "mb": 2**20}.get(_SET[-2:].lower(), 1)
_NUMBER = _SET if _UNIT == 1 else _SET[:-2]
_LIMIT = int(_NUMBER) * _UNIT if _NUMBER.isdecimal() else None  # None: OpenCV refuses it itself
_SAID = f"{_LIMIT:,}" if _SET.isdecimal() else _SET

# A 16-bit image whose values are all below a quarter of the range is reported, once.
_DARK = 64
_reported_dark: set[int] = set()


@dataclass(frozen=True)
class Images:
    """How the host turns an example into an image.

    Attributes:
      size: side of the resulting square, pixels.
      crop_area, crop_aspect: ranges of the random training crop, see `random_box`; (1, 1) for both:
        the largest centred square.
      eval_preset, eval_crop: see `render.presets`; `eval_crop` is the share of the shorter side
        that evaluation keeps.
      exif, white: see `decode`.
    """

    size: int
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    eval_preset: str = "area"
    eval_crop: float = 1.0
    exif: bool = True
    white: int = 0

    @property
    def crops(self) -> bool:
        """Whether training images are random crops."""
        return tuple(self.crop_area) != (1, 1) or tuple(self.crop_aspect) != (1, 1)


def decode(encoded: bytes, name: str = "it", *, exif: bool = True, white: int = 0) -> np.ndarray:
    """Decodes an image of a format that `containers` knows to uint8 `[height, width, 3]`, RGB.

    Grey is repeated and CMYK is converted. An animation gives its first frame. Transparency is
    dropped, as by Pillow's `convert("RGB")`; in a TIFF it is blended over black.

    Args:
      encoded: the bytes of a file.
      name: its name in error messages.
      exif: apply an EXIF orientation. That of a TIFF is always applied, as by Pillow.
      white: the level of white in images with 16 bits a sample; 0: the level that the file declares
        (see `levels`), else all ones. Such an image is scaled to 8 bits.

    Raises:
      ExampleError: the bytes are not an image, are truncated or damaged as far as their format
        shows it, or cannot hold the claimed image. Or the image has more pixels or takes more
        memory than the environment variable `OPENCV_IO_MAX_IMAGE_PIXELS` allows.
      MemoryError: there is not enough memory at present.
    """
    return _decode_claimed(examine(encoded, name), name, exif, white)


def _decode_claimed(claim: Claim, name: str, exif: bool, white: int) -> np.ndarray:
    """See `decode`; for an image that was examined."""
    white = (white or claim.white) if claim.deep else claim.white
    orientation = 0 if exif else cv2.IMREAD_IGNORE_ORIENTATION
    if 0 < white < 2**16 - 1 or (claim.hint and not white):
        image = _decoded(claim, name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | orientation)
        white = white or levels.white_of(claim, image)
        if white:
            image = cv2.convertScaleAbs(image, alpha=255 / white)  # first, which halves the bytes
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        del image  # otherwise memory would hold two
    image = _decoded(claim, name, cv2.IMREAD_COLOR_RGB | orientation)
    if claim.deep and not white and not _reported_dark and image.max(initial=0) < _DARK:
        _report_dark(claim, name)
    return image


def _report_dark(claim: Claim, name: str) -> None:
    most = _decoded(claim, name, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH).max(initial=0)
    _reported_dark.add(int(most))
    make_console(stderr=True).print(
        f"{name} stores 16 bits a sample, and its values end at {most:,} of 65,535: it is nearly "
        f"black. If white is lower, set config.data.white_level, as 4095 for 12 bits. (Said once.)"
    )


def examine(encoded: bytes, name: str = "it") -> Claim:
    """The claim of an image that can be decoded within the limits; raises `ExampleError`."""
    try:
        claim = containers.inspect(encoded)
    except containers.DamagedError as error:
        raise ExampleError(name, f"{_damaged(encoded, kind_of(encoded))}: {error}") from None
    if claim is None:
        raise ExampleError(name, f"cannot be decoded: its {len(encoded)} bytes are not an image")
    limit = _LIMIT
    if limit is None:
        return claim
    if claim.height * claim.width > limit:
        raise ExampleError(
            name,
            f"cannot be decoded: it has more than OPENCV_IO_MAX_IMAGE_PIXELS, {_SAID} pixels",
        )
    if claim.memory > limit * _BYTES_A_PIXEL:
        raise ExampleError(
            name,
            f"cannot be decoded: a {claim.kind} of {claim.width:,} x {claim.height:,} pixels takes "
            f"{claim.memory / 1e6:,.0f} MB, more than {limit * _BYTES_A_PIXEL / 1e6:,.0f} MB; "
            f"OPENCV_IO_MAX_IMAGE_PIXELS={math.ceil(claim.memory / _BYTES_A_PIXEL)} allows it",
        )
    return claim


def _decoded(claim: Claim, name: str, flags: int) -> np.ndarray:
    """Decodes an examined file with OpenCV; a GIF with Pillow."""
    if claim.kind == "GIF":
        try:
            return containers.gif.decode(claim.encoded)
        except containers.DamagedError as error:
            raise ExampleError(name, f"{_damaged(claim.encoded, 'GIF')}: {error}") from None
    try:
        image = cv2.imdecode(np.frombuffer(claim.encoded, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(f"no memory to decode {claim.pixels:,} pixels") from None
        raise ExampleError(name, f"cannot be decoded: {_explain(error)}") from None
    if image is None:
        # Some decoders report a lack of memory like damage. This raises MemoryError if it is one.
        np.empty(claim.memory, np.uint8)
        raise ExampleError(name, _damaged(claim.encoded, claim.kind))
    return image


def _damaged(encoded: bytes, kind: str | None) -> str:
    fault = f"its {len(encoded)} bytes are a truncated, damaged or unsupported {kind}"
    return f"cannot be decoded: {fault}"


def render_crop(
    images: Images, drawn: Sequence[float], example: Example, into: np.ndarray, *, complete: bool
) -> None:
    """Makes a random crop for training.

    Args:
      images: the settings.
      drawn: see `random_box`.
      example: an encoded image.
      into: output, the crop, uint8 `[size, size, 3]`.
      complete: decode the complete image, see `decode_part`.

    Raises:
      ExampleError, MemoryError: see `decode`.
    """
    choose = partial(random_box, drawn, area=images.crop_area, aspect=images.crop_aspect)
    part = decode_part(
        example.encoded, choose, example.name, complete=complete, exif=images.exif,
        white=images.white,
    )  # fmt: skip
    resize(part, into)


def decode_part(
    encoded: bytes,
    choose: Callable[[int, int], Box],
    name: str = "it",
    *,
    complete: bool = False,
    exif: bool = True,
    white: int = 0,
) -> np.ndarray:
    """The part of a decoded image that `choose` selects by the image's height and width.

    If libturbojpeg 3 is installed, only that part of a JPEG is decoded, unless `complete`. Both
    ways give the same pixels and refuse the same files.

    Raises:
      ExampleError, MemoryError: see `decode`.
    """
    claim = examine(encoded, name)
    if claim.kind == "JPEG" and not complete:
        part = turbojpeg.part(encoded, choose)
        if part is not None:
            return part
    image = _decode_claimed(claim, name, exif, white)
    top, left, height, width = choose(*image.shape[:2])
    return image[top : top + height, left : left + width]


def _explain(error: cv2.error) -> str:
    """The meaning of OpenCV's exception, in one line."""
    if "CV_IO_MAX_IMAGE_" in str(error):
        return f"it has more than OPENCV_IO_MAX_IMAGE_PIXELS, {_SAID} pixels"
    return " ".join(str(error).split())


def random_box(
    drawn: Sequence[float],
    height: int,
    width: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Box:
    """A random crop as in Inception's training (arXiv:1409.4842, section 6).

    Args:
      drawn: the example's `DRAWS` random numbers, from 0 to 1.
      height, width: size of the image, pixels.
      area: smallest and largest share of the image's area.
      aspect: smallest and largest width / height; uniform on a logarithmic scale.

    Returns:
      A box inside the image. If none of ten draws fits: the largest centred box with the aspect
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
    """Resizes an image into `into`, uint8 `[size, size, 3]`, antialiased where it shrinks.

    If a side shrinks to half or less, areas are averaged, which takes four times as long as linear
    interpolation. Otherwise a filter of three taps widens linear interpolation to the width of
    Pillow's antialiased one. The difference from Pillow is then about as small as the average's.
    """
    height, width, _ = part.shape
    size, _, _ = into.shape
    most = max(height, width) / size
    if most >= 2:
        # In two steps if the other side grows: OpenCV averages only if no side grows.
        shrunk = min(width, size), min(height, size)
        part = cv2.resize(part, shrunk, interpolation=cv2.INTER_AREA)
    elif most > 1:
        rows, columns = _widening(height / size), _widening(width / size)
        part = cv2.sepFilter2D(part, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    cv2.resize(part, (size, size), dst=into, interpolation=cv2.INTER_LINEAR)


def _widening(shrinkage: float) -> np.ndarray:
    """Three taps with the second moment that a triangle gains by stretching by `shrinkage`."""
    side = max(shrinkage**2 - 1, 0) / 12
    return np.asarray([side, 1 - 2 * side, side], np.float32)
