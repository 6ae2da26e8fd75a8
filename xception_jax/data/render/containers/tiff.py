"""TIFF: directories of entries (TIFF 6.0; the large variant is BigTIFF)."""

import struct

from xception_jax.data.render.containers.common import PLAIN, Claim, DamagedError, need

BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS = 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _MOST_LEVEL = 273, 277, 278, 279, 281
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 322, 323, 324, 325
_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of entries: bytes, shorts, longs
_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
_MOST_ENTRIES = 4096
_LAB = {8: "CIELAB", 9: "ICC LAB", 10: "ITU LAB"}

# Largest growth of a compressed byte: no compression, LZW, deflate (both numbers), PackBits.
_GROWTH = {1: 1, 5: 4096 * 8 // 9, 8: 1032, 32946: 1032, 32773: 64}


def inspect(encoded: bytes) -> Claim:
    """The claim of a TIFF's first directory; raises `DamagedError`.

    Entries, strips and tiles must be inside the file. Strips or tiles must be able to hold the
    bytes of the claimed size.
    """
    tags = _directory(encoded)
    width, height = (_first(tags, tag, 0) for tag in (_WIDTH, _HEIGHT))
    need(0 < width < 2**31 and 0 < height < 2**31, f"it has {width:,} x {height:,} pixels")
    colours, samples = _first(tags, _COLOURS, 0), _first(tags, _SAMPLES, 1)
    if colours in _LAB:
        raise DamagedError(f"its colours are {_LAB[colours]}; convert it to RGB")
    bits = _first(tags, _BITS, 1)
    need(0 < samples <= 64 and 0 < bits <= 64, f"it has {samples:,} samples of {bits:,} bits")
    tiled = _TILES in tags
    rows = min(_first(tags, _ROWS, height) or height, height)
    part_w, part_h = (
        (_first(tags, _TILE_WIDTH, 0), _first(tags, _TILE_HEIGHT, 0)) if tiled else (width, rows)
    )
    need(part_w > 0 and part_h > 0, f"it has tiles of {part_w:,} x {part_h:,} pixels")
    count = -(-width // part_w) * -(-height // part_h)
    _check_parts(encoded, tags, tiled, count)
    growth = _GROWTH.get(_first(tags, _COMPRESSION, 1))
    sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
    if growth and sizes:
        row = -(-part_w * samples * bits // 8) if not tiled else part_w * samples * bits // 8
        least = row * (part_h * count if tiled else height)
        need(
            least <= growth * sum(sizes),
            f"its {sum(sizes):,} bytes of pixels cannot hold {width:,} x {height:,} pixels",
        )
    pixels = width * height
    one_part = part_w * part_h * (6 + samples * bits / 8)
    return Claim(
        kind="TIFF",
        height=height,
        width=width,
        memory=int(max(pixels * PLAIN * (2 if bits > 8 else 1), pixels * 3.2 + one_part)),
        encoded=encoded,
        # OpenCV shifts 10, 12 and 14 bits to the upper end of 16, if 16 bits are requested.
        white=(2**bits - 1) << (16 - bits) if bits in (10, 12, 14) else 0,
        deep=bits == 16,
        hint=_hint(max(tags.get(_MOST_LEVEL, (0,)))) if bits == 16 else 0,
    )


def _hint(most: int) -> int:
    """`MaxSampleValue`, if it is the highest level of 9 to 15 bits; 0 for other values."""
    return most if most in {2**bits - 1 for bits in range(9, 16)} else 0


def _check_parts(encoded: bytes, tags: dict[int, tuple[int, ...]], tiled: bool, count: int) -> None:
    """Checks that there are enough strips or tiles, each inside the file."""
    places = tags.get(_TILES if tiled else _STRIPS, ())
    sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
    need(len(places) >= count, f"it has {len(places):,} of {count:,} strips or tiles")
    end = len(encoded)
    for place, size in zip(places, sizes, strict=False):
        if place + size > end:
            raise DamagedError(f"a strip or tile of {size:,} bytes at byte {place:,} is cut off")


def _directory(encoded: bytes) -> dict[int, tuple[int, ...]]:
    """The numbers of the first directory, by tag."""
    order = "<" if encoded[:1] == b"I" else ">"
    large = encoded[2:4] in (b"+\0", b"\0+")
    try:
        (at,) = struct.unpack_from(order + ("Q" if large else "I"), encoded, 8 if large else 4)
        (count,) = struct.unpack_from(order + ("Q" if large else "H"), encoded, at)
    except (struct.error, OverflowError):
        raise DamagedError("its directory is outside the file") from None
    need(0 < count <= _MOST_ENTRIES, f"its directory has {count:,} entries")
    entry = struct.Struct(order + ("HHQ8s" if large else "HHI4s"))
    at += 8 if large else 2
    need(at + count * entry.size <= len(encoded), "its directory is cut short")
    tags: dict[int, tuple[int, ...]] = {}
    for tag, kind, number, value in entry.iter_unpack(encoded[at : at + count * entry.size]):
        size = number * (_SIZES[kind] if kind < len(_SIZES) else 0)
        place = int.from_bytes(value, "little" if order == "<" else "big")
        inside = size <= len(value)
        if not inside and place + size > len(encoded):
            raise DamagedError(f"entry {tag} of {size:,} bytes is outside the file")
        if kind in _NUMBERS and number and tag not in tags:
            data = value[:size] if inside else encoded[place : place + size]
            tags[tag] = struct.unpack(f"{order}{number}{_NUMBERS[kind]}", data)
    return tags


def _first(tags: dict[int, tuple[int, ...]], tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]
