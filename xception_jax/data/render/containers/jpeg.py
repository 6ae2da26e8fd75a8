"""JPEG: segments up to the first scan, then entropy-coded scans (ITU-T T.81)."""

import re
from typing import NamedTuple

from xception_jax.data.render.containers.common import PLAIN, Claim, DamagedError, need

BEGINNING = b"\xff\xd8"

_SCAN, _END = 0xDA, 0xD9
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}
# Frames by coding: sequential Huffman, progressive, lossless, arithmetic. No decoder here reads the
# others, which are hierarchical.
_SEQUENTIAL, _PROGRESSIVE, _LOSSLESS = {0xC0, 0xC1}, {0xC2, 0xCA}, {0xC3, 0xCB}
_ARITHMETIC = {0xC9, 0xCA, 0xCB}
_FRAMES = _SEQUENTIAL | _PROGRESSIVE | _LOSSLESS | _ARITHMETIC

# The end of a scan's codes: a marker that is neither a stuffed zero nor a restart.
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")

_MOST_SEGMENTS = 2**16
# Limits on scans of a file and on visits to its blocks. Encoders write about ten scans, most of one
# component. A visit takes 20 to 140 ns.
_MOST_SCANS, _MOST_VISITS, _VISITS_OF_A_BLOCK = 500, 2**23, 12
# An arithmetic code has no minimum length: this number of blocks may take no bits.
_FREE_BLOCKS = 2**18


class _Frame(NamedTuple):
    """The frame header: the coding, and blocks of components (samples, if it is lossless).

    Components may share a name, though they should not. Then `blocks` has the largest count.
    """

    coding: int
    height: int
    width: int
    components: int
    blocks: dict[int, int]
    total: int


def inspect(encoded: bytes) -> Claim:
    """The claim of a JPEG; raises `DamagedError`.

    The scans must be long enough for the claimed number of blocks. A block takes at least two bits
    of a sequential Huffman code (DC and end of block) and one of a progressive one (DC). If a
    decoder keeps coefficients between scans, all scans of the file count.
    """
    frame, at = _headers(encoded)
    first = encoded[at + 2] if at + 2 < len(encoded) else 0
    several = frame.coding in _PROGRESSIVE or first < frame.components
    data = 8 * (len(encoded) - at)
    if frame.coding in _ARITHMETIC:
        least = max(0, frame.total - _FREE_BLOCKS)
    else:
        least = frame.total * (2 if frame.coding in _SEQUENTIAL else 1)
    if least > data:
        claimed = f"{frame.width:,} x {frame.height:,} pixels"
        raise DamagedError(f"its {len(encoded):,} bytes cannot hold {claimed}")
    pixels = frame.height * frame.width
    memory = pixels * PLAIN
    if several:
        _check_scans(encoded, frame, at - 2)
        kept = frame.total * 128 if frame.coding not in _LOSSLESS else 2 * frame.total
        memory = max(memory, pixels * (frame.components // 4 + 3.3) + kept)
    return Claim("JPEG", frame.height, frame.width, int(memory), encoded)


def _headers(encoded: bytes) -> tuple[_Frame, int]:
    """The frame header, and the offset of the first scan's header, after its marker."""
    at, end, frame = len(BEGINNING), len(encoded), None
    for _ in range(_MOST_SEGMENTS):
        if at + 4 > end:
            break
        if encoded[at] != 0xFF:  # decoders skip bytes that are not a marker
            at = encoded.find(b"\xff", at)
            if at < 0 or at + 4 > end:
                break
        kind = encoded[at + 1]
        if kind == 0xFF:  # padding
            at += 1
            continue
        if kind == 0 or kind in _NO_LENGTH:
            at += 2
            continue
        if kind == _END:
            break
        length = encoded[at + 2] << 8 | encoded[at + 3]
        if not 2 <= length <= end - at - 2:
            raise DamagedError(f"a segment claims {length:,} bytes, and {end - at - 2:,} are left")
        if kind in _FRAMES:
            if frame is not None:
                raise DamagedError("it has two frame headers")
            frame = _frame(kind, encoded[at + 4 : at + 2 + length])
        elif kind == _SCAN:
            if frame is None:
                raise DamagedError("its scan comes before its frame header")
            return frame, at + 2
        at += 2 + length
    raise DamagedError("it has no scan")


def _frame(coding: int, header: bytes) -> _Frame:
    if len(header) < 6 or len(header) < 6 + 3 * header[5]:
        raise DamagedError("its frame header is cut short")
    height, width, components = int.from_bytes(header[1:3]), int.from_bytes(header[3:5]), header[5]
    if not (height and width):
        raise DamagedError(f"it has {width:,} x {height:,} pixels")
    if not components:
        raise DamagedError("its frame header names no component")
    names, factors = header[6 : 6 + 3 * components : 3], header[7 : 6 + 3 * components : 3]
    most_h = most_v = 0
    for factor in factors:
        h, v = factor >> 4, factor & 15
        if not (1 <= h <= 4 and 1 <= v <= 4):
            raise DamagedError("a sampling factor is not 1 to 4")
        most_h, most_v = max(most_h, h), max(most_v, v)
    side = 1 if coding in _LOSSLESS else 8
    across, down = most_h * side, most_v * side
    blocks: dict[int, int] = {}
    total = 0
    for name, factor in zip(names, factors, strict=True):
        count = -(-width * (factor >> 4) // across) * -(-height * (factor & 15) // down)
        blocks[name] = max(count, blocks.get(name, 0))
        total += count
    return _Frame(coding, height, width, components, blocks, total)


def _check_scans(encoded: bytes, frame: _Frame, at: int) -> None:
    """Limits the work of all scans: each visits every block of its components.

    Goes from marker to marker, as a decoder does, up to the end of the image. The bytes after it do
    not belong to the image: phones append a film, cameras a preview.
    """
    scans = visits = 0
    most = max(_MOST_VISITS, _VISITS_OF_A_BLOCK * frame.total)
    for _ in range(_MOST_SEGMENTS):
        kind = encoded[at + 1]
        if kind == _END:
            return
        if kind == _SCAN:
            scans += 1
            names = encoded[at + 5 : at + 5 + 2 * min(4, encoded[at + 4]) : 2]
            visits += min(frame.total, sum(frame.blocks.get(name, 0) for name in names))
            need(
                scans <= _MOST_SCANS and visits <= most,
                f"it has {scans:,} scans or more of {frame.width:,} x {frame.height:,} pixels, "
                f"more than an encoder writes",
            )
        # Markers below 0xC0 begin no segment: a decoder that searches a restart skips them.
        at += 2 + (int.from_bytes(encoded[at + 2 : at + 4]) if kind >= 0xC0 else 0)
        found = _MARKER.search(encoded, at)
        if not found:
            return
        at = found.start()
    raise DamagedError(f"it has more than {_MOST_SEGMENTS:,} segments")
