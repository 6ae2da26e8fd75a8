"""Which files of a folder are images, and which ones an operating system has left there."""

import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from xception_jax.config.schema import FOLDER_RULES
from xception_jax.data.render.containers import kind_of
from xception_jax.utils import retry

# By rules 1 images have one of the first 14 endings, only names with a dot are hidden, split
# folders have their exact names, and the classes of each folder are its own.
RULES = FOLDER_RULES

_ENDINGS_1 = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# Of the formats that OpenCV reads.
ENDINGS = (*_ENDINGS_1, ".jfif", ".jif")

# Names in lower case that macOS, Windows, NAS systems and notebooks leave, besides those with a
# dot (`.DS_Store`, `._photo.jpg`, `.ipynb_checkpoints`). NAS folders hold thumbnails of each image.
_SYSTEM = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
        *("system volume information", "lost+found", "@eadir", "@__thumb", "#recycle"),
        *("@recycle", "#snapshot", "@recently-snapshot", "__pycache__"),
    }
)
# Folders of these names, in any case, are splits and no classes, unless `train` is a class among
# cars and ships.
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A dot and a word: what a file is. In `photo.2019`, `photo.jpg?w=300` and `photo` there is none.
_ENDING = re.compile(r"\.[a-z][a-z0-9]{0,9}$|~$", re.IGNORECASE)
# Enough for a format's first bytes. Two letters that a text may begin with are not enough.
_HEAD = 64
_NO_TEXT = {
    "BMP": re.compile(rb"BM.{4}\0{4}.{4}[\x0c-\x7c]\0\0\0", re.DOTALL),
    "PNM": re.compile(rb"P[1-6]\s+(#.*\n\s*)*\d"),
}


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
      images: their names from that folder on.
      others: paths of files that are no images.
      hidden: paths that are not looked into: names with a dot, and those of systems.
      folders: the folders in it, not those further down.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Listing:
    """A part of a data set as it lies on the disk.

    Attributes:
      classes: `{name: its files}`, from the folder of the part on; both sorted.
      notes: what is to be said of how they were found.
      others: paths of files that are no examples, sorted.
      hidden: paths that were not looked into, sorted.
      missing: files that labels are known of, and that are not there.
    """

    classes: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    others: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def role_of(name: str) -> str | None:
    """Which part of a data set a usual name means: `train`, `validation`, `test`."""
    return ROLES.get(name.casefold())


def is_hidden(name: str, rules: int = RULES) -> bool:
    """Whether a file or folder of this name does not count."""
    return name.startswith(".") or (rules > 1 and name.lower() in _SYSTEM)


def folders_in(folder: str, rules: int = RULES) -> list[str]:
    """The names of the folders in a folder, sorted; raises `OSError`."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name, rules))


def find(folder: str, rules: int = RULES) -> Found:
    """Lists what lies below a folder, in no order; raises `OSError`.

    Links are followed, to no folder twice: they may be loops. A file without an ending is an image
    if its first bytes say so.
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
    for name in sorted(folders):  # of two links to one folder, the same one is taken everywhere
        _find(os.path.join(folder, name), f"{prefix}{name}/", found, endings, rules, seen)


def begins(path: str) -> bool:
    """Whether a file begins like an image; raises `OSError` where that cannot be said now."""
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

    macOS' older file system stores é as e and an accent (NFD); others keep what they are given.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(composed(name), []).append(name)
    return groups


def composed(name: str) -> str:
    """The name in Unicode's form NFC."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
