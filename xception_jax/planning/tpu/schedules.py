"""Cycles of each operation's schedule, from the bundles that the TPU compiler writes.

While libtpu compiles, it writes `*-NAME-NN-packed-bundles-post-ra.txt` for an operation NAME. The
file has one line a bundle, one bundle a cycle, with the targets of loops and branches. Nothing here
needs libtpu.
"""

import re
from pathlib import Path

_BUNDLE = re.compile(r"^ *(?:0x)?([0-9a-f]+) +(?:[A-Z]{2})?:")
_BRANCH = re.compile(r"sbr\.rel \((!?)(%p\w+)\) target bundleno = (\d+)")
_COMPARISON = re.compile(
    r"(%p\w+) = scmp\.(ge|lt|eq|ne|gt|le)\.[su]32(?:\.totalorder)? (%s\w+), (\d+)"
)
_LOGIC = re.compile(r"(%p\w+) = (pnand|pand|por) (!?%p\w+), (!?%p\w+)")
_NEGATION = re.compile(r"(%p\w+) = pneg (%p\w+)")
_INCREMENT = re.compile(r"(%s\w+) = sadd\.s32 1, (%s\w+)")
_BUNDLE_FILE = re.compile(r"^\d+-(.+)-\d+-packed-bundles-post-ra\.txt$")

_COMPARE = {
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "lt": lambda a, b: a < b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


class _Predicates:
    """The scalar predicates of one operation's bundles, as functions of a loop's counter."""

    def __init__(self, text: str):
        self.comparisons = {
            name: (how, counter, int(bound))
            for name, how, counter, bound in _COMPARISON.findall(text)
        }
        self.logic = {name: (how, a, b) for name, how, a, b in _LOGIC.findall(text)}
        self.negations = dict(_NEGATION.findall(text))
        self.increments = dict(_INCREMENT.findall(text))

    def trips(self, name: str) -> tuple[int, str | None]:
        """Rounds of the loop that ends at this predicate, and its counter; (1, None): unknown."""
        how, after, bound = self.comparisons.get(name, ("", "", 0))
        return (max(bound, 1), self.increments.get(after)) if how == "ge" else (1, None)

    def holds(self, name: str, counter: str, value: int) -> bool | None:
        """The predicate in round `value` of the loop; None if it depends on other values."""
        if name.startswith("!"):
            inner = self.holds(name[1:], counter, value)
            return None if inner is None else not inner
        if name in self.comparisons:
            how, of, bound = self.comparisons[name]
            return _COMPARE[how](value, bound) if of == counter else None
        if name in self.negations:
            return self.holds("!" + self.negations[name], counter, value)
        if name not in self.logic:
            return None
        how, *names = self.logic[name]
        sides = [self.holds(side, counter, value) for side in names]
        decides = how == "por"  # the value of one side that determines the result
        if decides in sides:
            result = decides
        elif None in sides:
            return None
        else:
            result = not decides
        return not result if how == "pnand" else result


def schedule_cycles(text: str) -> int:
    """Cycles of one operation: its bundles, each counted as often as it is executed.

    A branch backwards is a loop; the test at its end gives the number of rounds. A branch forwards
    skips bundles. If it depends only on the loop's counter (filling and draining of a pipeline),
    the bundles count in the rounds in which the branch is not taken. Other forward branches count
    as never taken.
    """
    counts: dict[int, float] = {}
    branches: list[tuple[int, int, str]] = []
    for line in text.splitlines():
        found = _BUNDLE.match(line)
        if found is None:
            continue
        at = int(found[1], 16)
        counts[at] = 1.0
        branches += [(at, int(to), sign + name) for sign, name, to in _BRANCH.findall(line)]
    predicates = _Predicates(text)
    loops = []
    for at, to, name in branches:
        if to <= at:
            trips, counter = predicates.trips(name.removeprefix("!"))
            loops.append((to, at, trips, counter))
            for bundle in range(to, at + 1):
                counts[bundle] = counts.get(bundle, 0.0) * trips
    for at, to, name in branches:
        inside = [loop for loop in loops if loop[0] <= at <= loop[1]]
        if to <= at or not inside:
            continue
        _, _, trips, counter = max(inside)  # the innermost
        taken = sum(counter is not None and predicates.holds(name, counter, i) is True
                    for i in range(trips))  # fmt: skip
        for bundle in range(at + 5, to):  # a branch takes effect after four more bundles
            counts[bundle] = counts.get(bundle, 0.0) * (trips - taken) / trips
    return round(sum(counts.values()))


def schedules(folder: Path) -> dict[str, int]:
    """`schedule_cycles` of every operation of a dump, by the operation's name."""
    files = ((_BUNDLE_FILE.match(path.name), path) for path in sorted(folder.iterdir()))
    return {
        name[1]: schedule_cycles(path.read_text(encoding="utf-8")) for name, path in files if name
    }
