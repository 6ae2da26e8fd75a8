"""What image files claim: hostile ones are refused in one line, whole ones are not."""

import json
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests import pictures
from tests.data import mutations
from tests.data.mutations import chunk
from tests.processes import ROOT
from xception_jax.data import containers, decode
from xception_jax.errors import ExampleError

# All 20,000 by: MUTANTS=20000 python -m pytest -m slow tests/data/test_containers.py
MUTANTS = int(os.environ.get("MUTANTS", "8000"))


def resized_jpeg(encoded: bytes, width: int, height: int) -> bytes:
    """With another size in its frame header."""
    at = next(encoded.find(b"\xff" + bytes([kind])) for kind in (0xC0, 0xC2)
              if b"\xff" + bytes([kind]) in encoded)  # fmt: skip
    return encoded[: at + 5] + struct.pack(">HH", height, width) + encoded[at + 9 :]


def many_scans(encoded: bytes, count: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    at = encoded.rfind(b"\xff\xda")
    return encoded[:at] + encoded[at:-2] * count + encoded[-2:]


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", header), *chunks, chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def larger_stream(avif: bytes, width: int, height: int) -> bytes:
    """An AVIF of 120 x 90 whose sequence header alone says another size."""
    at = avif.index(b"mdat") + 4
    head, stream = avif[: at - 8], avif[at:]
    assert stream[:3] == b"\x12\0\x0a"
    header, rest = stream[4 : 4 + stream[3]], stream[4 + stream[3] :]
    bits = "".join(f"{byte:08b}" for byte in header)
    wide, high = int(bits[10:14], 2) + 1, int(bits[14:18], 2) + 1
    size, after = bits[18 : 18 + wide + high], bits[18 + wide + high :].rstrip("0")
    assert (int(size[:wide], 2), int(size[wide:], 2)) == (119, 89)
    made = f"{bits[:10]}11111111{width - 1:016b}{height - 1:016b}{after}"
    made += "0" * (-len(made) % 8)
    header = bytes(int(made[i : i + 8], 2) for i in range(0, len(made), 8))
    data = b"\x12\0\x0a" + bytes([len(header)]) + header + rest
    head = head.replace(struct.pack(">I", len(stream)), struct.pack(">I", len(data)))
    return head + struct.pack(">I4s", len(data) + 8, b"mdat") + data


def whole_png(image: Image.Image = pictures.PICTURE, **options: object) -> bytes:
    return pictures.encode(image, "PNG", **options)


def hostile() -> dict[str, tuple[bytes, str]]:
    """Files, and a part of what is said of each."""
    plain, flipped = whole_png(), bytearray(whole_png())
    flipped[33 + 0] ^= 0x40  # the highest bits of the length of IDAT
    baseline = pictures.encode(pictures.PICTURE, "JPEG")
    progressive = pictures.encode(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)
    gif, bmp = pictures.encode(pictures.PICTURE, "GIF"), pictures.encode(pictures.PICTURE, "BMP")
    tif = pictures.encode(pictures.PICTURE, "TIFF")
    long, short = "<HHII", "<HHIHH"
    return {
        "a flipped bit of a PNG's length": (bytes(flipped), "and [0-9,]+ are left"),
        "a PNG of 11,000 x 11,000 in 100 bytes": (
            png(11_000, 11_000, chunk(b"IDAT", zlib.compress(b"x" * 99))),
            "compressed bytes cannot hold 11,000 x 11,000 pixels",
        ),
        "a PNG of very many chunks": (
            png(8, 8, chunk(b"IDAT", b"") * 300_000), "it has more than 262,144 chunks",
        ),
        "a JPEG of 631 bytes with 132 megapixels": (
            resized_jpeg(baseline, 12_000, 11_000), "bytes cannot hold 12,000 x 11,000 pixels",
        ),
        "a progressive JPEG of 1,000 scans": (many_scans(progressive, 1000), "scans or more of"),
        "a GIF that claims a frame it cannot hold": (
            gif.replace(struct.pack("<HHB", 56, 40, 0x87), struct.pack("<HHB", 9999, 9999, 0x87))
            .replace(b",\0\0\0\0" + struct.pack("<HH", 56, 40),
                     b",\0\0\0\0" + struct.pack("<HH", 9999, 9999)),
            "data cannot hold 9,999 x 9,999 pixels",
        ),
        "a BMP without its rows": (
            bmp[:18] + struct.pack("<ii", 9999, -9999) + bmp[26:], "cannot hold 9,999 x 9,999",
        ),
        "a PPM without its rows": (b"P6 9999 9999 255 " + bytes(99), "it ends before its 9,999"),
        "a TIFF of few strips": (
            tif.replace(struct.pack(long, 257, 4, 1, 40), struct.pack(long, 257, 4, 1, 40_000))
            .replace(struct.pack(short, 257, 3, 1, 40, 0),
                     struct.pack(short, 257, 3, 1, 40_000, 0)),
            "it has 1 of [0-9,]+ strips|cannot hold 56 x 40,000",
        ),
        "an AVIF of 16,384 x 8,000": (
            pictures.encode(pictures.PICTURE, "AVIF").replace(
                struct.pack(">II", 56, 40), struct.pack(">II", 16_384, 8_000)
            ),
            "takes 3,146 MB, more than 846 MB; OPENCV_IO_MAX_IMAGE_PIXELS=[0-9]+ takes it",
        ),
        "an AVIF whose stream claims more than its boxes": (
            larger_stream(mutations.seeds()["plain.avif"], 16_384, 16_384),
            "takes 6,442 MB, more than 846 MB",
        ),
        "a JPEG 2000 of very many tiles": (
            b"\xff\x4f\xff\x51" + struct.pack(">HH8IH", 47, 0, 9999, 9999, 0, 0, 1, 1, 0, 0, 3)
            + bytes(99),
            "it has no room for 99,980,001 tiles",
        ),
        "a chunk beyond the end": (plain[:-20], "are left"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", hostile())
def test_a_hostile_file_is_refused_in_one_line_without_memory_or_time(kind):
    encoded, said = hostile()[kind]
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = mutations.peak_bytes(), time.process_time()
    with pytest.raises(ExampleError, match=f"it cannot be decoded: .*({said})") as caught:
        decode.decode(encoded)
    assert "\n" not in str(caught.value)
    assert mutations.peak_bytes() - before < 2**25
    assert time.process_time() - begun < 2


def test_text_profiles_and_animations_of_a_png_do_not_reach_the_decoder():
    """A thousand texts inflate to 8 MB each; the pixels are those of the plain file."""
    info = PngInfo()
    for number in range(1000):
        info.add_text(f"t{number}", "z" * 7_900_000 if number == 0 else "z", zip=True)
    bomb = whole_png(pnginfo=info, icc_profile=bytes(3 * 10**6))
    at = bomb.index(b"zTXt") - 4
    length = 12 + int.from_bytes(bomb[at : at + 4])
    bomb = bomb[:at] + bomb[at : at + length] * 1000 + bomb[at + length :]
    Path("/proc/self/clear_refs").write_text("5")
    before, begun = mutations.peak_bytes(), time.process_time()
    np.testing.assert_array_equal(decode.decode(bomb), pictures.PIXELS)
    assert mutations.peak_bytes() - before < 100 * 2**20
    assert time.process_time() - begun < 2
    turned = [pictures.PICTURE.rotate(180)] * 3
    animated = whole_png(save_all=True, append_images=turned)
    np.testing.assert_array_equal(decode.decode(animated), pictures.PIXELS)


def coded_gif(width: int, height: int, codes: list[int]) -> bytes:
    """A GIF of 256 colours with these codes of nine bits."""
    bits = "".join(f"{code:09b}"[::-1] for code in codes)
    data = bytes(int(bits[i : i + 8][::-1], 2) for i in range(0, len(bits), 8))
    blocks = b"".join(
        bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255)
    )
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0xF7, 0, 0) + bytes(768)
    image = struct.pack("<cHHHHBB", b",", 0, 0, width, height, 0, 8)
    return screen + image + blocks + b"\0;"


def test_a_gif_of_clear_codes_takes_no_time():
    """OpenCV takes 0.6 s for 90 KB of them."""
    begun = time.process_time()
    with pytest.raises(ExampleError, match="its codes are no image"):
        decode.decode(coded_gif(1000, 1000, [256] * 300_000))
    assert decode.decode(coded_gif(2, 1, [256, 7, 7, 257])).shape == (1, 2, 3)
    assert time.process_time() - begun < 2


def test_a_gif_is_as_opencv_has_it_over_tables_frames_and_transparency():
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 16, (40, 56), np.uint8)
    colours = rng.integers(0, 256, 48, np.uint8).tobytes()
    image = Image.fromarray(indices, "P")
    image.putpalette(colours)
    other = Image.fromarray(rng.integers(0, 16, (40, 56), np.uint8), "P")
    other.putpalette(colours)
    for options in (
        {}, {"transparency": 3}, {"interlace": 0}, {"transparency": 3, "background": 5},
        {"save_all": True, "append_images": [other], "disposal": 2},
        {"save_all": True, "append_images": [other], "transparency": 1, "disposal": 3},
    ):  # fmt: skip
        encoded = pictures.encode(image, "GIF", **options)
        expected = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode.decode(encoded), expected, str(options))
        # Its image becomes a part of a larger whole.
        wide = encoded[:6] + struct.pack("<HH", 90, 70) + encoded[10:]
        at = wide.index(b",\0\0\0\0")
        moved = wide[: at + 1] + struct.pack("<HH", 9, 7) + wide[at + 5 :]
        expected = cv2.imdecode(np.frombuffer(moved, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode.decode(moved), expected, str(options))


def whole() -> dict[str, bytes]:
    """Whole files as many encoders write them."""
    y, x = np.mgrid[:67, :101]
    picture = Image.fromarray(np.stack([y * 3, x * 2, y + x], -1).astype(np.uint8))
    flat = Image.new("RGB", (640, 480), (9, 99, 199))
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 3, "a camera"
    profile = bytes(700_000)
    found: dict[str, bytes] = {**pictures.odd(), **mutations.seeds()}
    for name, image in (("picture", picture), ("flat", flat), ("one", Image.new("RGB", (1, 1)))):
        for mode in ("RGB", "L", "CMYK"):
            for subsampling in (0, 1, 2):
                for options in (
                    {}, {"progressive": True}, {"optimize": True}, {"quality": 1},
                    {"quality": 100}, {"restart_marker_rows": 1},
                    {"exif": exif, "icc_profile": profile, "comment": b"c" * 60_000},
                ):  # fmt: skip
                    key = f"{name}-{mode}-{subsampling}-{'-'.join(options)}{options.get('quality')}"
                    found[f"{key}.jpg"] = pictures.encode(
                        image.convert(mode), "JPEG", subsampling=subsampling, **options
                    )
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            for options in ({}, {"optimize": True}, {"compress_level": 0}, {"exif": exif}):
                converted = image.convert(mode)
                found[f"{name}-{mode}-{options}.png"] = pictures.encode(converted, "PNG", **options)
        for bits in (1, 2, 4):
            found[f"{name}-{bits}.png"] = pictures.encode(image.quantize(4), "PNG", bits=bits)
        for mode in ("1", "L", "P", "RGB"):
            for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
                found[f"{name}-{mode}-{compression}.tif"] = pictures.encode(
                    image.convert(mode), "TIFF", compression=compression
                )
            found[f"{name}-{mode}.bmp"] = pictures.encode(image.convert(mode), "BMP")
            found[f"{name}-{mode}.gif"] = pictures.encode(image.convert(mode), "GIF")
        for quality in (1, 50, 100):
            for kind in ("WEBP", "AVIF"):
                options = {"speed": 10} if kind == "AVIF" else {}
                found[f"{name}-{quality}.{kind}"] = pictures.encode(
                    image, kind, quality=quality, **options
                )
        pixels = np.asarray(image)[..., ::-1]
        for suffix in (".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif", ".jp2", ".ppm"):
            written, data = cv2.imencode(suffix, pixels)
            if written:  # not a GIF of one pixel
                found[f"opencv-{name}{suffix}"] = data.tobytes()
        for suffix in (".png", ".tiff", ".pgm"):
            deep = pixels[..., 0].astype(np.uint16) * 257
            found[f"opencv-{name}-16{suffix}"] = cv2.imencode(suffix, deep)[1].tobytes()
    return found


def test_no_whole_file_is_refused_and_the_claim_is_its_size():
    """All that OpenCV and Pillow write, and OpenCV reads."""
    files = whole()
    assert len(files) > 300
    for name, encoded in files.items():
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is None:  # 1 bit in a TIFF's zstd, and the like
            continue
        claim = containers.inspect(encoded)
        assert claim is not None, name
        assert sorted((claim.height, claim.width)) == sorted(image.shape[:2]), name
        if "animated" not in name and "deep" not in name:
            np.testing.assert_array_equal(decode.decode(encoded, white=65_535), image, name)


def test_a_whole_image_takes_no_more_memory_than_its_claim():
    """Peaks of real decodes, of images that are large against what a process takes anyway."""
    y, x = np.mgrid[:1500, :2000]
    picture = Image.fromarray(np.stack([y % 256, x % 256, (y + x) % 256], -1).astype(np.uint8))
    files = {
        "baseline.jpg": pictures.encode(picture, "JPEG"),
        "progressive.jpg": pictures.encode(picture, "JPEG", progressive=True, subsampling=0),
        "rgb.png": pictures.encode(picture, "PNG", compress_level=1),
        "plain.tif": pictures.encode(picture, "TIFF"),
        "cmyk.tif": pictures.encode(picture.convert("CMYK"), "TIFF"),
        "lossless.webp": pictures.encode(picture, "WEBP", lossless=True, method=0, quality=0),
        "plain.gif": pictures.encode(picture, "GIF"),
        "plain.bmp": pictures.encode(picture, "BMP"),
        "plain.avif": pictures.encode(picture, "AVIF", speed=10),
    }
    code = (
        "import sys, json\n"
        "from tests.data import mutations\n"
        "from xception_jax.data import decode\n"
        "from pathlib import Path\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    data = Path(name).read_bytes()\n"
        "    decode.decode(data)\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    before = mutations.peak_bytes()\n"
        "    decode.decode(data)\n"
        "    found[name] = mutations.peak_bytes() - before\n"
        "print(json.dumps(found))\n"
    )
    folder = Path(os.environ["TFDS_DATA_DIR"])
    paths = {str(folder / name): data for name, data in files.items()}
    for path, data in paths.items():
        Path(path).write_bytes(data)
    process = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for path, taken in json.loads(process.stdout.splitlines()[-1]).items():
        assert taken <= containers.inspect(paths[path]).memory + 2**22, path


@pytest.mark.slow
def test_damaged_images_stay_within_time_and_memory_in_a_process_that_keeps_what_it_frees():
    process = subprocess.run(
        [sys.executable, "-m", "tests.data.mutations", "0", str(MUTANTS)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["decoded"] + found["refused"] == MUTANTS
    assert found["decoded"] > MUTANTS / 10
    assert found["lines"] == 1
    assert found["seconds"][0] < 2, found
    assert found["peak"] < 846e6, found
