"""AVIF: boxes that claim a size, and AV1 streams that also claim one (ISO 23008-12, AV1 5.5)."""

import struct
from collections.abc import Callable, Iterator

from xception_jax.data.render.containers.common import Claim, DamagedError, need

# Bytes a pixel of OpenCV's decoder, measured and rounded up: for 8 bits, for more bits, for alpha.
_PLAIN, _DEEP, _ALPHA = 24, 40, 12

_SEQUENCE_HEADER, _DELIMITER = 1, 2  # types of an AV1 stream's units
_MOST = 2**12  # boxes, items or units

Box = tuple[bytes, int, int]  # its type, start and end of its content


def inspect(encoded: bytes) -> Claim:
    """The claim of an AVIF: the largest size of its boxes (`ispe`) and of its AV1 streams.

    The decoder allocates memory for the size that a stream claims and ignores the boxes' sizes. So
    each stream must begin with its sequence header.
    """
    boxes = _outer_boxes(encoded)
    need(b"meta" in boxes, "it has no meta box")
    start, end = boxes[b"meta"]
    sizes = list(_claimed(encoded, start, end))
    need(bool(sizes), "no size is given")
    streams = list(_items(encoded, start + 4, end))
    if b"moov" in boxes:
        sizes += _claimed(encoded, *boxes[b"moov"])
        streams += _tracks(encoded, *boxes[b"moov"])
    need(bool(streams), "it has no AV1 stream")
    largest = max(sizes + [size for data in streams for size in _sequence_sizes(data)], key=_area)
    at = encoded.find(b"av1C")
    deep = at >= 0 and at + 7 <= len(encoded) and bool(encoded[at + 6] & 0x40)
    cost = (_DEEP if deep else _PLAIN) + (_ALPHA if b"auxC" in encoded[start:end] else 0)
    width, height = max(sizes, key=_area)
    return Claim("AVIF", height, width, _area(largest) * cost, encoded)


def _outer_boxes(encoded: bytes) -> dict[bytes, tuple[int, int]]:
    """Start and end of the first outer box of each type; ignores bytes after the image."""
    boxes: dict[bytes, tuple[int, int]] = {}
    try:
        for kind, start, end in _boxes(encoded, 0, len(encoded)):
            boxes.setdefault(kind, (start, end))
    except DamagedError:
        if not {b"meta", b"mdat"} <= boxes.keys():
            raise
    return boxes


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _boxes(encoded: bytes, at: int, end: int) -> Iterator[Box]:
    for _ in range(_MOST):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", encoded, at)
        start = at + 8
        if size == 1:
            need(at + 16 <= end, "a box is cut short")
            (size,) = struct.unpack_from(">Q", encoded, start)
            start += 8
        after = end if size == 0 else at + size
        if not start <= after <= end:
            raise DamagedError(f"box {kind!r} claims {size:,} bytes, and {end - at:,} are left")
        yield kind, start, after
        at = after


def _claimed(encoded: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sizes in the boxes `ispe`."""
    at = encoded.find(b"ispe", start, end)
    while at >= 0:
        if at + 16 <= end:
            yield struct.unpack_from(">II", encoded, at + 8)
        at = encoded.find(b"ispe", at + 4, end)


def _items(encoded: bytes, start: int, end: int) -> Iterator[bytes]:
    """The AV1 streams of the items of a meta box."""
    boxes = {kind: (first, last) for kind, first, last in _boxes(encoded, start, end)}
    need(b"iloc" in boxes and b"iinf" in boxes, "its items are not listed")
    first, last = boxes[b"iinf"]
    coded = set()
    for kind, at, _ in _boxes(encoded, first + (6 if encoded[first] == 0 else 8), last):
        if kind != b"infe":
            continue
        wide = encoded[at] >= 3
        name = at + (10 if wide else 8)
        if encoded[name : name + 4] == b"av01":
            coded.add(int.from_bytes(encoded[at + 4 : at + (8 if wide else 6)]))
    for item, method, extents in _locations(encoded, *boxes[b"iloc"]):
        if item in coded:
            need(method in (0, 1), "its data is made of other items")
            need(method == 0 or b"idat" in boxes, "its data is not there")
            # Offsets start at the beginning of the file, or of the box `idat`.
            first, last = (0, len(encoded)) if method == 0 else boxes[b"idat"]
            yield b"".join(
                encoded[first + at : min(first + at + size, last)] for at, size in extents
            )


def _locations(
    encoded: bytes, at: int, end: int
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Number, method and extents (offset, bytes) of each item of a box `iloc`."""
    version = encoded[at]
    sizes = [half for byte in encoded[at + 4 : at + 6] for half in (byte >> 4, byte & 15)]
    offset_size, length_size, base_size, index_size = sizes
    wide = 4 if version == 2 else 2
    at += 6

    def number(size: int) -> int:
        nonlocal at
        need(at + size <= end, "the places of its items are cut short")
        at += size
        return int.from_bytes(encoded[at - size : at])

    count = number(wide)
    need(count <= _MOST, f"it has {count:,} items")
    for _ in range(count):
        item = number(wide)
        method = number(2) & 15 if version else 0
        number(2)
        base = number(base_size)
        extents = []
        for _ in range(min(number(2), _MOST)):
            number(index_size if version else 0)
            place = base + number(offset_size)
            size = number(length_size) if length_size else 0
            extents.append((place, size or len(encoded)))
        yield item, method, extents


def _tracks(encoded: bytes, start: int, end: int) -> Iterator[bytes]:
    """The streams of an animation's tracks, from their first sample on."""
    for kind, size in ((b"stco", 4), (b"co64", 8)):
        at = encoded.find(kind, start, end)
        while at >= 0:
            place = int.from_bytes(encoded[at + 12 : at + 12 + size])
            yield encoded[place:]
            at = encoded.find(kind, at + 4, end)


def _sequence_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The sizes in the sequence headers of a stream; the first unit must be such a header."""
    at, first = 0, True
    for _ in range(_MOST):
        if at >= len(data):
            break
        header = data[at]
        kind = header >> 3 & 15
        at += 2 if header & 4 else 1
        size, at = _leb128(data, at) if header & 2 else (len(data) - at, at)
        if kind == _SEQUENCE_HEADER:
            yield _frame_size(data[at : at + size])
            first = False
        elif first and kind != _DELIMITER:
            break
        at += size
    need(not first, "an AV1 stream does not begin with its sequence header")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if not byte & 0x80:
            return value, at + i + 1
    raise DamagedError("a length of its AV1 stream is too long")


def _frame_size(unit: bytes) -> tuple[int, int]:
    """The largest frame, width and height, of a sequence header."""
    bits, at, length = int.from_bytes(unit), 0, 8 * len(unit)

    def take(count: int) -> int:
        nonlocal at
        at += count
        need(at <= length, "a sequence header is cut short")
        return bits >> (length - at) & ((1 << count) - 1)

    take(4)
    if take(1):  # a still picture's short header
        take(5)
    else:
        _skip_timing(take)
    wide, high = take(4) + 1, take(4) + 1
    return take(wide) + 1, take(high) + 1


def _skip_timing(take: Callable[[int], int]) -> None:
    """Skips timing, the decoder's model and operating points, in the order of AV1 5.5.1."""
    delay, model = 0, 0
    if take(1):
        take(64)
        if take(1):
            zeros = 0
            while not take(1):
                zeros += 1
            take(zeros)
        model = take(1)
        if model:
            delay = take(5) + 1
            take(42)
    initial = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if model and take(1):
            take(2 * delay + 1)
        if initial and take(1):
            take(4)
