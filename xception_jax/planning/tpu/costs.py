"""The cost of each operation of a compiled TPU program: cycles, bytes, collectives, its stage.

The cycles come from the schedules, see `schedules`. Nothing here needs libtpu.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from xception_jax.planning.tpu.hlo import Computation, Operation, arrays, is_copy, parse_hlo

_FREE = frozenset(
    (
        *("parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all"),
        *("partition-id", "replica-id", "copy-done", "slice-done", "all-reduce-done"),
        *("all-gather-done", "collective-permute-done"),
        *("async-done", "async-update", "while", "call", "conditional", "opt-barrier"),
        "add-dependency",
    )
)


COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


# The names of the models' blocks, see their `blocks()`.
_BLOCK = re.compile(r"(?<![\w.])(?:stem|block\d+|blocks\.\d+|mixed\d+|middle_flow)(?![\w.])")


# Kinds of operations that contain matrix products.
_PRODUCTS = frozenset(("depthwise", "pointwise", "convolution"))


@dataclass(frozen=True)
class Cost:
    """The cost of one operation in the program, including all rounds of its loop.

    `payload` is the bytes that a collective reduces or gathers. `inside` means that the collective
    is between matrix products: it depends on one, and another one depends on it. Batch statistics
    over several devices are such; the sum of the gradients and the count of examples are not.

    An asynchronous copy runs from line `at` of the entry computation to line `until`. For other
    operations both are their own line, or the line of their loop.
    """

    operation: Operation
    kind: str
    stage: str
    backward: bool
    rounds: int
    cycles: int
    bytes: int
    payload: int = 0
    inside: bool = False
    at: int = 0
    until: int = 0


def exposed_cycles(costs: Iterable[Cost], memory_cycles: Callable[[int], float]) -> float:
    """Cycles of asynchronous copies that do not overlap with computation.

    If an operation's schedule is longer than the time for its bytes, the memory is idle for the
    difference. Each copy uses idle time between its start and its end; the copy with the earliest
    end is served first.

    Args:
      costs: costs of a program's operations.
      memory_cycles: cycles that the memory takes for a number of bytes.
    """
    costs = list(costs)
    idle: dict[int, float] = defaultdict(float)
    for cost in costs:
        idle[cost.at] += max(0.0, cost.cycles - memory_cycles(cost.bytes))
    exposed = 0.0
    for copy in sorted((c for c in costs if c.kind == "prefetch"), key=lambda c: c.until):
        left = memory_cycles(copy.bytes)
        for at in range(copy.at, copy.until):
            taken = min(left, idle[at])
            idle[at] -= taken
            left -= taken
        exposed += left
    return exposed


class Program:
    """A compiled program and the costs of its operations."""

    def __init__(self, hlo: str, cycles: Mapping[str, int]):
        self.computations, self.entry = parse_hlo(hlo)
        self.cycles = dict(cycles)
        self._share_schedules()

    def costs(self) -> Iterator[Cost]:
        """Costs of all operations that are not free; a loop's body counts once per round."""
        operations = self.computations[self.entry].operations.values()
        ends = {o.operands[0]: i for i, o in enumerate(operations) if o.opcode.endswith("-done")}
        for at, operation in enumerate(operations):
            for cost in self._costs(operation, self.entry, 1):
                yield replace(cost, at=at, until=ends.get(operation.name, at))

    def _costs(self, operation: Operation, computation: str, rounds: int) -> Iterator[Cost]:
        around = self.computations[computation].operations
        body = operation.attribute(r"(?:body|to_apply)=%([\w.\-]+)")
        if operation.opcode in ("while", "call") and body:
            trips = self._rounds(operation)
            for held in self.computations[body].operations.values():
                yield from self._costs(held, body, rounds * trips)
        if operation.opcode not in _FREE:
            inside = self._inside(operation)
            op_name = _named(operation, around)
            kind = _kind(operation, inside)
            collective = kind in COLLECTIVES
            yield Cost(
                operation,
                kind=kind,
                stage=stage(op_name),
                backward="transpose(jvp" in op_name,
                rounds=rounds,
                cycles=rounds * self.cycles.get(operation.name, 0),
                bytes=rounds * self._bytes(operation, around),
                payload=rounds * _payload(operation, around) if collective else 0,
                inside=collective and self._between_products(operation, computation),
            )

    def _between_products(self, operation: Operation, computation: str) -> bool:
        """Whether an operation depends on a matrix product, and another product on it."""
        operations = list(self.computations[computation].operations.values())
        at = operations.index(operation)
        return self._product_before(operation, operations[:at]) and self._product_after(
            operation, operations[at:]
        )

    def _product_before(self, operation: Operation, before: list[Operation]) -> bool:
        # The needed outputs of each operation, None for all: the compiler may fuse independent
        # operations.
        needed: dict[str, set[int | None]] = {name: {None} for name in operation.operands}
        for earlier in reversed(before):  # operands precede their users
            if earlier.name not in needed:
                continue
            if earlier.opcode == "get-tuple-element":
                index = int(earlier.attribute(r"index=(\d+)"))
                needed.setdefault(earlier.operands[0], set()).add(index)
                continue
            operands, product = self._behind(earlier, needed[earlier.name])
            if product:
                return True
            for name in operands:
                needed.setdefault(name, set()).add(None)
        return False

    def _behind(self, operation: Operation, outputs: set[int | None]) -> tuple[Iterable[str], bool]:
        """The operands that some outputs depend on, and whether a product is between them."""
        inside = self._inside(operation)
        if None in outputs or not inside or not inside.root or inside.root.opcode != "tuple":
            return operation.operands, self._holds_product(operation)
        reached = {inside.root.operands[i] for i in outputs if i is not None}
        operands, product = [], False
        for held in reversed(inside.operations.values()):
            if held.name not in reached:
                continue
            reached.update(held.operands)
            product = product or self._holds_product(held)
            if held.opcode == "parameter":
                operands.append(operation.operands[int(held.rest.split(",")[0])])
        return operands, product

    def _product_after(self, operation: Operation, after: list[Operation]) -> bool:
        reached = {operation.name}
        for later in after:
            if not reached.isdisjoint(later.operands):
                if self._holds_product(later):
                    return True
                reached.add(later.name)
        return False

    def _holds_product(self, operation: Operation) -> bool:
        body = self.computations.get(operation.attribute(r"(?:body|to_apply)=%([\w.\-]+)"))
        if operation.opcode in ("while", "call") and body:
            return any(self._holds_product(held) for held in body.operations.values())
        return _kind(operation, self._inside(operation)) in _PRODUCTS

    def _rounds(self, operation: Operation) -> int:
        """The number of rounds of a loop: the limit in its condition."""
        condition = self.computations.get(operation.attribute(r"condition=%([\w.\-]+)"))
        if condition is None or condition.root is None or condition.root.opcode != "compare":
            return 1
        limits = (condition.operations.get(name) for name in condition.root.operands)
        found = [re.match(r"\d+", o.rest) for o in limits if o and o.opcode == "constant"]
        return int(found[0][0]) if found and found[0] else 1

    def _share_schedules(self) -> None:
        """Copies schedules to equal operations: the compiler writes only one of them."""
        by_form: dict[str, int] = {}
        forms: dict[str, str] = {}
        for computation in self.computations.values():
            for name, operation in computation.operations.items():
                if operation.opcode in _FREE or operation.opcode.endswith("-start"):
                    continue
                forms[name] = self._form(operation, computation.operations)
                if name in self.cycles:
                    by_form[forms[name]] = self.cycles[name]
        for name, form in forms.items():
            if name not in self.cycles and form in by_form:
                self.cycles[name] = by_form[form]

    def _form(self, operation: Operation, around: Mapping[str, Operation]) -> str:
        """A text that equal operations share: their shapes and computation, without names."""
        shapes = [around[name].shape.strip() for name in operation.operands if name in around]
        numbers: dict[str, int] = {}
        inside = self._inside(operation)
        lines = [f"{operation.opcode} {operation.shape.strip()} {shapes}"]
        for held in inside.operations.values() if inside else ():
            numbers[held.name] = len(numbers)
            of = [numbers.get(name, -1) for name in held.operands]
            nested = self._form(held, inside.operations) if self._inside(held) and inside else ""
            lines.append(f"{held.opcode} {held.shape.strip()} {of} {_plain(held)} {nested}")
        return "\n".join(lines)

    def _inside(self, operation: Operation) -> Computation | None:
        return self.computations.get(operation.attribute(r"calls=%([\w.\-]+)"))

    def _bytes(self, operation: Operation, around: Mapping[str, Operation]) -> int:
        """Bytes that an operation reads from HBM and writes to it."""
        shapes = [around[name].shape if name in around else "" for name in operation.operands]
        if operation.opcode in ("copy-start", "slice-start"):
            moved = arrays(operation.shape)[:2]
            least = min(array.bytes for array in moved)
            return sum(least for array in moved if array.in_hbm)
        inside = self._inside(operation)
        if inside is None or inside.root is None:
            return sum(_hbm(shape) for shape in [*shapes, operation.shape])
        read = sum(_read(inside, i, shape) for i, shape in enumerate(shapes))
        return read + _written(inside, inside.root, operation.shape)


