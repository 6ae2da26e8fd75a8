"""Parts of JPEGs against the whole images that OpenCV decodes."""

import itertools
import os
import struct
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests import pictures
from xception_jax.data.batches import Host, Reader
from xception_jax.data.render import decode, turbojpeg
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError

pytestmark = pytest.mark.skipif(turbojpeg.library() is None, reason="needs libturbojpeg 3")

CV2 = {name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in
       ("444", "422", "420", "440", "411")}  # fmt: skip
PLAIN = ("444", "422", "420", "440", "grey")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, with edges and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(0, 60, (height, width, 3), np.uint8)
    smooth[height // 3 :, width // 2 :] ^= 128
    return cv2.add(smooth, noise)


def jpeg(
    height: int, width: int, kind: str, *, quality: int = 90, restarts: int = 0, **more
) -> bytes:
    pixels = picture(height, width)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restarts]
    if kind == "grey":
        pixels = pixels[..., :1]
    else:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, CV2[kind]]
    for name, value in more.items():
        options += [getattr(cv2, f"IMWRITE_JPEG_{name.upper()}"), value]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def drawn_box(data: st.DataObject, height: int, width: int) -> decode.Box:
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top = data.draw(st.integers(0, height - rows))
    return top, data.draw(st.integers(0, width - columns)), rows, columns


def of(image: np.ndarray, box: decode.Box) -> np.ndarray:
    top, left, rows, columns = box
    return image[top : top + rows, left : left + columns]


def middle(height: int, width: int) -> decode.Box:
    return height // 4, width // 5, max(height // 3, 1), max(width // 2, 1)


@hypothesis.given(
    kind=st.sampled_from(PLAIN), height=st.integers(1, 90), width=st.integers(1, 90),
    quality=st.integers(20, 100), restarts=st.sampled_from((0, 0, 1, 3)), data=st.data(),
)  # fmt: skip
@hypothesis.settings(max_examples=200, deadline=None)
def test_a_part_is_the_same_part_of_the_whole(kind, height, width, quality, restarts, data):
    encoded = jpeg(height, width, kind, quality=quality, restarts=restarts)
    box = drawn_box(data, height, width)
    part = turbojpeg.part(encoded, lambda *size: box if size == (height, width) else None)
    np.testing.assert_array_equal(part, of(decode.decode(encoded), box))


@pytest.mark.parametrize("kind", PLAIN)
def test_every_column_and_row_may_be_an_edge(kind):
    encoded = jpeg(53, 70, kind)
    whole = decode.decode(encoded)
    boxes = [(20, left, 9, width) for left in range(70) for width in (1, 17, 70 - left)]
    boxes += [(top, 20, height, 9) for top in range(53) for height in (1, 17, 53 - top)]
    for box in boxes:
        if box[0] + box[2] <= 53 and box[1] + box[3] <= 70:
            part = turbojpeg.part(encoded, lambda *_, box=box: box)
            np.testing.assert_array_equal(part, of(whole, box), err_msg=str(box))


UNUSUAL = {
    **pictures.odd(),
    **{f"turned {n}": pictures.rotated(n) for n in range(2, 9)},
    "411": jpeg(40, 56, "411"),
    "progressive": jpeg(40, 56, "420", progressive=1),
    "rgb": pictures.encode(pictures.PICTURE, "JPEG", keep_rgb=True),
    "padded": b"\xff\xd8\xff" + jpeg(40, 56, "420")[2:],
}


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_decoded_whole(name):
    encoded = UNUSUAL[name]
    assert (turbojpeg.part(encoded, middle) is None) == (name != "grey.jpg")
    whole = decode.decode(encoded)
    np.testing.assert_array_equal(
        decode.decode_part(encoded, middle), of(whole, middle(*whole.shape[:2]))
    )


def test_what_is_not_unusual_is_decoded_in_part():
    """EXIF that says "upright", comments, and bytes behind the image."""
    for encoded in (
        pictures.rotated(1),
        pictures.encode(pictures.PICTURE, "JPEG", comment=b"\x12\x01", dpi=(72, 72)),
        jpeg(40, 56, "420") + bytes(100),
    ):
        part = turbojpeg.part(encoded, middle)
        np.testing.assert_array_equal(part, of(decode.decode(encoded), middle(40, 56)))


def exif(order: str, value: int) -> bytes:
    """A segment whose only entry is the orientation."""
    entries = struct.pack(f"{order}HHHIHHI", 1, 0x112, 3, 1, value, 0, 0)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    data = b"Exif\0\0" + head + entries
    return b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_an_orientation_is_seen_in_either_order_of_bytes(order, value):
    plain = jpeg(40, 56, "420")
    encoded = plain[:2] + exif(order, value) + plain[2:]
    whole = decode.decode(encoded)
    assert (whole.shape == (40, 56, 3)) == (value <= 4)
    assert (turbojpeg.part(encoded, middle) is None) == (value > 1)
    np.testing.assert_array_equal(
        decode.decode_part(encoded, middle), of(whole, middle(*whole.shape[:2]))
    )


