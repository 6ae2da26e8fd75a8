"""WebP, BMP, PNM and JPEG 2000: their headers claim a size."""

import re
import struct

from xception_jax.data.render.containers.common import PLAIN, Claim, DamagedError, need

# Bytes a pixel of OpenCV's decoders for these formats, measured and rounded up.
_WEBP, _WEBP_LOSSLESS, _WEBP_ANIMATED = 7, 12, 13
_JP2_BASE, _JP2_SAMPLE = 6, 5
_LARGE = 2**24  # pixels of a run-length BMP; OpenCV takes 1.5 s for eight times as many

_PNM = re.compile(rb"P([1-6])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)*(\d*)")
_SIZ = b"\xff\x4f\xff\x51"


def webp(encoded: bytes) -> Claim:
    """The claim of a WebP (RFC 9649)."""
    need(len(encoded) >= 30, "it ends within its header")
    kind, animated, cost = encoded[12:16], False, _WEBP
    if kind == b"VP8X":
        animated = bool(encoded[20] & 2)
        width, height = (int.from_bytes(encoded[a : a + 3], "little") + 1 for a in (24, 27))
        cost = _WEBP_LOSSLESS
    elif kind == b"VP8L":
        bits = int.from_bytes(encoded[21:25], "little")
        width, height, cost = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, _WEBP_LOSSLESS
    else:
        width, height = (int.from_bytes(encoded[a : a + 2], "little") & 0x3FFF for a in (26, 28))
    cost = _WEBP_ANIMATED if animated else cost
    return Claim("WebP", height, width, width * height * cost, encoded)


def bmp(encoded: bytes) -> Claim:
    """The claim of a BMP; its rows must be complete, unless they are run-length encoded.

    Runs may end early, except in a large image, which a kilobyte could otherwise claim.
    """
    need(len(encoded) >= 30, "it ends within its header")
    offset, header = struct.unpack_from("<II", encoded, 10)
    compression = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", encoded, 18)
    else:
        need(len(encoded) >= 34, "it ends within its header")
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", encoded, 18)
    height = abs(height)
    need(width > 0 and height > 0, f"it has {width:,} x {height:,} pixels")
    data = max(0, len(encoded) - offset)
    runs = compression in (1, 2)
    if runs:
        # Two bytes cover at most 255 pixels. The end of a small image may be missing.
        least = width * height // 128 if width * height > _LARGE else 0
    else:
        least = (width * bits + 31) // 32 * 4 * (height - 1)
    need(least <= data, f"its {data:,} bytes of pixels cannot hold {width:,} x {height:,} pixels")
    return Claim("BMP", height, width, int(width * height * PLAIN), encoded)


def pnm(encoded: bytes) -> Claim:
    """The claim of a PBM, PGM or PPM; its samples must be complete."""
    found = _PNM.match(encoded[:4096])
    if not found:
        raise DamagedError("its header cannot be read")
    kind, width, height = (int(found[i][:12]) for i in (1, 2, 3))
    need(width > 0 and height > 0, f"it has {width:,} x {height:,} pixels")
    samples = width * height * (3 if kind in (3, 6) else 1)
    most = int(found[4][:9] or 0) if kind not in (1, 4) else 0
    deep = most > 255
    least = -(-width // 8) * height if kind == 4 else samples * (2 if deep and kind > 4 else 1)
    need(least <= len(encoded), f"it ends before its {width:,} x {height:,} pixels")
    memory = int(width * height * PLAIN) << deep
    white = most if deep and most < 2**16 - 1 else 0
    return Claim("PNM", height, width, memory, encoded, white=white, deep=deep)


def jp2(encoded: bytes) -> Claim:
    """The claim of a JPEG 2000 (ITU-T T.800, A.5.1)."""
    at = encoded.find(_SIZ)
    need(at >= 0 and at + 48 <= len(encoded), "its size is not given")
    right, bottom, left, top, tile_w, tile_h = struct.unpack_from(">6I", encoded, at + 8)
    (components,) = struct.unpack_from(">H", encoded, at + 40)
    width, height = right - left, bottom - top
    need(width > 0 and height > 0, f"it has {width:,} x {height:,} pixels")
    need(0 < components <= 5, f"it has {components:,} components")
    need(tile_w > 0 and tile_h > 0, "it has tiles without pixels")
    tiles = -(-right // tile_w) * -(-bottom // tile_h)
    need(tiles <= 65_535 and tiles <= len(encoded) // 12, f"it has no room for {tiles:,} tiles")
    cost = _JP2_BASE + components * _JP2_SAMPLE
    return Claim("JPEG 2000", height, width, width * height * cost, encoded)