def _payload(operation: Operation, around: Mapping[str, Operation]) -> int:
    """The larger of the bytes of a collective's operands and of its result."""
    shapes = [around[name].shape for name in operation.operands if name in around]
    given, result = (sum(a.bytes for s in group for a in arrays(s))
                     for group in (shapes, [operation.shape]))  # fmt: skip
    if operation.opcode in ("all-gather-start", "collective-permute-start"):
        result -= given  # the shape of these includes the operands
    return max(given, result)


def _plain(operation: Operation) -> str:
    """The attributes that change the computation."""
    names = "window|dim_labels|feature_group_count|batch_group_count|dimensions|slice|padding"
    kept = rf"({names})=\{{?[^}}]*?(?:\}}|,|$)"
    index = operation.rest.split(",")[0] if operation.opcode in ("parameter", "constant") else ""
    return index + " ".join(found[0] for found in re.finditer(kept, operation.rest))


def _hbm(shape: str) -> int:
    return sum(array.bytes for array in arrays(shape) if array.in_hbm)


def _read(inside: Computation, index: int, shape: str) -> int:
    """Bytes that a fusion reads of its operand; only the slices' if it uses only slices of it."""
    full = _hbm(shape)
    parameters = (o for o in inside.operations.values() if o.opcode == "parameter")
    name = next((o.name for o in parameters if o.rest.split(",")[0] == str(index)), None)
    users = [o for o in inside.operations.values() if name in o.operands]
    partial = 0
    for user in users:
        if user.opcode in ("dynamic-slice", "slice"):
            partial += sum(array.bytes for array in arrays(user.shape))
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # updated in place
        else:
            return full
    return min(full, partial) if users else 0


