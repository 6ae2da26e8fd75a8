"""Checks the claims of image files before anything is decoded.

A decoder trusts the header: it takes memory and time for all pixels, chunks or scans that the
header claims. So each container is parsed first, in microseconds, and its lengths are compared with
the file's. A claim that the file cannot hold is refused; other claims are limited by memory.
"""

import struct
from collections.abc import Callable

from xception_jax.data.render.containers import avif, gif, jpeg, others, png, tiff
from xception_jax.data.render.containers.common import Claim, DamagedError

__all__ = ["Claim", "DamagedError", "gif", "inspect", "kind_of"]

# First bytes of files, the name of the format, and the function that reads its headers.
_KINDS: tuple[tuple[bytes, str, Callable[[bytes], Claim]], ...] = (
    (b"\xff\xd8\xff", "JPEG", jpeg.inspect),
    (png.SIGNATURE, "PNG", png.inspect),
    (b"GIF8", "GIF", gif.inspect),
    (b"BM", "BMP", others.bmp),
    *((beginning, "TIFF", tiff.inspect) for beginning in tiff.BEGINNINGS),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", others.jp2),
    (b"\xff\x4f\xff\x51", "JPEG 2000", others.jp2),
    *((b"P%d" % number, "PNM", others.pnm) for number in range(1, 7)),
)


def _find(encoded: bytes) -> tuple[str, Callable[[bytes], Claim]] | None:
    for beginning, kind, inspector in _KINDS:
        if encoded.startswith(beginning):
            return kind, inspector
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "WebP", others.webp
    if encoded[4:8] == b"ftyp" and any(brand in encoded[8:64] for brand in (b"avif", b"avis")):
        return "AVIF", avif.inspect
    return None


def kind_of(encoded: bytes) -> str | None:
    """The format by the first bytes, as `JPEG`; None: not a format that is read here."""
    found = _find(encoded)
    return found[0] if found else None


def inspect(encoded: bytes) -> Claim | None:
    """The claim of a file; None: not a format that is read here.

    Raises:
      DamagedError: its container contradicts itself or its length.
    """
    found = _find(encoded)
    try:
        return found[1](encoded) if found else None
    except (struct.error, IndexError, OverflowError):
        raise DamagedError("a header is cut short, or points outside") from None
