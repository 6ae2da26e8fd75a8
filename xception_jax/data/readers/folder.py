"""A folder of images as a data set, without preparation: folders name the classes.

Three layouts are read. In `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg` a folder names each
split. In `PATH/CLASS/*.jpg` a share of each class is held out; the splits are `train` and `test`.
Or a table of labels is stored beside the images. See `folder_layout` and `label_file`.

Nothing depends on the order in which a disk lists its files. The examples of a split are sorted by
a hash of their names. So are the files of each class before it is split into `train` and `test`.
So `train[:10%]` has about that share of every class (of a small class perhaps nothing). A file
added to one class moves at most one file of that class to the other split, and none of another
class.
"""

import dataclasses
import errno
import functools
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from xception_jax.data.readers import folder_layout, folder_tree
from xception_jax.data.readers.folder_files import RULES, Listing, composed, role_of
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import NoSplitError, UsageError
from xception_jax.utils import retry
from xception_jax.utils.text import as_utf8, printable

T = TypeVar("T")

# More bytes than the largest image that is decoded takes without compression.
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class Files(Sequence[Any]):
    """The records of a split: `files[i]` is `{"image": bytes, "label": int}`.

    Attributes:
      root: the folder.
      names: paths of the files, relative to `root`.
      labels: int32 `[len(names)]`.
    """

    root: str
    names: Sequence[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """Reads a file; raises `OSError`, or `ValueError` if it is too large."""
        with open(os.path.join(self.root, self.names[index]), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"it has {size:,} bytes, more than {_MOST_BYTES:,}")
            data = file.read()
            if data is None or len(data) != size:  # None: EAGAIN
                raise OSError(errno.EAGAIN, "its size changed while it was read")
            return {"image": data, "label": int(self.labels[index])}

    def path_of(self, index: int) -> str:
        """The path of a file."""
        return os.path.join(self.root, self.names[index])

    def describe(self, index: int) -> str:
        """The path of a file, encodable as JSON."""
        return as_utf8(self.path_of(index))


@dataclass(frozen=True)
class RankedSplit:
    """A complete split, its files sorted by rank.

    Attributes:
      classes: names of the classes.
      names: paths of the files, relative to the data set's folder, by rank.
      labels: int32, labels of the files.
      listing: the listing of the split, without its classes, which would store each name twice.
      files: number of files in the listing.
      notes: lines about the split for the user.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: np.ndarray
    listing: Listing
    files: int
    notes: tuple[str, ...]


# A folder's layout, and the parts whose sum is the requested split.
Parts = tuple[folder_layout.FolderLayout, list[tuple[RankedSplit, slice]]]


def open_split(
    path: str,
    split: str,
    data_dir: str = "",
    *,
    test_share: float = 0.2,
    split_seed: int = 0,
    most_missing: float = 0.001,
    hold_out: str = "",
    rules: int = RULES,
) -> Source:
    """Opens a split of a folder of images.

    A process lists the folder once.

    Args:
      path: the folder, or a table of labels, `.csv`; a relative path starts at `data_dir`.
      split: the name of a folder in it, in any case, or a synonym. `train` or `test` if these are
        split from one set of classes. `test` is the validation part if there is no test part.
        Parts and sums as in TFDS, `train[:10%]`.
      data_dir: see `path`; empty: the current folder.
      test_share: share of each class that is held out as `test`, if there is only one set of
        classes. Rounded to files; never all of them, and at least one of two or more.
      split_seed: seed of that split and of the order of the records.
      most_missing: share of the files in a table of labels that may be missing.
      hold_out: the name of the held-out part, `test` or `validation`. It is also split from a
        training part if that is the only part. Empty: split from a set of classes only, as `test`.
      rules: see `folder_files.RULES`.

    Returns:
      A `Source`. Its name contains a digest of its file names in their order, so that a resumed run
      detects a change.

    Raises:
      UsageError: there is no such folder or split, or there are fewer than two classes with images.
    """
    dataset = FOLDER + path
    root = path_of(path, data_dir)
    find = partial(folder_layout.find_layout, root, rules, hold_out)
    listed = partial(_parts, find, split, test_share, split_seed)
    layout, parts = _listed(dataset, root, listed)
    names = [name for ranked, part in parts for name in ranked.names[part]]
    labels = np.concatenate([ranked.labels[part] for ranked, part in parts])
    if not names:
        raise UsageError(f"{split!r} of {root} is empty")
    classes = parts[0][0].classes
    if any(ranked.classes != classes for ranked, _ in parts):
        raise UsageError(f"the parts of {split!r} of {root} have different classes")
    once = list({id(ranked): ranked for ranked, _ in parts}.values())
    _check_missing(layout, once, most_missing)
    files = Files(layout.folder, names, labels)
    return Source(
        name=f"{dataset}@{_digest(layout, names, classes, labels)}:{split}",
        class_names=classes,
        records=files,
        image_key="image",
        label_key="label",
        describe=files.describe,
        summary=_summarize(f"{split!r} of {printable(root)}", classes, labels, once),
    )


def all_or_test(path: str, data_dir: str = "") -> str:
    """The name of all examples of a folder without splits; of another folder, `test`."""
    return "test+train" if layout_of(path, data_dir).divided == "" else "test"


def layout_of(path: str, data_dir: str = "", rules: int = RULES) -> folder_layout.FolderLayout:
    """The layout of a folder, without a part that is held out of `train`; see `open_split`."""
    root = path_of(path, data_dir)
    return _listed(FOLDER + path, root, partial(folder_layout.find_layout, root, rules))


def path_of(path: str, data_dir: str) -> str:
    """The path of a data set, which starts at `data_dir` if it is relative."""
    return os.path.join(os.path.expanduser(data_dir), os.path.expanduser(path))


def _listed(dataset: str, root: str, listed: Callable[[], T]) -> T:
    """Lists what is requested; retries after a transient error."""
    try:
        return retry.reading(listed, root)
    except OSError as error:
        where = printable(error.filename or root)
        raise UsageError(
            f"{dataset} cannot be read: '{where}': {error.strerror}"
            f"{folder_layout.missing(root)}; {folder_tree.TAKES}"
        ) from None


def names_of(source: Source) -> list[str] | None:
    """The files of a split in record order, relative to its folder; None: it is not a folder.

    Control characters in names are escaped, so that each name is one line.
    """
    files = source.records
    if not isinstance(files, Files):
        return None
    return [printable(as_utf8(name)) for name in files.names]


def _digest(
    layout: folder_layout.FolderLayout,
    names: list[str],
    classes: tuple[str, ...],
    labels: np.ndarray,
) -> str:
    """A digest of the names in their order; with a table of labels also of the labels."""
    told = [f"{classes[label]}/{name}" for name, label in zip(names, labels, strict=True)
            ] if layout.labels else names  # fmt: skip
    text = "\0".join(told).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def _parts(
    find: Callable[[], folder_layout.FolderLayout], split: str, test_share: float, seed: int
) -> Parts:
    """The parts whose sum is a split; TFDS parses the split's name."""
    import tensorflow_datasets as tfds  # 0.2 s, which a prediction does not need

    layout = find()
    asked = folder_layout.names_in(split)
    found = {name: _find(layout, name, split) for name in asked}
    ranked = {name: _read_split(layout, own, name, test_share, seed) for name, own in found.items()}
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(one.names)], num_bytes=0)
        for name, one in ranked.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{layout.root} has no split {split!r}: {reason}") from None
    return layout, [(ranked[part.splitname], slice(part.from_, part.to)) for part in parts]


