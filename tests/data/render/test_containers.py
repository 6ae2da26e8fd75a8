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
from xception_jax.data.render import containers, decode
from xception_jax.errors import ExampleError

# All 20,000 by: MUTANTS=20000 python -m pytest -m slow tests/data/render/test_containers.py
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


def data_within_meta(avif: bytes) -> bytes:
    """An AVIF of one item, whose data is moved from `mdat` to a box `idat` (method 1 of `iloc`)."""
    head, stream = avif[: avif.index(b"mdat") - 4], avif[avif.index(b"mdat") + 4 :]
    meta, places = head.index(b"meta") - 4, head.index(b"iloc") - 4
    after = places + int.from_bytes(head[places : places + 4])
    fields = struct.pack(">5H2I", 1, 1, 1, 0, 1, 0, len(stream))  # one item, number 1, one part
    iloc = struct.pack(">I4s4B2B", 14 + len(fields), b"iloc", 1, 0, 0, 0, 0x44, 0) + fields
    idat = struct.pack(">I4s", 8 + len(stream), b"idat") + stream
    body = head[meta + 4 : places] + iloc + head[after:] + idat
    return head[:meta] + struct.pack(">I", 4 + len(body)) + body


def whole_png(image: Image.Image = pictures.PICTURE, **options: object) -> bytes:
    return pictures.encode(image, "PNG", **options)


