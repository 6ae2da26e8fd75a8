"""Measures memory and time to decode each image format, and the cost of the checks before it.

    python -m benchmarks.images

Memory and CPU time are those of complete pictures of 12 megapixels, each decoded in its own
process. Memory is the growth of the process at its peak; it returns freed memory to the system. The
checks are timed on the JPEGs of `benchmarks.input` (500x375, 110 KB), each checked and decoded in
turn.
"""

import argparse
import io
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks import arguments, pictures, record
from benchmarks.arguments import count
from benchmarks.turns import digits
from xception_jax.data.render import decode
from xception_jax.data.render.containers.common import PLAIN

REPEATS = 8  # of a picture of 500x375, along each side
LIMIT = 2**27  # pixels: the default of OPENCV_IO_MAX_IMAGE_PIXELS
FILES = 64  # JPEGs whose checks are timed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=count, default=7, help="rounds of the checks (%(default)s)")
    add("--repeats", type=count, default=REPEATS,
        help="side of the pictures, in pictures of 500x375 (%(default)s)")  # fmt: skip
    add("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="NAME",
        help=f"of: {'; '.join(FORMATS)} (all)")  # fmt: skip
    add("--output", type=Path, default=record.RESULTS, help="folder of the CSV files")
    return parser.parse_args()


def main() -> None:
    """Measures, prints and writes."""
    options = parse()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    notes = {
        "machine": record.machine(),
        "versions": record.versions(["opencv-python-headless", "pillow"]),
    }
    rows = []
    for name in options.formats:
        rows.append(costs(name, options.repeats))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    record.write(options.output / "image_memory.csv", rows, notes)
    checks = checked(options.rounds)
    print(", ".join(f"{key} {value}" for key, value in checks.items()))
    record.write(options.output / "image_checks.csv", [checks], notes)


def _pillow(kind: str, mode: str = "RGB", **options: Any) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


def _opencv(suffix: str, factor: int, *options: int) -> Callable[[np.ndarray], bytes]:
    """An encoder with 16 bits a sample: the 8-bit samples times a factor."""

    def encode(pixels: np.ndarray) -> bytes:
        return cv2.imencode(suffix, pixels.astype(np.uint16) * factor, options)[1].tobytes()

    return encode


def _one_strip(pixels: np.ndarray) -> bytes:
    return _pillow("TIFF", tiffinfo={278: len(pixels)})(pixels)


def _animated(pixels: np.ndarray) -> bytes:
    frames = [Image.fromarray(pixels[::-1])]
    return _pillow("WEBP", method=0, save_all=True, append_images=frames)(pixels)


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {
    "JPEG": _pillow("JPEG", quality=90),
    "JPEG, progressive, 4:2:0": _pillow("JPEG", quality=90, progressive=True),
    "JPEG, progressive, 4:4:4": _pillow("JPEG", quality=90, progressive=True, subsampling=0),
    "PNG": _pillow("PNG", compress_level=1),
    "PNG, 16 bits": _opencv(".png", 257),
    "BMP": _pillow("BMP"),
    "PPM": _pillow("PPM"),
    "PPM, 16 bits": _opencv(".ppm", 257),
    "TIFF, in strips": _pillow("TIFF", compression="tiff_lzw"),
    "TIFF, in one strip": _one_strip,
    "TIFF, 16 bits": _opencv(".tiff", 257),
    "WebP, lossy": _pillow("WEBP", method=0),
    "WebP, lossless": _pillow("WEBP", method=0, quality=0, lossless=True),
    "WebP, animated": _animated,
    "GIF": _pillow("GIF"),
    "AVIF": _pillow("AVIF", speed=10),
    "AVIF, 10 bits": _opencv(".avif", 4, cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_SPEED, 10),
    "JPEG 2000": _pillow("JPEG2000", irreversible=True, quality_layers=[10]),
}


def costs(name: str, repeats: int) -> dict[str, str]:
    """The row of one format."""
    picture = pictures.picture(np.random.default_rng(0))
    small, large = (FORMATS[name](np.tile(picture, (n, n, 1))) for n in (1, repeats))
    # A new process, since memory freed by another format would be reused. It returns freed memory
    # to the system at once, so that its size is the memory in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        grown, seconds = pool.apply(_decode, (small, large))
    claim = decode.examine(large)
    counted = claim.memory / claim.pixels
    most = LIMIT * min(1, PLAIN / counted)
    return {
        "format": name,
        "bytes_a_pixel": f"{grown / claim.pixels:.1f}",
        "counted": f"{counted:.1f}",
        "most_megapixels": f"{most / 1e6:.0f}",
        "cpu_ns_a_pixel": digits(seconds / claim.pixels * 1e9),
    }


def _decode(small: bytes, large: bytes) -> tuple[int, float]:
    """The growth of this process at its peak, bytes, and its CPU seconds."""
    decode.decode(small)  # initializes the decoder
    status = Path("/proc/self/status")

    def peak() -> int:
        return 1024 * int(status.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0])

    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    before, began = peak(), time.process_time()
    decode.decode(large, white=4095)  # with 16 bits a sample this takes more memory than without
    return peak() - before, time.process_time() - began


def checked(rounds: int) -> dict[str, str]:
    """The row of the checks of JPEGs, as a share of OpenCV's time to decode them."""
    rng = np.random.default_rng(0)
    files = [pictures.jpeg(pictures.picture(rng)) for _ in range(FILES)]
    shares, checks, decodes = [], [], []
    for _ in range(rounds):
        took = [0, 0]
        for encoded in files:
            began = time.process_time_ns()
            decode.examine(encoded)
            between = time.process_time_ns()
            cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
            took[0] += between - began
            took[1] += time.process_time_ns() - between
        shares.append(took[0] / took[1])
        checks.append(took[0] / FILES / 1e3)
        decodes.append(took[1] / FILES / 1e3)
    return {
        "what": "JPEG of 500x375, 110 KB",
        "checks_cpu_us": digits(median(checks)),
        "decode_cpu_us": digits(median(decodes)),
        "share": f"{median(shares):.4f}",
        "share_min": f"{min(shares):.4f}",
        "share_max": f"{max(shares):.4f}",
        "rounds": str(rounds),
    }


if __name__ == "__main__":
    arguments.run(main)
