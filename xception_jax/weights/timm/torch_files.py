"""torch's files, read without torch: zip archives (since 1.6) and the older pickles.

The formats are those of torch/serialization.py and torch/_utils.py. The pickle describes the
tensors. Each description is checked against the file before the tensor is read.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from xception_jax.errors import UsageError
from xception_jax.utils.text import printable
from xception_jax.weights import files
from xception_jax.weights.archives import open_archive
from xception_jax.weights.files import Refused, Stored
from xception_jax.weights.timm.pickles import Call, Global, PickleError, parse

_T = TypeVar("_T")

_MAX_PICKLE = 64 << 20  # bytes; Xception 71 with Adam's state has 0.25 MB
_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool", "UntypedStorage": "uint8", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "int8", "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}  # fmt: skip
_KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_qtensor": "quantised",
    "_rebuild_meta_tensor_no_storage": "without data (on the device meta)",
    "_rebuild_nested_tensor": "nested",
}


@dataclass
class _Archive:
    """A file's pickled object and its storages.

    Attributes:
      size: of the file, in bytes.
      held: the object.
      read: reads the storage with a key.
      length: the size in bytes of the storage with a key; -1 if there is none.
      claimed: the bytes of all tensors so far.
    """

    size: int
    held: Any
    read: Callable[[str], bytes]
    length: Callable[[str], int]
    claimed: int = 0
    _kept: dict[str, bytes] = field(default_factory=dict)

    def storage(self, key: str) -> bytes:
        """The bytes of a storage; several tensors can share it."""
        if key not in self._kept:
            if self.length(key) + sum(map(len, self._kept.values())) > self.size:
                raise PickleError("shares its bytes with another storage")
            self._kept[key] = self.read(key)
        return self._kept[key]


def read(path: Path) -> tuple[Any, Callable[[str, Any], Stored | None]]:
    """Reads a file's pickled object, but not yet its tensors.

    Returns:
      The object, made of plain values and `pickles.Call`s, and a function that turns a part of it
      into a tensor. The function takes a name for error messages and the part. It returns None if
      the part is not a tensor.

    Raises:
      UsageError: the file is damaged, not torch's, or contains more than plain data. The function
        raises it for a tensor that cannot be read or that contradicts the file.
    """
    size = files.check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(300)
        if head.startswith(b"PK"):
            archive = _zipped(path, size)
        elif head[257:262] == b"ustar":
            raise PickleError("it is a tar archive of torch before 0.2")
        else:
            archive = _legacy(path, size)
    except PickleError as error:
        raise UsageError(
            f"{path} cannot be read, and no code in it was run: {error}; expected a state_dict "
            f"written by torch.save"
        ) from None
    except Exception as error:  # zipfile and struct raise many kinds
        raise UsageError(f"{path} is damaged or not a torch file: {files.reason(error)}") from None

    def tensor(name: str, part: Any) -> Stored | None:
        found = _told(path, name, lambda: _tensor(part, archive))
        return found and replace(found, read=lambda: _told(path, name, found.read))

    return archive.held, tensor


def is_tensor(part: Any) -> bool:
    """Whether a part of a file's object is declared as a tensor of any kind."""
    return isinstance(part, Call) and (
        "._rebuild_" in part.name or part.name == "torch.nn.parameter.Parameter"
    )


def _told(path: Path, name: str, do: Callable[[], _T]) -> _T:
    """Returns `do()`; an error names the file and the tensor."""
    try:
        return do()
    except PickleError as error:
        raise UsageError(f"{path}: {printable(name, 80)} {error}") from None
    except Exception as error:  # for example a wrong checksum in the archive
        raise UsageError(f"{path} is damaged: {printable(name, 80)}: {files.reason(error)}") \
            from None  # fmt: skip


def _zipped(path: Path, size: int) -> _Archive:
    try:
        archive = open_archive(path)
    except Refused as error:
        raise PickleError(f"it {error}") from None
    except zipfile.BadZipFile:
        raise PickleError("its archive is damaged or truncated") from None
    try:
        return _members(archive, size)
    except BaseException:
        archive.close()
        raise


def _members(archive: zipfile.ZipFile, size: int) -> _Archive:
    """The contents of an archive, which stays open: its storages are read later."""
    members = {info.filename: info for info in archive.infolist()}
    tops = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(tops) != 1 or f"{tops[0]}constants.pkl" in members:
        raise PickleError("it is a TorchScript program or another archive, not a state_dict")

    def member(name: str, limit: int = size) -> bytes:
        info = members[tops[0] + name]
        if info.file_size > limit or info.compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"its {name} is compressed or too large for a torch file")
        return archive.read(info)  # checks its CRC

    if f"{tops[0]}byteorder" in members and member("byteorder", 16) != b"little":
        raise PickleError("it was written on a big-endian machine")
    held = parse(io.BytesIO(member("data.pkl", _MAX_PICKLE)))

    def length(key: str) -> int:
        info = members.get(f"{tops[0]}data/{key}")
        return -1 if info is None else info.file_size

    return _Archive(size, held, lambda key: member(f"data/{key}"), length)