def test_the_end_of_a_thumbnail_is_not_that_of_the_image():
    thumbnail, plain = jpeg(8, 8, "420"), jpeg(60, 80, "420")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    encoded = plain[:2] + segment + plain[2:]
    assert turbojpeg.part(encoded, middle) is not None
    with pytest.raises(ExampleError, match="truncated, damaged or unsupported JPEG"):
        decode.decode_part(encoded[:-9], lambda *_: (0, 0, 4, 4))


def test_nothing_is_kept_of_a_file():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    encoded = jpeg(40, 56, "420")
    for _ in range(20):
        turbojpeg.part(encoded, middle)
    before = resident()
    for _ in range(3000):
        turbojpeg.part(encoded, middle)
    assert resident() - before < 5e6


def outcome(encoded: bytes, box: decode.Box, *, whole: bool) -> np.ndarray | str:
    def choose(height: int, width: int) -> decode.Box:
        top, left, rows, columns = box
        top, left = min(top, height - 1), min(left, width - 1)
        return top, left, min(rows, height - top), min(columns, width - left)

    try:
        return decode.decode_part(encoded, choose, complete=whole)
    except ExampleError as error:
        return str(error)


@hypothesis.given(kind=st.sampled_from(PLAIN), data=st.data())
@hypothesis.settings(max_examples=200, deadline=None)
def test_damage_ends_alike_in_part_and_whole(kind, data):
    """What is refused is the same: a stream is the same on a machine without the library."""
    damaged = bytearray(jpeg(53, 70, kind))
    match data.draw(st.sampled_from(("cut", "flip", "noise"))):
        case "cut":
            del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
        case "flip":
            for _ in range(data.draw(st.integers(1, 3))):
                place = data.draw(st.integers(0, len(damaged) - 1))
                damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        case "noise":
            noise = data.draw(st.binary(min_size=1, max_size=40))
            place = data.draw(st.integers(0, len(damaged) - len(noise)))
            damaged[place : place + len(noise)] = noise
    box = drawn_box(data, 53, 70)
    found, expected = (outcome(bytes(damaged), box, whole=whole) for whole in (False, True))
    if isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_stream_is_the_same_in_part_and_whole(monkeypatch):
    """Also with a file that is cut below the crop."""
    asked = []
    part = turbojpeg.part
    monkeypatch.setattr(turbojpeg, "part", lambda *args: asked.append(1) or part(*args))
    records = []
    for i in range(24):
        encoded = jpeg(60, 80, PLAIN[i % 5], quality=70 + i)
        records.append({"image": encoded[:-99] if i % 7 == 3 else encoded, "label": i})
    source = Source("jpegs", tuple(map(str, range(24))), records, "image", "label")
    images = Images(32, (0.08, 1.0), (3 / 4, 4 / 3))
    made = []
    for parts in (False, True):
        assert not asked
        reader = Reader(source, images, Host(threads=2, decode_parts=parts))
        found = reader.training_batches(batch_size=24, seed=0, skips=Named())
        made.append(list(itertools.islice(found, 3)))
    assert len(asked) >= 3 * 24
    for one, other in zip(*made, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert 3 not in made[0][0]["label"]


class Named:
    """Takes what is skipped."""

    def add(self, source: Source, skipped: list) -> None:
        for record, _, reason in skipped:
            assert record % 7 == 3
            assert "truncated, damaged or unsupported JPEG" in reason


def test_a_run_says_how_it_decodes(monkeypatch):
    records = [{"image": jpeg(9, 9, "420"), "label": 0}, {"image": b"", "label": 0}]
    source = Source("jpegs", ("a", "b"), records, "image", "label")
    images = Images(8, (0.5, 1.0), (1.0, 1.0))
    note = Reader(source, images).note
    assert note == "only the random crop of a JPEG is decoded, by libturbojpeg"
    assert not Reader(source, Images(8)).note
    assert not Reader(source, images, Host(decode_parts=False)).note
    for other in (b"", pictures.encode(pictures.PICTURE, "PNG")):
        records[0]["image"] = other
        assert not Reader(source, images).note
    records[0]["image"] = jpeg(9, 9, "420")
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert "the extra [turbojpeg]" in Reader(source, images).note


def test_a_library_of_another_version_is_passed_over(monkeypatch):
    cv2_file = str(next(Path(cv2.__file__).parent.glob("cv2*.so")))  # a library, but not this one
    monkeypatch.setattr(turbojpeg, "_NAMES", ("libthere_is_none.so.0", cv2_file))
    assert turbojpeg.library.__wrapped__().tj3SetCroppingRegion


def test_without_a_library_all_is_decoded_whole(monkeypatch):
    encoded = jpeg(53, 70, "420")
    part = decode.decode_part(encoded, middle)
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert turbojpeg.part(encoded, middle) is None
    np.testing.assert_array_equal(decode.decode_part(encoded, middle), part)
