"""Images of more than 8 bits: which level is white, and what is told of dark ones."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.pictures import encode
from xception_jax.data.render import decode
from xception_jax.errors import ExampleError

# Twelve bits, all 4,096 levels, in grey.
LEVELS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
EXPECTED = LEVELS / 4095 * 255


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*, colour: int = 0, significant: bytes = b"", levels: np.ndarray = LEVELS) -> bytes:
    """A PNG of 16 bits, grey or RGB, with its own statement of significant bits."""
    samples = 3 if colour == 2 else 1
    rows = np.repeat(levels[..., None], samples, 2).astype(">u2").reshape(64, -1).view(np.uint8)
    data = zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, colour, 0, 0, 0))
    if significant:
        chunks += chunk(b"sBIT", significant)
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(bits: int, samples: int, data: bytes, most: int = 0, colours: int = 1) -> bytes:
    """An uncompressed TIFF of one strip, 64 x 64."""
    many = samples > 1
    entries = [
        (256, 3, 1, 64), (257, 3, 1, 64), (258, 3, samples, 8 if many else bits), (259, 3, 1, 1),
        (262, 3, 1, colours), (273, 4, 1, 200 + 8), (277, 3, 1, samples), (278, 3, 1, 64),
        (279, 4, 1, len(data)), *([(281, 3, 1, most)] if most else []),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    beginning = b"II*\0" + struct.pack("<I", 16) + struct.pack("<4H", *(bits,) * 4)
    return (beginning + directory).ljust(208, b"\0") + data


def packed() -> bytes:
    """Twelve bits each, two in three bytes."""
    bits = (LEVELS.reshape(-1, 1) >> np.arange(11, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


@pytest.mark.parametrize(
    "encoded",
    [
        png(significant=b"\x0c"),
        png(colour=2, significant=b"\x0c\x0c\x0c"),
        tiff(16, 1, LEVELS.tobytes(), most=4095),
        tiff(12, 1, packed()),
        b"P5\n64 64\n4095\n" + LEVELS.astype(">u2").tobytes(),
    ],
    ids=["sBIT grey", "sBIT RGB", "MaxSampleValue", "BitsPerSample", "maxval"],
)
def test_declared_bits_keep_all_levels(encoded):
    found = decode.decode(encoded)
    assert found.shape == (64, 64, 3)
    np.testing.assert_allclose(found.astype(float), EXPECTED[..., None].repeat(3, 2), atol=0.5)
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize(
    "encoded", [png(), cv2.imencode(".tiff", LEVELS)[1].tobytes()], ids=["png", "tiff"]
)
def test_what_declares_nothing_takes_the_configs_level_and_is_told_of_once(
    encoded, monkeypatch, capsys
):
    monkeypatch.setattr(decode, "_reported_dark", set())
    found = decode.decode(encoded, "photo.png", white=4095)
    np.testing.assert_allclose(found.astype(float), EXPECTED[..., None].repeat(3, 2), atol=0.5)
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert decode.decode(encoded, "photo.png").max() == 15
    assert capsys.readouterr().err == (
        "photo.png stores 16 bits a sample, and its values end at 4,095 of 65,535: it is nearly "
        "black. If white is lower, set config.data.white_level, as 4095 for 12 bits. (Said once.)\n"
    )


REAL = LEVELS.astype(np.uint32)
SCALED = {
    "division": ((REAL * 65_535 + 2047) // 4095).astype(np.uint16),
    "shift": LEVELS << 4,
    "repeated bits": LEVELS << 4 | LEVELS >> 8,
}


def in_8_bits(encoded: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("part", [4096, 256, 100], ids=["bright", "dark", "darker"])
@pytest.mark.parametrize("way", SCALED)
def test_the_white_of_samples_that_the_encoder_scaled_is_all_ones(way, part):
    """As the PNG specification has `sBIT`. The dark ones have no sample above 4095."""
    levels = SCALED[way].ravel()[np.arange(4096) % part].reshape(64, 64)
    assert (levels.max() > 4095) == (part == 4096)
    for colour in (0, 2):
        encoded = png(colour=colour, significant=b"\x0c" * (colour + 1), levels=levels)
        np.testing.assert_array_equal(decode.decode(encoded), in_8_bits(encoded))


def test_one_sample_that_no_scaling_gives_makes_the_declared_bits_the_level():
    levels = SCALED["shift"].ravel()[np.arange(4096) % 256].reshape(64, 64)
    levels[40, 3] += 1
    found = decode.decode(png(significant=b"\x0c", levels=levels))
    np.testing.assert_allclose(found[..., 0], levels / 4095 * 255, atol=0.5)


@pytest.mark.parametrize(
    "bits", [b"\x0b\x0c\x0d", b"\x10\x10\x10", b"\0\0\0", b"\xff\xff\xff", b""]
)
def test_bits_that_differ_by_channel_or_are_all_or_none_give_no_level(bits):
    encoded = png(colour=2, significant=bits)
    np.testing.assert_array_equal(decode.decode(encoded), in_8_bits(encoded))


@pytest.mark.parametrize("most", [1000, 4000, 255, 65_535, 2047])
def test_a_statistic_of_a_tiff_is_no_level_of_white(most):
    """4095, the highest level of 12 bits, would be; but not where samples exceed it."""
    encoded = tiff(16, 1, LEVELS.tobytes(), most=most)
    np.testing.assert_array_equal(decode.decode(encoded), in_8_bits(encoded))
    bright = tiff(16, 1, (LEVELS * 16).tobytes(), most=4095)
    np.testing.assert_array_equal(decode.decode(bright), in_8_bits(bright))


def test_the_configs_level_goes_before_a_declared_one_and_leaves_8_bits_alone():
    declared = png(significant=b"\x0c")
    assert decode.decode(declared, white=65_535).max() == 15, "as before there was a field"
    np.testing.assert_array_equal(
        decode.decode(declared, white=2047), np.minimum(decode.decode(png(), white=2047), 255)
    )
    plain = encode(Image.fromarray((LEVELS >> 4).astype(np.uint8)), "PNG")
    np.testing.assert_array_equal(decode.decode(plain, white=255), decode.decode(plain))


def test_full_range_is_as_before_to_the_bit():
    full = png(levels=LEVELS << 4)
    buffer = np.frombuffer(full, np.uint8)
    np.testing.assert_array_equal(decode.decode(full), cv2.imdecode(buffer, cv2.IMREAD_COLOR_RGB))


def test_colour_of_16_bits_keeps_its_channels():
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
    for suffix in (".png", ".tiff", ".ppm"):
        encoded = cv2.imencode(suffix, pixels)[1].tobytes()
        found = decode.decode(encoded, white=4095)
        np.testing.assert_allclose(found, pixels[..., ::-1] / 4095 * 255, atol=0.51)


@pytest.mark.parametrize(("colours", "name"), [(8, "CIELAB"), (9, "ICC LAB"), (10, "ITU LAB")])
def test_a_tiff_in_lab_is_refused(colours, name):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(ExampleError, match=f"its colours are {name}; convert it to RGB"):
        decode.decode(tiff(8, 3, pixels.tobytes(), colours=colours))
    lab = Image.fromarray(pixels, "RGB").convert("RGB")
    np.testing.assert_array_equal(decode.decode(encode(lab, "TIFF")), pixels)
    with pytest.raises(ExampleError, match="CIELAB"):
        decode.decode(encode(Image.merge("LAB", lab.split()), "TIFF"))
