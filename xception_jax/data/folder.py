"""A folder of images as a data set, read as it is: the name of a class is that of its folder.

Either `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg`, where a split is named like its folder,
or `PATH/CLASS/*.jpg`, of which a share of each class is held out: the splits are `train` and `test`
then. What lies in folders inside a class belongs to the class. Names that start with a dot do not
count; files that are not named like images are left out, and told of.

Nothing depends on the order in which a disk lists its files. A split's examples are ranked by a
hash of their names, as is each class for the cut into `train` and `test`. So a part of a split,
`train[:10%]`, holds about its share of every class (of a small one perhaps nothing), and a file
that is added to one class moves no file of another class to the other split, and at most one of its
own.
"""

import errno
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from xception_jax import retry
from xception_jax.data.sources import FOLDER, Source
from xception_jax.errors import UsageError
from xception_jax.text import as_utf8, printable

# Of the formats that OpenCV reads.
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)
# Folders of these names are splits and no classes, unless `train` is a class among cars and ships.
_SPLITS = {"dev", "eval", "test", "testing", "train", "training", "val", "valid", "validation"}
# More than an image of the largest size that is decoded takes without any compression.
_MOST_BYTES = 2**30
_LAYOUTS = "it takes PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg, or PATH/CLASS/*.jpg"


@dataclass(frozen=True)
class Files(Sequence[Any]):
    """The records of a split: `files[i]` is `{"image": bytes, "label": int}`.

    Attributes:
      root: the folder.
      names: of the files, from `root` on.
      labels: int32 `[len(names)]`.
    """

    root: str
    names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """Reads a file; raises `OSError`, or `ValueError` where it is too large."""
        with open(os.path.join(self.root, self.names[index]), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes, more than {_MOST_BYTES:,}")
            data = file.read()
            if data is None or len(data) != size:  # what Python makes of EAGAIN, or of a new file
                raise OSError(errno.EAGAIN, "its size changed while it was read")
            return {"image": data, "label": int(self.labels[index])}

    def describe(self, index: int) -> str:
        """The path of a file, fit for JSON."""
        return as_utf8(os.path.join(self.root, self.names[index]))


@dataclass(frozen=True)
class Whole:
    """A whole split.

    Attributes:
      classes: their names.
      names: of the files, from the data set's folder on, by rank.
      labels: int32, of the files.
      ignored: files that are no examples.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: np.ndarray
    ignored: list[str]


def open_split(
    path: str, split: str, data_dir: str = "", *, test_share: float = 0.2, split_seed: int = 0
) -> Source:
    """Opens a split of a folder of images.

    What the folder holds is listed once in a process.

    Args:
      path: of the folder; a relative one starts at `data_dir`.
      split: the name of a folder in it, or `train` or `test` where it holds the classes themselves;
        parts and sums as in TFDS, `train[:10%]`.
      data_dir: see `path`; empty: the current folder.
      test_share: of each class, held out as `test` where the folder holds the classes themselves;
        rounded to whole files, at least one and not all.
      split_seed: of that cut and of the order of the records.

    Returns:
      A `Source` whose name holds a digest of its files' names in their order, so that a run notices
      when it would go on with others.

    Raises:
      UsageError: there is no such folder or split, or no two classes with images each.
    """
    dataset = FOLDER + path
    root = os.path.join(os.path.expanduser(data_dir), os.path.expanduser(path))
    try:
        parts = retry.reading(partial(_parts, root, split, test_share, split_seed), root)
    except OSError as error:
        where = printable(error.filename or root)
        raise UsageError(
            f"{dataset} cannot be read: '{where}': {error.strerror}; {_LAYOUTS}"
        ) from None
    names = [name for whole, part in parts for name in whole.names[part]]
    labels = np.concatenate([whole.labels[part] for whole, part in parts])
    if not names:
        raise UsageError(f"{split!r} of {root} is empty")
    classes = parts[0][0].classes
    if any(whole.classes != classes for whole, _ in parts):
        raise UsageError(f"the parts of {split!r} of {root} have different classes")
    digest = hashlib.blake2b("\0".join(names).encode(errors="surrogateescape"), digest_size=4)
    files = Files(root, names, labels)
    ignored = {name for whole, _ in parts for name in whole.ignored}
    return Source(
        name=f"{dataset}@{digest.hexdigest()}:{split}",
        class_names=classes,
        records=files,
        image_key="image",
        label_key="label",
        describe=files.describe,
        summary=f"{split!r} of {printable(root)}: {_summarize(classes, labels, sorted(ignored))}",
    )


def _parts(root: str, split: str, test_share: float, seed: int) -> list[tuple[Whole, slice]]:
    """The parts that a split is the sum of, by TFDS' own reading of its name."""
    known = _split_folders(root) or ["test", "train"]
    names = {part.strip().partition("[")[0] for part in split.split("+")}
    if not names <= set(known):
        raise UsageError(f"{root} has no split {split!r}; it has: {', '.join(known)}")
    wholes = {name: _read_split(root, name, test_share, seed) for name in sorted(names)}
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(whole.names)], num_bytes=0)
        for name, whole in wholes.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{root} has no split {split!r}: {reason}") from None
    return [(wholes[part.splitname], slice(part.from_, part.to)) for part in parts]


