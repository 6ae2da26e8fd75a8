"""Images of all formats, damaged in a seeded way, and a process that decodes them in its bounds.

`python -m tests.data.mutations FIRST COUNT` decodes these mutants in one process that keeps freed
memory, and prints a JSON line: how many were decoded and refused, CPU seconds of the slowest, and
by how many bytes the process' memory grew at its peak.
"""

import functools
import io
import json
import struct
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from xception_jax.data.render import decode
from xception_jax.errors import ExampleError
from xception_jax.runtime import allocator


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def seeds() -> dict[str, bytes]:
    """Whole files of many kinds, by name."""
    y, x = np.mgrid[:90, :120]
    noise = np.random.default_rng(0).integers(0, 40, (90, 120, 3))
    image = Image.fromarray((np.stack([y * 2, x, y + x], -1) + noise).clip(0, 255).astype(np.uint8))
    frames = [image.rotate(90 * n) for n in (1, 2)]
    alpha = image.convert("RGBA")
    exif = Image.Exif()
    exif[0x112] = 6
    wide = (np.asarray(image).astype(np.uint16) << 8).reshape(90, 120, 3)
    profile = bytes(np.random.default_rng(1).integers(0, 256, 5000, np.uint8))
    text = _text()
    return {
        "baseline.jpg": _save(image, "JPEG", exif=exif, icc_profile=profile),
        "progressive.jpg": _save(image, "JPEG", progressive=True),
        "full.jpg": _save(image, "JPEG", subsampling=0, quality=98, optimize=True),
        "cmyk.jpg": _save(image.convert("CMYK"), "JPEG", progressive=True),
        "restarts.jpg": cv2.imencode(".jpg", wide[..., 0] >> 8, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[
            1
        ].tobytes(),
        "rgb.png": _save(image, "PNG", icc_profile=profile, pnginfo=text),
        "alpha.png": _save(alpha, "PNG", exif=exif),
        "palette.png": _save(image.quantize(32), "PNG", transparency=bytes(range(32))),
        "bits.png": _save(image.convert("1"), "PNG"),
        "animated.png": _save(image, "PNG", save_all=True, append_images=frames),
        "deep.png": cv2.imencode(".png", wide)[1].tobytes(),
        "interlaced.png": interlaced(np.asarray(image)),
        "lossy.webp": _save(image, "WEBP", quality=60, exif=exif),
        "lossless.webp": _save(image, "WEBP", lossless=True),
        "alpha.webp": _save(alpha, "WEBP"),
        "animated.webp": _save(image, "WEBP", save_all=True, append_images=frames),
        "plain.gif": _save(image, "GIF"),
        "animated.gif": _save(image, "GIF", save_all=True, append_images=frames, comment=b"x" * 99),
        "rgb.bmp": _save(image, "BMP"),
        "palette.bmp": _save(image.quantize(16), "BMP"),
        "plain.tif": _save(image, "TIFF"),
        "lzw.tif": _save(image, "TIFF", compression="tiff_lzw"),
        "deflate.tif": _save(image, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": _save(image, "TIFF", compression="jpeg"),
        "fax.tif": _save(image.convert("1"), "TIFF", compression="group4"),
        "deep.tif": cv2.imencode(".tiff", wide)[1].tobytes(),
        "plain.avif": _save(image, "AVIF", speed=10),
        "alpha.avif": _save(alpha, "AVIF", speed=10),
        "animated.avif": _save(image, "AVIF", save_all=True, append_images=frames, speed=10),
        "plain.jp2": _save(image, "JPEG2000"),
        "plain.ppm": _save(image, "PPM"),
    }


def _text():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "plain")
    info.add_text("Zipped", "z" * 5000, zip=True)
    info.add_itxt("Both", "i" * 5000, zip=True)
    return info


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced(pixels: np.ndarray) -> bytes:
    """An Adam7 PNG, which neither Pillow nor OpenCV writes."""
    height, width, _ = pixels.shape
    steps = (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    )
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in steps for row in pixels[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def _numbers(rng: np.random.Generator, data: bytearray) -> None:
    """A field of two or four bytes, where lengths and sizes stand, gets an extreme value."""
    head = min(len(data), int(rng.choice([40, 200, len(data)])))
    at, size = int(rng.integers(0, head)), int(rng.choice([2, 4]))
    value = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 5000, 11_000, 16_383]))
    order = "big" if rng.random() < 0.5 else "little"
    data[at : at + size] = (value % 256**size).to_bytes(size, order)


