"""Decodes only a part of a JPEG, with libturbojpeg 3 if that is installed.

Above and beside the part only the codes are read; below it nothing is read. The pixels are equal to
those of the complete image, which OpenCV decodes with the same library. This module reads plain
files only; OpenCV decodes unusual or damaged ones.
"""

import ctypes
import importlib.util
import os
import re
from collections.abc import Callable
from functools import cache

import numpy as np

Box = tuple[int, int, int, int]  # top, left, height, width

_NAMES = "libturbojpeg.so.0", "libturbojpeg.0.dylib"

# The API's numbers, from turbojpeg.h of libjpeg-turbo 3.
_DECOMPRESS = 1
_SUBSAMPLING, _WIDTH, _HEIGHT, _COLOURS = 4, 5, 6, 8
_444, _422, _420, _GREY, _440 = range(5)
_YCBCR, _GREYSCALE = 1, 2
_RGB = 0

# A part begins and ends at a block of the file, 8 or 16 columns wide in these samplings.
_BLOCK = 16

# Segments of a plain file: a sequential frame, its tables, application data, comments.
_SCAN, _EXIF = 0xDA, 0xE1
_PLAIN = {0xC0, 0xC1, 0xC4, 0xDB, 0xDD, _SCAN, *range(0xE0, 0xF0), 0xFE}
_BEGINNING, _END = b"\xff\xd8", b"\xff\xd9"

# An EXIF orientation, in either byte order, that is not upright ("a short: 1").
_TURNED = re.compile(rb"\x12\x01(?!\x03\0\x01\0\0\0\x01\0)|\x01\x12(?!\0\x03\0\0\0\x01\0\x01)")


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


@cache
def library() -> ctypes.CDLL | None:
    """The system's libturbojpeg, else that of the package turbojpeg, if it can decode a part."""
    names = list(_NAMES)
    # The package's module is linked with its own library and gives access to its functions.
    package = importlib.util.find_spec("turbojpeg")
    if package and package.origin and not package.origin.endswith(".py"):
        names.append(package.origin)
    for name in names:
        try:
            found = ctypes.CDLL(name)
            pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
            found.tj3Init.restype = pointer
            found.tj3Destroy.argtypes = [pointer]
            found.tj3Get.argtypes = [pointer, number]
            found.tj3DecompressHeader.argtypes = [pointer, ctypes.c_char_p, size]
            found.tj3SetCroppingRegion.argtypes = [pointer, _Region]
            found.tj3Decompress8.argtypes = [
                pointer, ctypes.c_char_p, size, pointer, number, number,
            ]  # fmt: skip
        except (OSError, AttributeError):  # missing, or version 2
            continue
        return found
    return None


def part(encoded: bytes, choose: Callable[[int, int], Box]) -> np.ndarray | None:
    """A part of a plain, complete JPEG, equal to that part of the decoded image.

    Args:
      encoded: any file.
      choose: returns the part for the image's height and width; must be deterministic.

    Returns:
      uint8 `[height, width, 3]` of the part, RGB. None if there is no library, or the file is not a
      plain JPEG, is damaged or rotated by EXIF. Also None if it has more pixels than the
      environment variable `OPENCV_IO_MAX_IMAGE_PIXELS` allows.
    """
    turbo = library()
    if turbo is None or not _is_plain(encoded):
        return None
    handle = turbo.tj3Init(_DECOMPRESS)
    try:
        if turbo.tj3DecompressHeader(handle, encoded, len(encoded)):
            return None
        height, width = turbo.tj3Get(handle, _HEIGHT), turbo.tj3Get(handle, _WIDTH)
        limit = os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]  # OpenCV understands 128MB too
        if (
            not limit.isdecimal()
            or height * width > int(limit)
            or turbo.tj3Get(handle, _SUBSAMPLING) not in (_444, _422, _420, _GREY, _440)
            or turbo.tj3Get(handle, _COLOURS) not in (_YCBCR, _GREYSCALE)
        ):
            return None
        top, left, rows, columns = choose(height, width)
        # One column more on either side: smoothing of half-resolution colours reads neighbours.
        begin = max(left - 1, 0) // _BLOCK * _BLOCK
        end = min(-(-(left + columns + 1) // _BLOCK) * _BLOCK, width)
        pixels = np.empty((rows, end - begin, 3), np.uint8)
        region = _Region(begin, top, end - begin, rows)
        if turbo.tj3SetCroppingRegion(handle, region) or turbo.tj3Decompress8(
            handle, encoded, len(encoded), pixels.ctypes.data, 0, _RGB
        ):
            return None
    finally:
        turbo.tj3Destroy(handle)
    return pixels[:, left - begin : left - begin + columns]


def _is_plain(encoded: bytes) -> bool:
    """Whether it is an upright sequential JPEG with an end marker."""
    at = len(_BEGINNING)
    if not encoded.startswith(_BEGINNING):
        return False
    while encoded[at : at + 1] == b"\xff":
        kind = encoded[at + 1] if at + 1 < len(encoded) else None
        data = at + 2
        at = data + int.from_bytes(encoded[data : data + 2])
        if kind not in _PLAIN or (kind == _EXIF and _TURNED.search(encoded, data, at)):
            return False
        if kind == _SCAN:
            return encoded.rfind(_END, at) >= 0
    return False
