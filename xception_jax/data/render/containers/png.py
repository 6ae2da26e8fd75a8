"""PNG: a chain of chunks, each with its length (https://www.w3.org/TR/png-3/)."""

import struct

from xception_jax.data.render.containers.common import PLAIN, Claim, DamagedError, need

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHUNK = struct.Struct(">I4s")
_HEADER = struct.Struct(">IIBBBBB")
_OVERHEAD = 12  # bytes of a chunk's length, type and checksum

# Chunks that affect OpenCV's pixels, and small harmless ones. All others are removed: text and
# profiles may inflate to 8 MB each, and an animation takes memory for complete frames.
_NEEDED = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf"}
_HARMLESS = _NEEDED | {b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"tIME"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_MOST_CHUNKS = 2**18

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by colour type
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}

# Deflate's limit: 258 bytes for two bits.
_MOST_INFLATION = 1032

# The seven passes of an interlaced image: offset x, y of the first pixel, then spacing x, y.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)


def inspect(encoded: bytes) -> Claim:
    """The claim of a PNG; raises `DamagedError`.

    Each chunk must be inside the file. The compressed data must be able to inflate to the claimed
    pixels.
    """
    need(encoded[12:16] == b"IHDR" and len(encoded) >= 33, "it does not begin with its header")
    width, height, depth, colour, _, _, interlaced = _HEADER.unpack_from(encoded, 16)
    need(0 < width < 2**31 and 0 < height < 2**31, f"it has {width:,} x {height:,} pixels")
    need(depth in _DEPTHS.get(colour, ()), f"colour type {colour} has no {depth} bits")
    need(interlaced in (0, 1), f"interlace method {interlaced} is unknown")
    kept, data, significant, plain = _walk(encoded)
    bits = depth * _SAMPLES[colour]
    rows = (
        [((width - x + dx - 1) // dx, (height - y + dy - 1) // dy) for x, y, dx, dy in _PASSES]
        if interlaced
        else [(width, height)]
    )
    inflated = sum(h * (1 + (w * bits + 7) // 8) for w, h in rows if w)
    need(
        inflated <= data * _MOST_INFLATION,
        f"its {data:,} compressed bytes cannot hold {width:,} x {height:,} pixels",
    )
    return Claim(
        kind="PNG",
        height=height,
        width=width,
        memory=int(width * height * PLAIN) << (depth == 16),
        encoded=encoded if plain else SIGNATURE + b"".join(encoded[a:b] for a, b in kept),
        deep=depth == 16,
        hint=_hint(significant[: 3 if colour & 2 else 1]) if depth == 16 else 0,
    )


def _hint(significant: bytes) -> int:
    """The highest level for the bits in `sBIT`, which are for grey, or for red, green and blue."""
    bits = set(significant)
    return 2 ** bits.pop() - 1 if len(bits) == 1 and max(bits) < 16 else 0


def _walk(encoded: bytes) -> tuple[list[tuple[int, int]], int, bytes, bool]:
    """Positions of needed chunks, bytes of pixels, `sBIT`, and whether all chunks are harmless."""
    at, end, data, significant, plain = len(SIGNATURE), len(encoded), 0, b"", True
    kept: list[tuple[int, int]] = []
    while at + _OVERHEAD <= end and len(kept) < _MOST_CHUNKS:
        length, kind = _CHUNK.unpack_from(encoded, at)
        after = at + _OVERHEAD + length
        if after > end:
            raise DamagedError(f"chunk {kind!r} claims {length:,} bytes, and {end - at:,} are left")
        if kind == b"IDAT":
            data += length
        elif kind == b"sBIT" and length:
            significant = encoded[at + 8 : after - 4]
        plain = plain and kind in _HARMLESS
        # The decoder decides on unknown critical chunks, which have a capital letter.
        if kind in _NEEDED or (kind[0] < 0x60 and kind not in _ANIMATION):
            kept.append((at, after))
        at = after
        if kind == b"IEND":
            break
    need(len(kept) < _MOST_CHUNKS, f"it has more than {_MOST_CHUNKS:,} chunks")
    return kept, data, significant, plain