def _flip(rng: np.random.Generator, data: bytearray) -> None:
    head = min(len(data), int(rng.choice([40, 700, len(data)])))
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(0, head))] ^= 1 << int(rng.integers(0, 8))


def _cut(rng: np.random.Generator, data: bytearray) -> None:
    del data[int(rng.integers(1, len(data))) :]


def _splice(rng: np.random.Generator, data: bytearray) -> None:
    other = list(seeds().values())[int(rng.integers(0, len(seeds())))]
    start, end = sorted(int(n) for n in rng.integers(0, len(other), 2))
    at = int(rng.integers(0, len(data)))
    data[at : at + int(rng.integers(0, 300))] = other[start:end]


def _repeat(rng: np.random.Generator, data: bytearray) -> None:
    start, end = sorted(int(n) for n in rng.integers(0, len(data), 2))
    part = bytes(data[start : min(end, start + 5000)])
    data[start:start] = part * int(rng.choice([1, 2, 50]))


def _blank(rng: np.random.Generator, data: bytearray) -> None:
    start, end = sorted(int(n) for n in rng.integers(0, len(data), 2))
    data[start:end] = bytes([int(rng.choice([0, 255]))]) * (end - start)


def _sizes(rng: np.random.Generator, data: bytearray) -> None:
    """The image claims to be larger: wherever its size stands, in either order of bytes."""
    value = int(rng.choice([1000, 4000, 11_585, 16_383, 30_000, 65_535]))
    for size in (2, 4):
        for order in ("big", "little"):
            for side in (90, 120):
                old = side.to_bytes(size, order)
                at = bytes(data[:2000]).find(old)
                if at >= 0 and rng.random() < 0.7:
                    data[at : at + size] = value.to_bytes(size, order)


def _mend(data: bytearray) -> None:
    """The checksums of a PNG's chunks, so that a decoder goes on."""
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if at + 12 + length > len(data):
            return
        end = at + 8 + length
        data[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(data[at + 4 : end])))
        at = end + 4


_MUTATORS = (_numbers, _flip, _cut, _splice, _repeat, _blank, _sizes)


def mutant(number: int) -> tuple[str, bytes]:
    """A damaged file and its name; the same for the same number."""
    rng = np.random.default_rng([7, number])
    names = list(seeds())
    name = names[number % len(names)]
    data = bytearray(seeds()[name])
    for _ in range(int(rng.integers(1, 4))):
        _MUTATORS[int(rng.integers(0, len(_MUTATORS)))](rng, data)
        if not data:
            break
    if name.endswith(".png") and rng.random() < 0.8:
        _mend(data)
    return f"{number}-{name}", bytes(data)


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(files) -> dict[str, object]:
    """Decodes named files, one after the other; see the module."""
    for data in seeds().values():
        decode.decode(data)
    Path("/proc/self/clear_refs").write_text("5")
    before, slowest, decoded, refused = peak_bytes(), (0.0, ""), 0, 0
    growth = (0, "")
    lines = 0
    for name, data in files:
        peak, begun = peak_bytes(), time.process_time()
        try:
            decode.decode(data, name)
            decoded += 1
        except ExampleError as error:
            refused += 1
            lines = max(lines, str(error).count("\n") + 1)
        slowest = max(slowest, (time.process_time() - begun, name))
        growth = max(growth, (peak_bytes() - peak, name))
    return {
        "decoded": decoded, "refused": refused, "seconds": slowest, "growth": growth,
        "peak": peak_bytes() - before, "lines": lines,
    }  # fmt: skip


if __name__ == "__main__":
    allocator.keep_freed_memory()
    first, count = map(int, sys.argv[1:])
    print(json.dumps(measure(mutant(number) for number in range(first, first + count))))
