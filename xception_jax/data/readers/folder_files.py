"""Which files of a folder are images, and which ones belong to an operating system."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from xception_jax.config.schema import FOLDER_RULES
from xception_jax.data.render.containers import kind_of
from xception_jax.utils import retry

# With rules 1, images have one of the first 14 endings, and only names with a leading dot are
# hidden. Split folders have exactly the names of splits. Each split folder has its own classes.
RULES = FOLDER_RULES

_ENDINGS_1 = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# Endings of the formats that OpenCV reads.
ENDINGS = (*_ENDINGS_1, ".jfif", ".jif")

# Names in lower case that macOS, Windows, NAS systems and notebooks create. Others begin with a dot
# (`.DS_Store`, `._photo.jpg`, `.ipynb_checkpoints`). NAS folders hold thumbnails of each image.
_SYSTEM = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "lost+found", "@eadir", "@__thumb", "#recycle"),
        *("@recycle", "#snapshot", "@recently-snapshot", "__pycache__"),
    }
)
# Folders with these names, in any case, are splits and not classes. The exception: `train` may be
# a class, beside cars and ships.
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A file type: a dot and a word. `photo.2019`, `photo.jpg?w=300` and `photo` have none.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,9}$|~$", re.IGNORECASE)
# Enough bytes to recognize a format. The two letters of BMP and PNM may also begin a text.
_HEAD = 64
_NO_TEXT = {
    "BMP": re.compile(rb"BM.{4}\0{4}.{4}[\x0c-\x7c]\0\0\0", re.DOTALL),
    "PNM": re.compile(rb"P[1-6]\s+(#.*\n\s*)*\d"),
}


@dataclass
class Found:
    """The files below a folder.

    Attributes:
      images: paths of the images, relative to the folder.
      others: paths of files that are not images.
      hidden: paths that are ignored: names with a leading dot, and system files.
      folders: the folders directly in it.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """The files of a part of a data set.

    Attributes:
      classes: `{name: its files}`, relative to the folder of the part; both sorted.
      notes: lines for the user about the listing.
      others: paths of files that are not examples, sorted.
      hidden: paths that are ignored, sorted.
      missing: files that have a label and do not exist.
    """

    classes: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def role_of(name: str) -> str | None:
    """The part of a data set that a usual name means: `train`, `validation` or `test`."""
    return ROLES.get(name.casefold())


def is_hidden(name: str, rules: int = RULES) -> bool:
    """Whether a file or folder of this name is ignored."""
    return name.startswith(".") or (rules > 1 and name.lower() in _SYSTEM)


def folders_in(folder: str, rules: int = RULES) -> list[str]:
    """The names of the folders in a folder, sorted; raises `OSError`."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name, rules))


def list_files(folder: str, rules: int = RULES) -> Found:
    """Lists the files below a folder, in no particular order; raises `OSError`.

    Links are followed, but no folder is visited twice: links may form loops. A file without an
    ending is an image if its first bytes are those of an image.
    """
    found = Found()
    endings = ENDINGS if rules > 1 else _ENDINGS_1
    _find(folder, "", found, endings, rules, set())
    return found


def _find(
    folder: str,
    prefix: str,
    found: Found,
    endings: tuple[str, ...],
    rules: int,
    seen: set[tuple[int, int]],
) -> None:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if is_hidden(name, rules):
                found.hidden.append(entry.path)
            elif name.lower().endswith(endings) and entry.is_file():
                found.images.append(prefix + name)
            elif entry.is_dir():
                folders.append(name)
            elif rules > 1 and not _ENDING.search(name) and entry.is_file() and begins(entry.path):
                found.images.append(prefix + name)
            else:
                found.others.append(entry.path)
    if not prefix:
        found.folders.extend(sorted(folders))
    for name in sorted(folders):  # sorted: of two links to a folder every machine takes the same
        _find(os.path.join(folder, name), f"{prefix}{name}/", found, endings, rules, seen)


def begins(path: str) -> bool:
    """Whether a file begins like an image; raises `OSError` after a transient error."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        if retry.transient(error):
            raise
        return False
    kind = kind_of(head)
    return kind is not None and (kind not in _NO_TEXT or _NO_TEXT[kind].match(head) is not None)


def same_form(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names that differ only in their Unicode form: `{NFC: names, sorted}`.

    The older file system of macOS stores é as e and an accent (NFD); others keep the given form.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(composed(name), []).append(name)
    return groups


def composed(name: str) -> str:
    """The name in Unicode form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
