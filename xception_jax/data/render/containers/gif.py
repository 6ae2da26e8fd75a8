"""GIF: its first image, located without decoding, and decoded by Pillow.

OpenCV's decoder copies its complete table at each clear code. A file with little else takes some
six microseconds a byte. Pillow's decoder takes the same time for all codes.
"""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from xception_jax.data.render.containers.common import Claim, DamagedError, need

# Bytes a pixel: the result, indices, Pillow's buffers, and a row of colours.
_COST = 10

_MOST_BLOCKS = 2**16  # before the first image
_TABLE, _INTERLACED = 0x80, 0x40


class _First(NamedTuple):
    """The first image: its position on the canvas, its colours, and its codes.

    `transparent` is the index that shows the background; None: there is no such index.
    """

    width: int
    height: int
    left: int
    top: int
    w: int
    h: int
    flags: int
    background: tuple[int, ...]
    colours: np.ndarray  # uint8 [n, 3]
    transparent: int | None
    codes: bytes


def inspect(encoded: bytes) -> Claim:
    """The claim of a GIF; its first image must be able to hold its pixels."""
    first = _first(encoded)
    codes = len(first.codes) * 8 // 3  # a code takes three bits or more
    claimed = f"{first.w:,} x {first.h:,} pixels"
    need(first.w * first.h <= codes * min(codes, 4096), f"its data cannot hold {claimed}")
    return Claim("GIF", first.height, first.width, first.height * first.width * _COST, encoded)


def decode(encoded: bytes) -> np.ndarray:
    """The first image over the background colour, uint8 `[height, width, 3]`, RGB.

    Raises:
      DamagedError: its codes are not an image.
    """
    first = _first(encoded)
    alone = (
        struct.pack("<6sHHBBB", b"GIF87a", first.w, first.h, _TABLE | 7, 0, 0)
        + bytes(768)
        + struct.pack("<cHHHHB", b",", 0, 0, first.w, first.h, first.flags & _INTERLACED)
        + first.codes
        + b"\0;"
    )
    try:
        with Image.open(io.BytesIO(alone)) as image:
            indices = np.asarray(image)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DamagedError(f"its codes are not an image: {error}") from None
    need(int(indices.max(initial=0)) < len(first.colours), "a colour is not in its table")
    canvas = np.empty((first.height, first.width, 3), np.uint8)
    if indices.shape != canvas.shape[:2] or first.transparent is not None:
        canvas[:] = first.background
    part = canvas[first.top : first.top + first.h, first.left : first.left + first.w]
    for row, places in zip(part, indices, strict=True):
        shown = first.colours[places]
        if first.transparent is None:
            row[:] = shown
        else:
            seen = places != first.transparent
            row[seen] = shown[seen]
    return canvas


def _first(encoded: bytes) -> _First:
    """Finds the first image."""
    need(len(encoded) >= 13, "it ends within its header")
    width, height, flags, background = struct.unpack_from("<HHBB", encoded, 6)
    need(width > 0 and height > 0, f"it has {width:,} x {height:,} pixels")
    shared, at = _colours(encoded, 13, flags)
    transparent = None
    for _ in range(_MOST_BLOCKS):
        if encoded[at : at + 1] != b"!":
            break
        if encoded[at + 1 : at + 3] == b"\xf9\x04" and len(encoded) > at + 6:
            transparent = encoded[at + 6] if encoded[at + 3] & 1 else None
        at = _past_blocks(encoded, at + 2)
    need(encoded[at : at + 1] == b"," and at + 11 <= len(encoded), "it has no image")
    left, top, w, h, own_flags = struct.unpack_from("<HHHHB", encoded, at + 1)
    need(w > 0 and h > 0, f"its first image has {w:,} x {h:,} pixels")
    need(left + w <= width and top + h <= height, "its first image exceeds the canvas")
    own, at = _colours(encoded, at + 10, own_flags)
    colours = np.concatenate([own, shared[len(own) :]]) if len(own) or len(shared) else _GREY
    beneath = tuple(shared[background].tolist()) if background < len(shared) else (0, 0, 0)
    end = _past_blocks(encoded, at + 1)
    need(end < len(encoded), "it ends before its trailer")
    return _First(
        width, height, left, top, w, h, own_flags, beneath, colours, transparent,
        encoded[at : end - 1],
    )  # fmt: skip


# Without a table: black, white, then the index itself, as in OpenCV.
_GREY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
_GREY[1] = 255


def _colours(encoded: bytes, at: int, flags: int) -> tuple[np.ndarray, int]:
    """A colour table, uint8 `[n, 3]`, and the offset of its end."""
    count = 2 << (flags & 7) if flags & _TABLE else 0
    need(at + 3 * count <= len(encoded), "a colour table is cut short")
    table = np.frombuffer(encoded, np.uint8, 3 * count, at)
    return table.reshape(count, 3), at + 3 * count


def _past_blocks(encoded: bytes, at: int) -> int:
    """The end of a chain of blocks, after its last, empty block."""
    while at < len(encoded) and encoded[at]:
        at += 1 + encoded[at]
    need(at < len(encoded), "its last block is cut short")
    return at + 1
