"""A short listing of a folder, for the error message about its layout."""

import itertools
import os
from typing import NoReturn

from xception_jax.data.readers.folder_files import ENDINGS, is_hidden
from xception_jax.errors import UsageError
from xception_jax.utils.text import printable

TAKES = (
    "it takes PATH/train/CLASS/*.jpg with PATH/val or PATH/test beside train, PATH/CLASS/*.jpg, or "
    "images with a PATH/labels.csv (columns file, label)"
)

# How much of a folder is shown, and how many entries are read.
_DEEP, _FOLDERS, _FILES, _NAME = 3, 4, 2, 40
_LOOKED_AT = 2000


def refuse(what: str, root: str, hint: str = "", error: type[UsageError] = UsageError) -> NoReturn:
    """Raises an error: the fault, the fix if it is known, and what the folder holds."""
    raise error(f"{what}{hint}; found: {draw(root)}; {TAKES}")


def draw(root: str) -> str:
    """The tree below a folder in one line: `pets/ (train/ (cat/ (2 images), ...), notes.txt)`.

    Limited in depth, names and length. A folder that cannot be read shows the reason.
    """
    return _draw(root, f"{printable(root.rstrip('/'))}/", _DEEP)


def _draw(folder: str, shown: str, deep: int) -> str:
    folders, files = [], []
    images = 0
    try:
        with os.scandir(folder) as entries:
            looked_at = list(itertools.islice(entries, _LOOKED_AT))
            for entry in looked_at:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif entry.name.lower().endswith(ENDINGS):
                    images += 1
                else:
                    files.append(entry.name)
    except OSError as error:
        return f"{shown} ({error.strerror})"
    if not deep:
        return f"{shown} (...)" if folders or images or files else f"{shown} (empty)"
    folders.sort()
    files.sort()
    parts = [
        _draw(os.path.join(folder, name), f"{printable(name, _NAME)}/", deep - 1)
        for name in folders[:_FOLDERS]
    ]
    parts += _rest(folders[_FOLDERS:], "folder")
    parts += [f"{images:,} image{'s' * (images != 1)}"] if images else []
    parts += [printable(name, _NAME) for name in files[:_FILES]]
    parts += _rest(files[_FILES:], "file")
    if len(looked_at) == _LOOKED_AT:
        parts.append("and more")
    return f"{shown} ({', '.join(parts) or 'empty'})"


def _rest(names: list[str], kind: str) -> list[str]:
    return [f"{len(names):,} more {kind}{'s' * (len(names) != 1)}"] if names else []