def _written(inside: Computation, root: Operation, shape: str) -> int:
    """Bytes that a fusion writes; only the update's if it updates a slice in place."""
    while root.opcode == "bitcast" and root.operands[0] in inside.operations:
        root = inside.operations[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and root.operands[1] in inside.operations:
        return min(
            _hbm(shape), sum(a.bytes for a in arrays(inside.operations[root.operands[1]].shape))
        )
    return _hbm(shape)


def _named(operation: Operation, around: Mapping[str, Operation]) -> str:
    """The `op_name` of an operation, or of the nearest one along its first operands."""
    for _ in range(8):
        if operation.op_name or not operation.operands or operation.operands[0] not in around:
            break
        operation = around[operation.operands[0]]
    return operation.op_name


def stage(op_name: str) -> str:
    """The network's block of an operation, `head`, or `update` for all other operations.

    Block names are the named scopes of `network.Network`.
    """
    blocks: list[str] = _BLOCK.findall(op_name)
    if blocks:
        return blocks[-1]
    return "head" if "jvp" in op_name else "update"


def _kind(operation: Operation, inside: Computation | None) -> str:
    """The class of an operation, by the most expensive operation in it."""
    held = [operation, *(inside.operations.values() if inside else ())]
    opcodes = {o.opcode for o in held}
    products = [o for o in held if o.opcode in ("convolution", "dot")]
    if any(re.search(r"(feature|batch)_group_count=(?!1\b)\d", o.rest) for o in products):
        return "depthwise"
    if products:
        # By name, since gradients of a 1x1 convolution have larger windows.
        dense = stage(operation.op_name) == "block1" or re.search(r"\bdense\b", operation.op_name)
        return "convolution" if dense else "pointwise"
    if opcodes & {"select-and-scatter", "reduce-window"}:
        return "pool"
    for collective in COLLECTIVES:
        if any(opcode.startswith(collective) for opcode in opcodes):
            return collective
    if operation.opcode in ("copy-start", "slice-start"):
        return "prefetch"
    if is_copy(operation, inside):
        return "copy"
    return "elementwise"