def run_length_bmp(width: int, height: int, codes: bytes) -> bytes:
    """A BMP of 256 greys, coded by runs."""
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 4, 1).tobytes()
    start = 54 + len(colours)
    sizes = struct.pack("<IHHI", start + len(codes), 0, 0, start)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 256, 0)
    return b"BM" + sizes + header + colours + codes


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
        "a BMP of 12,000 x 11,000 in a kilobyte": (
            run_length_bmp(12_000, 11_000, b"\2\1\0\1"), "cannot hold 12,000 x 11,000 pixels"),
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
            "takes 3,146 MB, more than 846 MB; OPENCV_IO_MAX_IMAGE_PIXELS=[0-9]+ allows it",
        ),
        "an AVIF whose stream claims more than its boxes": (
            larger_stream(mutations.seeds()["plain.avif"], 16_384, 16_384),
            "takes 6,442 MB, more than 846 MB",
        ),
        "the same, with its data within meta": (
            data_within_meta(larger_stream(mutations.seeds()["plain.avif"], 16_384, 16_384)),
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


def same_names(jpeg: bytes, names: bytes) -> bytes:
    """A JPEG of one scan whose components have other names."""
    made, frame, scan = bytearray(jpeg), jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    for number, name in enumerate(names):
        made[frame + 10 + 3 * number] = made[scan + 5 + 2 * number] = name
    return bytes(made)


def pixels_of(encoded: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("names", [b"\1\1\1", b"\0\0\0", b"\1\2\2"])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_components_of_a_jpeg_may_have_one_name(names, subsampling):
    plain = pictures.encode(pictures.PICTURE, "JPEG", subsampling=subsampling)
    made = same_names(plain, names)
    assert made != plain
    np.testing.assert_array_equal(decode.decode(made), pixels_of(plain))
    part = decode.decode_part(made, lambda *_: (8, 8, 16, 24))
    np.testing.assert_array_equal(part, pixels_of(plain)[8:24, 8:32])


def test_equal_names_do_not_hide_the_work_of_scans():
    """A scan may visit the largest component of its name, which may be visited 60 times here."""
    image = Image.new("RGB", (3000, 3000))
    plain = pictures.encode(image, "JPEG", progressive=True, subsampling=2)
    encoded = bytearray(many_scans(plain, 100))
    frame, scan = encoded.index(b"\xff\xc2"), -1
    encoded[frame + 10 : frame + 17 : 3] = b"\1\1\1"
    while (scan := encoded.find(b"\xff\xda", scan + 1)) >= 0:
        encoded[scan + 5 : scan + 5 + 2 * encoded[scan + 4] : 2] = b"\1" * encoded[scan + 4]
    with pytest.raises(ExampleError, match="scans or more of"):
        decode.decode(bytes(encoded))


def test_what_follows_an_image_is_no_part_of_it():
    """A film behind a photo, which a phone appends, or what a transfer leaves."""
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, 3_000_000, np.uint8).tobytes() + b"\xff\xda" * 600
    files = {
        "progressive.jpg": mutations.seeds()["progressive.jpg"],
        "cmyk.jpg": mutations.seeds()["cmyk.jpg"],
        "baseline.jpg": mutations.seeds()["baseline.jpg"],
        "plain.avif": mutations.seeds()["plain.avif"],
        "plain.png": whole_png(),
        "plain.gif": pictures.encode(pictures.PICTURE, "GIF"),
        "plain.webp": pictures.encode(pictures.PICTURE, "WEBP"),
        "plain.bmp": pictures.encode(pictures.PICTURE, "BMP"),
    }
    for name, encoded in files.items():
        for behind in (b"\0" * 5, b"text, and more of it", film):
            np.testing.assert_array_equal(
                decode.decode(encoded + behind), decode.decode(encoded), name
            )


def test_markers_within_the_segments_between_scans_are_no_scans_and_no_end():
    encoded = mutations.seeds()["progressive.jpg"]
    at = encoded.rfind(b"\xff\xda")
    note = b"\xff\xfe\x10\x02" + (b"\xff\xd9" + b"\xff\xda" * 7) * 256
    made = encoded[:at] + note + encoded[at:]
    np.testing.assert_array_equal(decode.decode(made), decode.decode(encoded))
    hidden = many_scans(encoded, 600)
    with pytest.raises(ExampleError, match="501 scans or more"):
        decode.decode(hidden[: (at := hidden.rfind(b"\xff\xda", 0, -9000))] + note + hidden[at:])


def test_the_data_of_an_avif_may_lie_within_its_meta_box():
    plain = mutations.seeds()["plain.avif"]
    made = data_within_meta(plain)
    assert b"mdat" not in made
    np.testing.assert_array_equal(decode.decode(made), pixels_of(plain))


@pytest.mark.parametrize("codes", [b"\0\1", b"\5\7\0\1", b"\0\2\5\5\3\x09\0\1"])
def test_runs_of_a_bmp_may_end_early_and_skip(codes):
    encoded = run_length_bmp(300, 200, codes)
    np.testing.assert_array_equal(decode.decode(encoded), pixels_of(encoded))


def whole() -> dict[str, bytes]:
    """Whole files as many encoders write them."""
    y, x = np.mgrid[:67, :101]
    picture = Image.fromarray(np.stack([y * 3, x * 2, y + x], -1).astype(np.uint8))
    flat = Image.new("RGB", (160, 120), (9, 99, 199))
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
        "deep.tif": cv2.imencode(".tiff", np.asarray(picture).astype(np.uint16) * 16)[1].tobytes(),
    }
    code = (
        "import sys, json\n"
        "from tests.data import mutations\n"
        "from xception_jax.data.render import decode\n"
        "from pathlib import Path\n"
        "found = {}\n"
        "for name in sys.argv[1:]:\n"
        "    data = Path(name).read_bytes()\n"
        "    decode.decode(data)\n"
        "    Path('/proc/self/clear_refs').write_text('5')\n"
        "    before = mutations.peak_bytes()\n"
        "    decode.decode(data, white=4095)\n"
        "    found[name] = mutations.peak_bytes() - before\n"
        "print(json.dumps(found))\n"
    )
    folder = Path(os.environ["TFDS_DATA_DIR"])
    paths = {str(folder / name): data for name, data in files.items()}
    for path, data in paths.items():
        Path(path).write_bytes(data)
    process = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True, check=True,
        # What is freed goes back at once, and hides nothing.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
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
