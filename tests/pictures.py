"""Images of odd kinds and damaged ones, written by Pillow, for the decoder and for whole runs."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image

_Y, _X = np.mgrid[0:40, 0:56]
PIXELS = np.stack([_Y * 4, _X * 4, (_Y + _X) * 2], -1).astype(np.uint8)
PICTURE = Image.fromarray(PIXELS)
_GREY = np.asarray(PICTURE.convert("L"))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, data: bytes, crc: int = 0) -> bytes:
    check = zlib.crc32(kind + data) ^ crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _png(width: int, height: int, rows: bytes, *, bits: int, kind: int, crc: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(rows, 1), crc)
        + _chunk(b"IEND", b"")
    )


def sixteen_bits() -> bytes:
    """`PIXELS` in 16 bits, which Pillow cannot write in colour."""
    values = (PIXELS.astype(">u2") * 257).reshape(40, -1).view(np.uint8)
    rows = np.pad(values, ((0, 0), (1, 0))).tobytes()
    return _png(56, 40, rows, bits=16, kind=2)


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([PIXELS, (_X * 4).astype(np.uint8)]))


def _palette_with_alpha() -> bytes:
    return encode(PICTURE.quantize(16), "PNG", transparency=bytes(range(0, 160, 10)))


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(PICTURE, "JPEG", quality=95, exif=exif)


@functools.cache
def odd() -> dict[str, bytes]:
    """Images that a decoder may well get wrong, by the names of their files."""
    turned = PICTURE.rotate(90)
    return {
        "png_named.JPEG": encode(PICTURE, "PNG"),
        "progressive.jpg": encode(PICTURE, "JPEG", progressive=True),
        "cmyk.jpg": encode(PICTURE.convert("CMYK"), "JPEG", quality=95),
        "grey.jpg": encode(PICTURE.convert("L"), "JPEG", quality=95),
        "grey16.png": encode(Image.fromarray(_GREY.astype(np.uint16) * 257), "PNG"),
        "rgb16.png": sixteen_bits(),
        "bits.png": encode(PICTURE.convert("1"), "PNG"),
        "alpha.png": encode(with_alpha(), "PNG"),
        "palette_alpha.png": _palette_with_alpha(),
        "animated.gif": encode(PICTURE, "GIF", save_all=True, append_images=[turned, PICTURE]),
        "plain.webp": encode(PICTURE, "WEBP", lossless=True),
        "alpha.webp": encode(with_alpha(), "WEBP", lossless=True, exact=True),
        "exif.jpg": rotated(6),
        "one.png": encode(Image.new("RGB", (1, 1), (9, 99, 199)), "PNG"),
        "plain.bmp": encode(PICTURE, "BMP"),
        "plain.tif": encode(PICTURE, "TIFF", compression="tiff_lzw"),
        "plain.jp2": encode(PICTURE, "JPEG2000"),
        "plain.ppm": encode(PICTURE, "PPM"),
        "thin.png": encode(Image.new("RGB", (2, 30_000), (9, 99, 199)), "PNG"),
        "flat.png": encode(Image.new("RGB", (30_000, 2), (9, 99, 199)), "PNG"),
    }


@functools.cache
def bad() -> dict[str, bytes]:
    """What must be noticed: no image, or not the whole of one, or too large a one."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    image = Image.fromarray(noise)
    whole = {
        "jpg": encode(image, "JPEG"), "png": encode(image, "PNG"), "webp": encode(image, "WEBP"),
        "gif": encode(image, "GIF"), "bmp": encode(image, "BMP"), "tif": encode(image, "TIFF"),
    }  # fmt: skip
    rows = np.pad(noise.reshape(40, -1), ((0, 0), (1, 0))).tobytes()
    return {
        "empty.jpg": b"",
        "random.jpg": np.random.default_rng(1).integers(0, 256, 3000, np.uint8).tobytes(),
        "text.png": b"no image at all",
        "crc.png": _png(56, 40, rows, bits=8, kind=2, crc=1),
        "huge.png": _png(30_000, 30_000, bytes(3751 * 30_000), bits=1, kind=0),
        "progressive.jpg": encode(image, "JPEG", progressive=True)[:-2],
        **{f"cut.{kind}": data[: len(data) * 2 // 3] for kind, data in whole.items()},
    }