def _find(layout: folder_layout.FolderLayout, name: str, split: str) -> str:
    """The split that a name means; raises `NoSplitError`, or `UsageError` for an empty one."""
    if (found := layout.find(name)) is not None:
        return found
    bare = [own for own in layout.unlabelled if own == name or role_of(own) == role_of(name)]
    if bare:
        folder = os.path.join(layout.root, bare[0])
        folder_tree.refuse(f"{folder} holds no folder with an image in it", layout.root)
    names = ", ".join(layout.names) or "none"
    return folder_tree.refuse(
        f"{layout.root} has no split {split!r}; it has: {names}", layout.folder, error=NoSplitError
    )


@functools.lru_cache(maxsize=4)
def _read_split(
    layout: folder_layout.FolderLayout, split: str, asked: str, test_share: float, seed: int
) -> RankedSplit:
    """Ranks a split, once in a process: there may be a million files."""
    listing = layout.listing(split)
    own, files = listing.classes, sum(map(len, listing.classes.values()))
    listing = dataclasses.replace(listing, classes={})
    notes: list[str] = []
    if layout.divided is None or split == "train":  # one of two parts reports on their listing
        notes += listing.notes
    else:
        listing = dataclasses.replace(listing, others=[], hidden=[])
    classes = _classes(layout, split, own, notes)
    if layout.divided is not None:
        own = _part_of(layout, own, split, test_share, seed, notes)
    if split != asked:
        notes.insert(0, f"{asked!r} is {split!r} here")
    number = {composed(name): i for i, name in enumerate(classes)} if classes != (*own,) else {}
    names = [file for files in own.values() for file in files]
    labels = np.repeat(
        np.array([number.get(composed(name), i) for i, name in enumerate(own)], np.int32),
        [len(files) for files in own.values()],
    )
    rank = _ranking(seed)
    order = np.argsort(np.fromiter(map(rank, names), np.uint64, len(names)), kind="stable")
    folder = split if layout.divided is None else layout.divided
    prefix = f"{folder}/" if folder and not layout.labels else ""
    ranked = [prefix + names[i] for i in order]
    return RankedSplit(classes, ranked, labels[order], listing, files, tuple(notes))


