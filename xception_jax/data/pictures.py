"""Pictures without labels: files, folders, patterns, addresses, lists, videos, arrays."""

import csv
import errno
import glob
import http.client
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np
from PIL import Image, ImageOps

from xception_jax.data import videos
from xception_jax.data.readers import folder_files
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError, UsageError
from xception_jax.utils.text import as_utf8, printable

# As of a folder's files: larger than any image that is decoded.
_MOST_BYTES = 2**30
_ADDRESS = re.compile("https?://", re.IGNORECASE)
# Seconds without an answer after which a server counts as silent.
_PATIENCE_S = 30.0
_TABLES = (".csv", ".tsv")


Name = str | videos.Frame


def find(
    names: Iterable[str], *, column: str = "", listed: TextIO | None = None, every: int = 1
) -> list[Name]:
    """The paths, addresses and frames that names stand for, in their order.

    Args:
      names: files, folders (all images below, in the order of their names), patterns
        (`photos/*.jpg`, `**` for folders of any depth) and `http(s)` addresses. `-` is a list, with
        one name per line. With `column`, a `.csv` or `.tsv` file is a list, too.
      column: the column of a table with the names, which start at the table's folder.
      listed: the text that `-` stands for.
      every: of a video, the first frame and each `every`-th one after it are pictures.

    Raises:
      UsageError: a name stands for no file, a table has no such column, or a video cannot be
        decoded. An entry of a list that is no file is kept: it is one picture that cannot be read.
    """
    found: list[Name] = []
    for name in names:
        if name == "-":
            if listed is None:
                raise UsageError("there is no list for '-'")
            found += [line for line in (line.rstrip("\r\n") for line in listed) if line.strip()]
        elif _ADDRESS.match(name):
            found.append(name)
        elif os.path.isdir(name):
            images = sorted(folder_files.list_files(name).images, key=_natural)
            if not images:
                raise UsageError(f"no image is in the folder {printable(name)} or below it")
            found += [os.path.join(name, image) for image in images]
        elif column and name.lower().endswith(_TABLES):
            found += _of_table(name, column)
        elif os.path.lexists(name):
            found += _pictures_of(name, every)
        elif glob.has_magic(name):
            matches = [path for path in glob.glob(name, recursive=True) if not os.path.isdir(path)]
            if not matches:
                raise UsageError(f"no file matches {printable(name)}")
            for path in sorted(matches, key=_natural):
                found += _pictures_of(path, every)
        else:
            raise UsageError(f"there is no file {printable(name)}")
    return found


def _pictures_of(path: str, every: int) -> Sequence[Name]:
    """The frames of a video; any other file is one picture."""
    if path.lower().endswith(videos.SUFFIXES):
        return videos.Video(path, every).frames()
    return [path]


def _natural(name: str) -> list[Any]:
    """`image2` before `image10`."""
    parts = re.split(r"(\d+)", name)
    return [part if i % 2 == 0 else (int(part), part) for i, part in enumerate(parts)]


def _of_table(path: str, column: str) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.lower().endswith(".tsv") else ",")
            if column not in (reader.fieldnames or ()):
                known = ", ".join(map(printable, reader.fieldnames or ["none"]))
                raise UsageError(f"{printable(path)} has no column {column!r}; it has: {known}")
            names = [row[column] for row in reader if row[column]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"{printable(path)} cannot be read as a table: {why}") from None
    folder = os.path.dirname(path)
    for name in names:
        yield name if _ADDRESS.match(name) else os.path.join(folder, name)


@dataclass(frozen=True)
class Pictures(Sequence[Any]):
    """The records of a `Source`: encoded images, all with label 0.

    Attributes:
      items: paths, addresses, frames of videos, Pillow images, or arrays, uint8 `[height, width,
        3]`, RGB.
      exif: whether to rotate Pillow images by their EXIF orientation.
    """

    items: Sequence[Any]
    exif: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        item = self.items[index]
        if isinstance(item, videos.Frame):
            data = _encoded(item.video.read(item.number), self.exif)
        elif isinstance(item, np.ndarray | Image.Image):
            data = _encoded(item, self.exif)
        elif isinstance(item, str) and _ADDRESS.match(item):
            data = _downloaded(item)
        else:
            with open(item, "rb", opener=_opened) as file:
                data = _bounded(file)
        return {"image": data, "label": 0}

    def describe(self, index: int) -> str:
        """The path or address of a picture, fit for JSON; its number where it has none."""
        item = self.items[index]
        if isinstance(item, np.ndarray | Image.Image):
            return f"image {index}"
        return as_utf8(str(item) if isinstance(item, videos.Frame) else os.fspath(item))


def stem(item: Name) -> str:
    """A name without folder and suffix, at most 100 bytes, for a file about a picture."""
    name = item.stem if isinstance(item, videos.Frame) else Path(item).stem
    return os.fsencode(name)[:100].decode(errors="ignore")


def _downloaded(address: str) -> bytes:
    """The content of an address; one that cannot be reached counts as a bad picture."""
    try:
        parts = urllib.parse.urlsplit(address)
        path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~")
        with urllib.request.urlopen(
            parts._replace(path=path, fragment="").geturl(), timeout=_PATIENCE_S
        ) as answer:
            return _bounded(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        status = getattr(error, "code", None)
        reason = f"the server answers {status}" if status else getattr(error, "reason", error)
        reason = printable(str(reason) or type(error).__name__, 200)
        raise ExampleError(address, f"cannot be read: {reason}") from None


def _opened(path: str, flags: int) -> int:
    """Opens a file; a pipe that has no writer is no reason to wait."""
    return os.open(path, flags | os.O_NONBLOCK)


def _bounded(file: Any) -> bytes:
    data = file.read(_MOST_BYTES + 1)
    if data is None:
        raise OSError(errno.EINVAL, "it is no regular file")
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    return bytes(data)


def _encoded(image: np.ndarray | Image.Image, exif: bool) -> bytes:
    """A lossless file of the pixels; a Pillow image is rotated as a file of it would be."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"a Pillow image of mode {image.mode} has no range; convert it to RGB")
        image = (ImageOps.exif_transpose(image) if exif else image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no image; expected is uint8 "
            f"[height, width, 3], RGB"
        )
    return cv2.imencode(".bmp", pixels[:, :, ::-1])[1].tobytes()


def source(items: Sequence[Any], exif: bool = True) -> Source:
    """A split of pictures, all of one class, in their order; see `Pictures`. Reads nothing yet."""
    records = Pictures(items, exif)
    return Source(
        name=f"{len(items):,} pictures",
        class_names=("",),
        records=records,
        image_key="image",
        label_key="label",
        describe=records.describe,
    )
