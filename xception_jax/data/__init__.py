"""From images on disk to batches on the devices; independent of the models.

Each module is imported on first use.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xception_jax.data import batches, order, readers, source, splits, transfer

# OpenCV reads this limit once, on import. It refuses a larger image before it allocates memory for
# the pixels. So a decode takes at most 846 MB, see `decode.examine` and docs/data.md.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**27))

__all__ = ["batches", "order", "readers", "source", "splits", "transfer"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
