"""torch's files made by hand, without torch: what it writes, and what it never would."""

import io
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage",
}  # fmt: skip


@dataclass
class Global:
    """`module.name`, as a pickle names it."""

    module: str
    name: str


@dataclass
class Call:
    """A call of a global."""

    of: Global
    args: tuple


@dataclass
class Persistent:
    """What is stored elsewhere."""

    args: tuple


@dataclass
class Raw:
    """Pickle as it is."""

    data: bytes


def encode(value) -> bytes:
    """A value in pickle protocol 2, without the end."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return encode(value.of) + encode(value.args) + b"R"
    if isinstance(value, Persistent):
        return encode(value.args) + b"Q"
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, dict):
        return b"}(" + b"".join(encode(k) + encode(v) for k, v in value.items()) + b"u"
    parts = b"".join(map(encode, value))
    return b"(" + parts + b"t" if isinstance(value, tuple) else b"](" + parts + b"e"


def whole(value) -> bytes:
    return b"\x80\x02" + encode(value) + b"."


def storage(key, dtype, count, *view) -> Persistent:
    kind = Global("torch", STORAGES.get(dtype, dtype))
    return Persistent(("storage", kind, key, "cpu", count, *view))


def tensor(key, dtype, shape, *, offset=0, strides=None, count=None, view=()) -> Call:
    """A dense tensor, of a storage with that key."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    count = int(np.prod(shape)) if count is None else count
    held = storage(key, dtype, count, *view)
    hooks = Call(Global("collections", "OrderedDict"), ())
    args = (held, offset, tuple(shape), tuple(strides), False, hooks)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), args)


def state(arrays, view=()) -> tuple[dict, dict[str, bytes]]:
    """A state dict of arrays, and its storages; `view` is (None,) before torch 1.6."""
    held = {
        name: tensor(str(i), array.dtype.name, array.shape, view=view)
        for i, (name, array) in enumerate(arrays.items())
    }
    return held, {str(i): array.tobytes() for i, array in enumerate(arrays.values())}


def zipped(path, value, storages=(), *, compression=zipfile.ZIP_STORED, more=()):
    """A file of torch 1.6 and later."""
    pickle = value if isinstance(value, bytes) else whole(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
        for name, data in {"version": b"3\n", **dict(more)}.items():
            archive.writestr(f"archive/{name}", data)
    return path


def legacy(path, value, storages=(), *, width=4, counts=()):
    """A file of torch before 1.6: pickles, then the storages."""
    pickle = value if isinstance(value, bytes) else whole(value)
    magic = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"."
    file = io.BytesIO()
    for part in (magic, whole(1001), whole({"little_endian": True}), pickle):
        file.write(part)
    file.write(whole(list(dict(storages))))
    for key, data in dict(storages).items():
        file.write(struct.pack("<q", dict(counts).get(key, len(data) // width)) + data)
    path.write_bytes(file.getvalue())
    return path