@functools.lru_cache(maxsize=4)
def _read_split(root: str, split: str, test_share: float, seed: int) -> Whole:
    """Lists and ranks a split, once in a process: there may be a million files."""
    if _split_folders(root):
        folder = os.path.join(root, split)
        prefix, (classes, ignored) = f"{split}/", _list_classes(folder)
    else:
        prefix, (classes, ignored) = "", _list_classes(root)
        classes = {
            name: _cut(root, name, files, split, test_share, seed)
            for name, files in classes.items()
        }
    names = [f"{name}/{file}" for name, files in classes.items() for file in files]
    counts = [len(files) for files in classes.values()]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
    rank = _ranking(seed)
    order = np.argsort(np.fromiter(map(rank, names), np.uint64, len(names)), kind="stable")
    return Whole(tuple(classes), [prefix + names[i] for i in order], labels[order], ignored)


def _split_folders(root: str) -> list[str]:
    """The splits that lie in the folder; none where it holds the classes themselves."""
    folders = _folders_in(root)
    names = {name.lower() for name in folders}
    if names <= _SPLITS:
        return folders
    if "train" not in folders:
        return []
    return folders if len(names & _SPLITS) > 1 or _folders_in(os.path.join(root, "train")) else []


def _folders_in(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _list_classes(folder: str) -> tuple[dict[str, list[str]], list[str]]:
    """The files of each class, both sorted by name, and those that are no images."""
    classes: dict[str, list[str]] = {}
    ignored: list[str] = []
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    for name, is_folder in found:
        if name.startswith("."):
            continue
        if not is_folder:
            ignored.append(os.path.join(folder, name))
            continue
        files: list[str] = []
        _collect(os.path.join(folder, name), "", files, ignored, set())
        classes[name] = sorted(files)
    _check_classes(folder, classes)
    return classes, ignored


def _collect(
    folder: str, prefix: str, files: list[str], others: list[str], seen: set[tuple[int, int]]
) -> None:
    """Adds the files below `folder`. Links are followed, to no folder twice: they may be loops."""
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(EXTENSIONS) and entry.is_file():
                files.append(prefix + entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
            else:
                others.append(entry.path)
    for name in sorted(folders):  # of two links to one folder, the same one is taken everywhere
        _collect(os.path.join(folder, name), f"{prefix}{name}/", files, others, seen)


def _check_classes(folder: str, classes: dict[str, list[str]]) -> None:
    if not any(classes.values()):
        raise UsageError(f"{folder} holds no folder with an image in it; {_LAYOUTS}")
    for name, files in classes.items():
        if name != as_utf8(name):
            raise UsageError(f"{folder} has a folder whose name is no UTF-8: {printable(name)}")
        if not files:
            raise UsageError(
                f"class {name!r} is empty: no image lies in {os.path.join(folder, name)}; an image "
                f"is a file whose name ends in {', '.join(sorted(EXTENSIONS))}"
            )
    if len(classes) < 2:
        raise UsageError(f"{folder} holds one class, {next(iter(classes))!r}; two are the least")


def _cut(
    root: str, name: str, files: list[str], split: str, test_share: float, seed: int
) -> list[str]:
    """The part of a class that is `train` or `test`."""
    if len(files) < 2:
        raise UsageError(
            f"class {name!r} of {root} has one image; train and test take one each at least"
        )
    rank = _ranking(seed)
    ranked = sorted(files, key=lambda file: rank(f"{name}/{file}"))
    held_out = min(max(1, math.floor(test_share * len(files) + 0.5)), len(files) - 1)
    return ranked[:held_out] if split == "test" else ranked[held_out:]


def _ranking(seed: int) -> Callable[[str], int]:
    """Ranks names, `CLASS/FILE`, by a hash that the seed is the key of."""
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))

    def rank(name: str) -> int:
        digest = keyed.copy()
        digest.update(name.encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest(), "little")

    return rank


def _summarize(classes: tuple[str, ...], labels: np.ndarray, ignored: list[str]) -> str:
    """Classes, images, the least and the most of a class, and what was left out; one line."""
    counts = np.bincount(labels, minlength=len(classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    text = (
        f"{len(labels):,} images, {len(classes):,} classes of {counts[least]:,} "
        f"({printable(classes[least])}) to {counts[most]:,} ({printable(classes[most])})"
    )
    if ignored:
        named = ", ".join(map(printable, ignored[:3])) + (", ..." if len(ignored) > 3 else "")
        text += f"; left out as no image of a class: {len(ignored):,} files: {named}"
    return text
