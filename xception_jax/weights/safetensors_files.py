"""Reads `.safetensors` files with the library, after a check of the header's size."""

from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from xception_jax.errors import UsageError
from xception_jax.utils.text import printable
from xception_jax.weights import files
from xception_jax.weights.files import Stored

# The header of Xception 71 has 0.1 MB, and 20,000 class names add another 0.1 MB.
_MAX_HEADER = 16 << 20

_TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
    "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_, "C64": np.complex64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip


def read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """A file's tensors, which are read on access, and its metadata.

    Raises:
      UsageError: the file is damaged or not a `.safetensors` file.
    """
    from safetensors import safe_open

    size = files.check_file(path)
    try:
        with path.open("rb") as start:
            header = int.from_bytes(start.read(8), "little")
        if not 2 <= header <= min(size - 8, _MAX_HEADER):
            raise ValueError(f"its first eight bytes declare a header of {header:,} bytes")
        file = safe_open(path, framework="numpy")
        metadata = file.metadata() or {}
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        kinds = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except Exception as error:
        raise UsageError(
            f"{path} is damaged or not a .safetensors file: {files.reason(error)}"
        ) from None
    found = {}
    for name, (shape, kind) in kinds.items():
        if kind not in _TYPES:
            raise UsageError(f"{path}: {printable(name, 80)} is {printable(kind, 40)}; expected "
                             f"bfloat16 or a type of 16, 32 or 64 bits")  # fmt: skip
        found[name] = Stored(shape, np.dtype(_TYPES[kind]), partial(file.get_tensor, name))
    return found, metadata
