"""Where the package keeps what it can make again."""

import os
from pathlib import Path


def folder() -> Path:
    """In the folder that `XDG_CACHE_HOME` names, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xception_jax"
