"""Imports Python files of the user, which register models, data sources and other parts."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from xception_jax.errors import UsageError


def find_beside(path: Path) -> None:
    """Adds the folder of a file to the import path, after installed packages.

    Worker processes get the same import path.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)


def load(names: Sequence[str]) -> None:
    """Imports modules.

    Args:
      names: names of modules, as `my_package.my_model`, or paths of files, which end in `.py`.

    Raises:
      UsageError: a module cannot be imported, or another module has the name of a file.
    """
    for name in names:
        path = Path(name).expanduser().resolve() if name.endswith(".py") else None
        if path is not None:
            if not path.is_file():
                raise UsageError(f"--imports={name}: there is no such file")
            find_beside(path)
        try:
            module = importlib.import_module(path.stem if path else name)
        except UsageError:
            raise
        except Exception as error:  # it is a program and may raise anything
            kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(f"--imports={name}: {kind}{reason}") from None
        if path is not None and Path(module.__file__ or "").resolve() != path:
            raise UsageError(
                f"--imports={name}: {module.__file__ or 'Python itself'} is a module of the same "
                f"name; rename the file"
            )
