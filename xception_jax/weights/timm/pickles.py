"""Reads a pickle as data: nothing that it names is imported or called.

`torch.load(weights_only=True)` runs no foreign code either. But a file of a kilobyte can make it
use all memory: `_codecs.encode` can double its argument any number of times. So it is not used.
Here a call is only returned as a name and its arguments.
"""

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xception_jax.utils.text import printable

# A checkpoint of Xception 71 with averaged weights and Adam's state takes 73,000.
MAX_OPERATIONS = 1_000_000

# Python 2's names of types, which pickles of protocol 2 still use.
_PYTHON_2 = {
    "builtins.xrange": "builtins.range", "builtins.unicode": "builtins.str",
    "builtins.long": "builtins.int", "builtins.basestring": "builtins.str",
}  # fmt: skip
_CONTAINERS = (
    "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict",
)  # fmt: skip
# Plain data that weights files contain: flags, paths, metrics, training settings.
_PLAIN = {
    *_CONTAINERS, "argparse.Namespace", "_codecs.encode", "copyreg._reconstructor", "typing.Any",
    *(f"builtins.{name}" for name in (
        "bool", "bytearray", "bytes", "complex", "float", "frozenset", "int", "list", "object",
        "range", "set", "slice", "str", "tuple", "Ellipsis", "NotImplemented")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "collections.ChainMap", "collections.deque", "decimal.Decimal", "fractions.Fraction",
    "time.struct_time", "types.SimpleNamespace", "uuid.UUID", "torch.torch_version.TorchVersion",
    *(f"numpy.{module}.multiarray.{name}" for module in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    *(f"pathlib.{name}Path" for name in ("Posix", "Windows", "PurePosix", "PureWindows", "")),
    "torch.Size", "torch.device", "torch.Tensor", "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2",
}  # fmt: skip
_PLAIN_PARTS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.",
                "torch._utils._rebuild_", "torch.storage.")  # fmt: skip


class PickleError(ValueError):
    """What is wrong with a pickle, in a few words."""


@dataclass(frozen=True, eq=False)
class Global:
    """A function or class that the pickle names, as `torch.FloatStorage`."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """A call in the pickle, which is not executed.

    Attributes:
      name: the function or class; `persistent` for an object that is stored elsewhere.
      args: its arguments.
    """

    name: str
    args: tuple[Any, ...]


class _Mark:
    pass


def parse(file: io.BytesIO) -> Any:
    """The next object of a pickle file, made of plain values, `Global`s and `Call`s.

    Raises:
      PickleError: the pickle is damaged, too large, or names something that is not plain data.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(file):
            machine.spend(1)
            if operation.name == "STOP":
                return machine.pop()
            machine.run(operation.name, argument)
    except PickleError:
        raise
    except Exception as error:  # damaged bytes can cause any kind
        raise PickleError(f"its pickle is damaged ({type(error).__name__})") from None
    raise PickleError("its pickle does not end")


class _Machine:
    """The stack machine of a pickle, protocols 0 to 5."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.pop = self.stack.pop
        self._spent = 0

    def spend(self, operations: int) -> None:
        self._spent += operations
        if self._spent > MAX_OPERATIONS:
            raise PickleError(f"it has more than {MAX_OPERATIONS:,} entries")

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise PickleError(f"its pickle has {name}, which weights files do not use")

    def marked(self) -> list[Any]:
        """Pops all items since the last mark."""
        found = []
        while not isinstance(item := self.pop(), _Mark):
            found.append(item)
        return found[::-1]

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def add(self, items: list[Any]) -> None:
        """Appends to the list on the stack; items for an object that is not created are dropped."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Call):
            raise PickleError("its pickle is damaged")

    def set_items(self, items: list[Any]) -> None:
        """Sets items of the dict on the stack, as `add`.

        Keys that are not plain values are dropped; names of tensors are plain.
        """
        if isinstance(self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str | int | float | bytes | None):
                    self.stack[-1][key] = value
        elif not isinstance(self.stack[-1], Call):
            raise PickleError("its pickle is damaged")

    def name(self, name: str) -> None:
        module, _, function = name.partition(" ")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{function}"
        full = _PYTHON_2.get(full, full)
        if not (full in _PLAIN or full.startswith(_PLAIN_PARTS) or _is_type(full)):
            raise PickleError(f"it names {printable(full, 80)}, which is code, not data")
        self.stack.append(Global(full))

    def call(self) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise PickleError("its pickle is damaged")
        if function.name not in _CONTAINERS:
            self.stack.append(Call(function.name, args))
            return
        self.stack.append({})
        if args and isinstance(args[0], list | tuple):  # as Python 2 writes an OrderedDict
            self.spend(len(args[0]))
            for key, value in args[0]:
                self.set_items([key, value])

    def call_with_keywords(self) -> None:
        self.pop()
        self.call()

    def call_marked(self) -> None:
        function, *args = self.marked()
        self.stack += [function, tuple(args)]
        self.call()

    def instance(self, name: str) -> None:
        args = tuple(self.marked())
        self.name(name)
        self.stack.append(args)
        self.call()

    def persistent(self, identity: Any) -> None:
        self.stack.append(Call("persistent", identity if isinstance(identity, tuple) else ()))


def _is_type(name: str) -> bool:
    """Whether it is a torch type of storages, tensors or numbers, as `torch.cuda.FloatStorage`."""
    module, _, last = name.rpartition(".")
    kinds = ("float", "bfloat", "int", "uint", "bool", "complex", "per_tensor_", "per_channel_")
    if module == "torch" and last.startswith(kinds):
        return True
    return module in ("torch", "torch.cuda") and last.endswith(("Storage", "Tensor"))


def _put(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _pair(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


def _stack_global(machine: _Machine, _: Any) -> None:
    function, module = machine.pop(), machine.pop()
    machine.name(f"{module} {function}" if isinstance(module, str) else "")


_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # a set would hash its items, which can recurse without limit
    "MARK": _Mark,
}
_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.marked(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "LIST": lambda m, _: m.stack.append(m.marked()),
    "FROZENSET": lambda m, _: m.stack.append(m.marked()),
    "DICT": _dict,
    "APPEND": lambda m, _: m.add([m.pop()]),
    "APPENDS": lambda m, _: m.add(m.marked()),
    "ADDITEMS": lambda m, _: m.add(m.marked()),
    "SETITEM": _pair,
    "SETITEMS": lambda m, _: m.set_items(m.marked()),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "GLOBAL": lambda m, name: m.name(name),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "NEWOBJ_EX": lambda m, _: m.call_with_keywords(),
    "OBJ": lambda m, _: m.call_marked(),
    "INST": lambda m, name: m.instance(name),
    "BUILD": lambda m, _: m.pop(),  # the state of an object that is not created
    "PERSID": lambda m, identity: m.persistent(identity),
    "BINPERSID": lambda m, _: m.persistent(m.pop()),
}
