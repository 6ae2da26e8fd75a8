"""The slices of Cloud TPU: their names, shapes and sizes, for `plan` and for the launchers.

Sources, under docs.cloud.google.com: tpu/docs/v4, v5e, v5p, v6e and tpu7x. Names such as `v5p-8`
count TensorCores if a chip has two, otherwise chips. A slice of one TPU7x chip,
`tpu7x-standard-1t`: AI-Hypercomputer/xpk, `system_characteristics.py`.
"""

import math
import re
from dataclasses import dataclass

from xception_jax.errors import UsageError, nearest

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclass(frozen=True)
class Kind:
    """A generation of TPUs.

    Attributes:
      name: the name in `v5e:4x4`.
      prefixes: the part before the number in names such as `v5litepod-16`; the Cloud TPU API uses
        the first one.
      cores: TensorCores a chip, the unit of names such as `v4-8`; 1 if names count chips.
      largest: chips of the largest slice.
      shapes: shapes of its slices; if they have three dimensions, those with less than 64 chips.
        Larger ones have sides that are multiples of four, in rising order.
    """

    name: str
    prefixes: tuple[str, ...]
    cores: int
    largest: int
    shapes: tuple[str, ...]

    @property
    def flat(self) -> bool:
        """Whether shapes have two dimensions; then all of them are listed."""
        return self.shapes is _FLAT

    @property
    def sizes(self) -> list[int]:
        """Numbers of chips of the named slices: the listed ones, then powers of two."""
        listed = [chips_of(shape) for shape in self.shapes]
        if self.flat:
            return listed
        return listed + [2**n for n in range(6, self.largest.bit_length())]

    def default_shape(self, chips: int) -> str | None:
        """The shape of a named size: the one closest to a cube."""
        for shape in self.shapes:
            if chips_of(shape) == chips:
                return shape
        if self.flat or chips not in self.sizes:
            return None
        sides, axis = [4, 4, 4], 2
        while math.prod(sides) < chips:
            sides[axis] *= 2
            axis = (axis - 1) % 3
        return "x".join(map(str, sides))

    def has(self, shape: str) -> bool:
        """Whether there is a slice of this shape."""
        sides = [int(side) for side in shape.split("x")]
        cube = len(sides) == 3 and sides == sorted(sides) and all(s and s % 4 == 0 for s in sides)
        return shape in self.shapes or (not self.flat and cube and math.prod(sides) <= self.largest)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("v4", ("v4",), 2, 4096, _CUBES),
        Kind("v5e", ("v5litepod", "v5e"), 1, 256, _FLAT),
        Kind("v5p", ("v5p",), 2, 6144, _CUBES),
        Kind("v6e", ("v6e",), 1, 256, _FLAT),
        Kind("tpu7x", ("tpu7x",), 2, 9216, ("1x1x1", *_CUBES)),
    )
}
_PREFIXES = {prefix: kind for kind in KINDS.values() for prefix in kind.prefixes}


def chips_of(shape: str) -> int:
    """The number of chips of a shape such as `4x4`."""
    return math.prod(map(int, shape.split("x")))


def names() -> list[str]:
    """Every name of a usual slice: `v5e:4x4`, `v5litepod-16`, `v5e-16`, ..."""
    found = []
    for kind in KINDS.values():
        for size in kind.sizes:
            found.append(f"{kind.name}:{kind.default_shape(size)}")
            found += [f"{prefix}-{size * kind.cores}" for prefix in kind.prefixes]
    return found


def parse(text: str) -> tuple[Kind, str]:
    """The kind and the shape of a slice.

    Args:
      text: a name, `v5litepod-16`, or a shape, `v5e:4x4`.

    Raises:
      UsageError: there is no such slice; the message names the nearest.
    """
    name = text.strip().lower()
    match = re.fullmatch(r"([a-z0-9]+)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    kind = _PREFIXES.get(match[1]) if match else None
    if match is None or kind is None:
        raise UsageError(
            f"no TPU slice {text!r}{nearest(name, names())}; it takes KIND:SHAPE such as v5e:4x4, "
            f"or a name such as v5litepod-16; kinds: {', '.join(_PREFIXES)}"
        )
    if shape := match[3]:
        if kind.has(shape):
            return kind, shape
        raise UsageError(_no_shape(text, kind, shape))
    chips, rest = divmod(int(match[2]), kind.cores)
    if not rest and (named := kind.default_shape(chips)):
        return kind, named
    sizes = [size * kind.cores for size in kind.sizes]
    close = min(sizes, key=lambda size: abs(size - int(match[2])))
    what = "chips" if kind.cores == 1 else "cores, two a chip"
    raise UsageError(
        f"no TPU slice {text!r}; did you mean '{match[1]}-{close}'? {match[1]}- counts {what}: "
        f"{', '.join(map(str, sizes))}; name other sizes by shape, as {kind.name}:{kind.shapes[-1]}"
    )


def _no_shape(text: str, kind: Kind, shape: str) -> str:
    rising = "x".join(sorted(shape.split("x"), key=int))
    known = [f"{kind.name}:{one}" for one in kind.shapes]
    meant = f"; did you mean '{kind.name}:{rising}'?" if kind.has(rising) else nearest(text, known)
    more = "" if kind.flat else f" and multiples of four in rising order, to {kind.largest:,} chips"
    return f"no TPU slice {text!r}{meant}; {kind.name} comes as {', '.join(kind.shapes)}{more}"