def _classes(
    layout: folder_layout.FolderLayout, split: str, own: dict[str, list[str]], notes: list[str]
) -> tuple[str, ...]:
    """The classes of a split: its own, or those of the training part if it has no others."""
    training = layout.classes(split)
    known = set(map(composed, training or ()))
    more = [name for name in own if composed(name) not in known]
    if training is not None and more and role_of(split):
        folder_layout.refuse_classes(layout, split, more)
    if training is None or more:
        folder_layout.check_classes(layout, split, own)
        return tuple(own)
    there = {composed(name) for name, files in own.items() if files}
    lacking = [name for name in training if composed(name) not in there]
    if lacking:
        few = ", ".join(map(printable, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
        notes.append(f"classes of the training part without an image: {len(lacking):,}: {few}")
    return training


def _part_of(
    layout: folder_layout.FolderLayout,
    classes: dict[str, list[str]],
    split: str,
    test_share: float,
    seed: int,
    notes: list[str],
) -> dict[str, list[str]]:
    """The part of each class that is `train`, or the one that is held out."""
    rank = _ranking(seed)
    part = {}
    for name, files in classes.items():
        ranked = sorted(files, key=rank)
        held_out = min(max(1, math.floor(test_share * len(files) + 0.5)), len(files) - 1)
        part[name] = ranked[held_out:] if split == "train" else ranked[:held_out]
    single = [name for name, files in classes.items() if len(files) == 1]
    if len(single) == len(classes):
        folder_tree.refuse(
            f"every class of {layout.root} has one image, so none can be held out", layout.folder
        )
    if single:
        named = ", ".join(map(printable, single[:5])) + (", ..." if len(single) > 5 else "")
        notes.append(f"classes of one image, which 'train' has: {len(single):,}: {named}")
    if layout.divided:
        notes.append(f"{layout.held!r} is the part of {layout.divided!r} that is held out")
    return part


def _check_missing(
    layout: folder_layout.FolderLayout, splits: list[RankedSplit], most: float
) -> None:
    missing = [name for split in splits for name in split.listing.missing]
    there = sum(split.files for split in splits)
    share = len(missing) / (len(missing) + there)
    if share > most:
        raise UsageError(
            f"{len(missing):,} of the {len(missing) + there:,} files in {layout.labels} are "
            f"missing, for example {printable(missing[0], 80)!r}: more than the allowed share of "
            f"{most:g}. Unpack all of them, or raise config.data.max_skipped"
        )


def _ranking(seed: int) -> Callable[[str], int]:
    """Ranks names, `CLASS/FILE`, by a hash whose key is the seed."""
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))

    def rank(name: str) -> int:
        digest = keyed.copy()
        digest.update(name.encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest(), "little")

    return rank


def _summarize(
    what: str, classes: tuple[str, ...], labels: np.ndarray, splits: list[RankedSplit]
) -> str:
    """Numbers of classes and images, smallest and largest class, skipped files; then the notes."""
    counts = np.bincount(labels, minlength=len(classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    text = (
        f"{what}: {len(labels):,} images, {len(classes):,} classes of {counts[least]:,} "
        f"({printable(classes[least])}) to {counts[most]:,} ({printable(classes[most])})"
    )
    others = sorted({name for split in splits for name in split.listing.others})
    hidden = sorted({name for split in splits for name in split.listing.hidden})
    for kind, unit, left_out in (
        ("not an image of a class", " files", others), ("hidden or system files", "", hidden),
    ):  # fmt: skip
        if left_out:
            named = ", ".join(map(printable, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
            text += f"; left out as {kind}: {len(left_out):,}{unit}: {named}"
    notes = dict.fromkeys(note for split in splits for note in split.notes)
    return "\n".join([text, *notes])
