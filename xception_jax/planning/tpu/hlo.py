"""Reads the scheduled HLO that the TPU compiler prints.

It contains the layouts of operands and results: whether an array is in HBM, and its padding.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "token": 0}


_ARRAY = re.compile(
    r"\b(pred|token|bf16|[suf]\d+(?:e\w+)?)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?"
)


_LINE = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (.*)$")


_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")


_NAME = re.compile(r"%([\w.\-]+)")


_HEAD = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{\s*$")


@dataclass(frozen=True)
class Array:
    """One array of a shape: its bytes in memory, including the padding of tiles."""

    bytes: int
    in_hbm: bool


def arrays(shape: str) -> list[Array]:
    """The arrays of an HLO shape with layouts, such as `(f32[8]{0:T(128)}, bf16[2,3]{1,0})`."""
    return [_array(*groups) for groups in _ARRAY.findall(shape)]


def _array(kind: str, sizes: str, order: str, layout: str) -> Array:
    bits = _BITS.get(kind) or int(re.sub(r"\D.*", "", kind[1:]) or 0)
    dims = [int(size) for size in sizes.split(",") if size]
    minor_first = [dims[int(i)] for i in order.split(",") if i]
    tile = re.match(r"T\(([\d,]+)\)", layout)
    tile_dims = [int(size) for size in tile[1].split(",")][::-1] if tile else []
    for i, size in enumerate(tile_dims[: len(minor_first)]):
        minor_first[i] = -(-minor_first[i] // size) * size
    return Array(prod(minor_first or dims) * bits // 8, not re.search(r"S\([1-9]", layout))


@dataclass(frozen=True)
class Operation:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str  # attributes, as text

    def attribute(self, pattern: str) -> str:
        """The first group of a pattern in the attributes, or an empty text."""
        found = re.search(pattern, self.rest)
        return found[1] if found else ""

    @cached_property
    def op_name(self) -> str:
        """JAX' name of the operation's origin, such as `jit(f)/transpose(jvp(block1))/mul`."""
        return self.attribute(r'op_name="([^"]*)"')

    @cached_property
    def classic_cycles(self) -> int:
        """The compiler's own `estimated_cycles`; 0 if it gives none."""
        return int(self.attribute(r'"estimated_cycles":"(\d+)"') or 0)


@dataclass
class Computation:
    """Operations by name, in program order."""

    operations: dict[str, Operation] = field(default_factory=dict)
    root: Operation | None = None


def parse_hlo(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module's text by name, and the name of its entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], Computation())
            entry = head[2] if head[1] else entry
            continue
        found = _LINE.match(line)
        opcode = _OPCODE.search(" " + found[2]) if found else None
        if found is None or opcode is None:
            continue
        shape, after = found[2][: opcode.start()], found[2][opcode.end() - 1 :]
        inside, rest = _balanced(after)
        operands = (
            tuple(_NAME.findall(inside)) if opcode[1] not in ("parameter", "constant") else ()
        )
        operation = Operation(found[1], opcode[1], shape, operands, inside + rest)
        current.operations[found[1]] = operation
        if line.lstrip().startswith("ROOT "):
            current.root = operation
    return computations, entry


def _balanced(text: str) -> tuple[str, str]:
    """Splits `a(b), c), rest` at the first unmatched closing parenthesis."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:i], text[i + 1 :]
    return text, ""


def is_copy(operation: Operation, inside: Computation | None = None) -> bool:
    """Whether an operation only changes the layout of an array."""
    movers = {"copy", "transpose", "reshape"}
    if inside is not None:
        return {o.opcode for o in inside.operations.values()} <= movers | {"parameter", "bitcast"}
    return operation.opcode in movers