def _legacy(path: Path, size: int) -> _Archive:
    with path.open("rb") as file:
        head = io.BytesIO(file.read(_MAX_PICKLE))
    if parse(head) != _MAGIC:
        raise PickleError("it does not begin like a torch file")
    parse(head)  # the version
    system = parse(head)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise PickleError("it was written on a big-endian machine")
    held, keys = parse(head), parse(head)
    widths: dict[str, int] = {}
    _note_widths(held, widths)
    starts: dict[str, tuple[int, int]] = {}
    place = head.tell()
    with path.open("rb") as file:
        for key in map(str, keys):
            if key not in widths:
                raise PickleError("it has a storage that no tensor uses")
            file.seek(place)
            count = struct.unpack("<q", file.read(8))[0]
            length = count * widths[key]
            if not 0 <= length <= size - place - 8:
                raise PickleError("it is truncated")
            starts[key] = place + 8, length
            place += 8 + length

    def read(key: str) -> bytes:
        start, length = starts[key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return _Archive(size, held, read, lambda key: starts.get(key, (0, -1))[1])


def _note_widths(held: Any, widths: dict[str, int]) -> None:
    """Notes the bytes per number of each storage that an object uses, by key."""
    seen, left = set(), [held]
    while left:
        part = left.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, Call):
            if part.name == "persistent":
                key, dtype, _ = _storage(part)
                widths[key] = dtype.itemsize
            left.append(part.args)
        elif isinstance(part, list | tuple):
            left.extend(part)
        elif isinstance(part, dict):
            left.extend(part.values())


def _storage(part: Any) -> tuple[str, np.dtype, int]:
    """The key, the type and the view's offset (in numbers) of a reference to a storage."""
    if not isinstance(part, Call) or part.name != "persistent" or len(part.args) not in (5, 6):
        raise PickleError("has no valid storage")
    _, kind, key, *_, view = (*part.args, None)[:6]
    name = kind.name.rpartition(".")[2] if isinstance(kind, Global) else ""
    if name not in _STORAGES or not isinstance(key, str | int):
        raise PickleError(f"has the unknown storage type {printable(name, 40)!r}")
    offset = view[1] if isinstance(view, tuple) and len(view) == 3 else 0
    return str(key), np.dtype(_STORAGES[name]), offset


def _tensor(part: Any, archive: _Archive) -> Stored | None:
    """The tensor in a part of the object, or None if it is not a tensor."""
    name, args = "", tuple[Any, ...]()
    for _ in range(4):  # for example a Parameter of a subclass of Tensor
        if not isinstance(part, Call):
            return None
        name, args = part.name.rpartition(".")[2], part.args
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state", "Parameter",
                    "_rebuild_device_tensor_from_cpu_tensor"):  # fmt: skip
            part = args[0] if args else None
        elif name == "_rebuild_from_type_v2" and len(args) == 4 and isinstance(args[0], Global):
            part = Call(args[0].name, args[2] if isinstance(args[2], tuple) else ())
        else:
            break
    if name in _KINDS:
        raise PickleError(f"is {_KINDS[name]}; only dense tensors of plain numbers can be read")
    if name.startswith("_rebuild_") and name not in _DENSE:
        raise PickleError(f"is of an unsupported kind ({printable(name, 60)})")
    if name not in _DENSE:
        return None
    if len(args) < _DENSE[name]:
        raise PickleError("has an incomplete description")
    dtype = _dtype(args[6]) if name == "_rebuild_tensor_v3" else None
    if any(isinstance(more, dict) and any(more.values()) for more in args[6:]):
        raise PickleError("is a negated or conjugated view; save it as plain numbers")
    return _view(args, dtype, archive)


# The minimum number of arguments of a dense tensor: storage, offset, shape, strides.
_DENSE = {"_rebuild_tensor": 4, "_rebuild_tensor_v2": 4, "_rebuild_tensor_v3": 7}


def _dtype(named: Any) -> np.dtype[Any]:
    name = named.name.rpartition(".")[2] if isinstance(named, Global) else ""
    known: Any = getattr(ml_dtypes, name, None) if name.startswith(("bfloat", "float8")) else name
    try:
        dtype: np.dtype[Any] = np.dtype(known)
    except TypeError:
        raise PickleError(f"has the unknown type {printable(name, 40)!r}") from None
    return dtype


def _view(args: tuple[Any, ...], dtype: np.dtype | None, archive: _Archive) -> Stored:
    """The tensor of a storage, an offset, a shape and strides, checked against the file."""
    key, own, start = _storage(args[0])
    dtype = own if dtype is None else dtype
    offset, shape, strides = args[1:4]
    numbers = (start, offset, *_sizes(shape), *_sizes(strides))
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise PickleError("has an impossible shape, strides or offset")
    offset, shape, strides = offset + start, tuple(_sizes(shape)), tuple(_sizes(strides))
    count = math.prod(shape)
    held = archive.length(key) // dtype.itemsize
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=False))
    if len(shape) != len(strides) or len(shape) > 8 or (count and offset + last >= held):
        raise PickleError("extends beyond its stored data")
    archive.claimed += count * dtype.itemsize
    if count > held or archive.claimed > archive.size:
        raise PickleError("repeats stored numbers; save it with .contiguous()")

    def read() -> np.ndarray:
        flat = np.frombuffer(archive.storage(key), dtype, held)[offset:]
        steps = [stride * dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(flat, shape, steps) if count else \
            np.empty(shape, dtype)  # fmt: skip

    return Stored(shape, dtype, read)


def _sizes(part: Any) -> tuple[Any, ...]:
    """A shape or strides; `torch.Size` is a call."""
    if isinstance(part, Call) and part.name == "torch.Size" and part.args:
        part = part.args[0]
    return tuple(part) if isinstance(part, list | tuple) else (None,)
