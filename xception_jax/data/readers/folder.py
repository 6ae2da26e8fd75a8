"""A folder of images as a data set, read as it is: the name of a class is that of its folder.

Either `PATH/train/CLASS/*.jpg` and `PATH/test/CLASS/*.jpg`, where a split is named like its folder,
or `PATH/CLASS/*.jpg`, of which a share of each class is held out: the splits are `train` and `test`
then. Or images with a table of labels beside them. See `folder_layout` and `label_file`.

Nothing depends on the order in which a disk lists its files. A split's examples are ranked by a
hash of their names, as is each class for the cut into `train` and `test`. So a part of a split,
`train[:10%]`, holds about its share of every class (of a small one perhaps nothing), and a file
that is added to one class moves no file of another class to the other split, and at most one of its
own.
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
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from xception_jax.data.readers import folder_layout, folder_tree
from xception_jax.data.readers.folder_files import RULES, Listing, composed, role_of
from xception_jax.data.source import FOLDER, Source
from xception_jax.errors import UsageError
from xception_jax.utils import retry
from xception_jax.utils.text import as_utf8, printable

# More than an image of the largest size that is decoded takes without any compression.
_MOST_BYTES = 2**30


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
      listing: what it was made of, without the classes: a million names need not be held twice.
      files: in them.
      notes: what is to be said of it.
    """

    classes: tuple[str, ...]
    names: list[str]
    labels: np.ndarray
    listing: Listing
    files: int
    notes: tuple[str, ...]


# How a folder is laid out, and the parts that a split is the sum of.
Parts = tuple[folder_layout.FolderLayout, list[tuple[Whole, slice]]]


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

    What the folder holds is listed once in a process.

    Args:
      path: of the folder, or of a table of labels, `.csv`; a relative one starts at `data_dir`.
      split: the name of a folder in it, in any case or by another usual name, or `train` or `test`
        where these are cut from one set of classes; `test` is the validation part where there is
        no test; parts and sums as in TFDS, `train[:10%]`.
      data_dir: see `path`; empty: the current folder.
      test_share: of each class, held out as `test` where only one set of classes is there; rounded
        to whole files, and not all. Of two files or more at least one.
      split_seed: of that cut and of the order of the records.
      most_missing: share of the files in a table of labels that may not be there.
      hold_out: the name of the part that is held out, `test` or `validation`; it is cut from a
        training part too where that is all there is. Empty: from classes alone, as `test`.
      rules: see `folder_files.RULES`.

    Returns:
      A `Source` whose name holds a digest of its files' names in their order, so that a run notices
      when it would go on with others.

    Raises:
      UsageError: there is no such folder or split, or no two classes with images each.
    """
    dataset = FOLDER + path
    root = os.path.join(os.path.expanduser(data_dir), os.path.expanduser(path))
    find = partial(folder_layout.find, root, rules, hold_out)
    listed = partial(_parts, find, split, test_share, split_seed)
    layout, parts = _read(dataset, root, listed)
    names = [name for whole, part in parts for name in whole.names[part]]
    labels = np.concatenate([whole.labels[part] for whole, part in parts])
    if not names:
        raise UsageError(f"{split!r} of {root} is empty")
    classes = parts[0][0].classes
    if any(whole.classes != classes for whole, _ in parts):
        raise UsageError(f"the parts of {split!r} of {root} have different classes")
    once = list({id(whole): whole for whole, _ in parts}.values())
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


def _read(dataset: str, root: str, listed: Callable[[], Parts]) -> Parts:
    """Lists what is asked for, again where that fails for a passing reason."""
    try:
        return retry.reading(listed, root)
    except OSError as error:
        where = printable(error.filename or root)
        raise UsageError(
            f"{dataset} cannot be read: '{where}': {error.strerror}"
            f"{folder_layout.missing(root)}; {folder_tree.TAKES}"
        ) from None


def names_of(source: Source) -> list[str] | None:
    """The files of a split in the order of its records, from its folder on; None: it has none.

    Control characters in names are shown as escapes, so that each is a line.
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
    """Of the names in their order; with a table, which may change, of the labels too."""
    told = [f"{classes[label]}/{name}" for name, label in zip(names, labels, strict=True)
            ] if layout.labels else names  # fmt: skip
    text = "\0".join(told).encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def _parts(
    find: Callable[[], folder_layout.FolderLayout], split: str, test_share: float, seed: int
) -> Parts:
    """The parts that a split is the sum of, by TFDS' own reading of its name."""
    layout = find()
    asked = folder_layout.names_in(split)
    found = {name: _find(layout, name, split) for name in asked}
    wholes = {name: _read_split(layout, own, name, test_share, seed) for name, own in found.items()}
    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=[len(whole.names)], num_bytes=0)
        for name, whole in wholes.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{layout.root} has no split {split!r}: {reason}") from None
    return layout, [(wholes[part.splitname], slice(part.from_, part.to)) for part in parts]


def _find(layout: folder_layout.FolderLayout, name: str, split: str) -> str:
    """The split that a name means; raises `UsageError`."""
    if (found := layout.find(name)) is not None:
        return found
    bare = [own for own in layout.unlabelled if own == name or role_of(own) == role_of(name)]
    if bare:
        folder = os.path.join(layout.root, bare[0])
        folder_tree.refuse(f"{folder} holds no folder with an image in it", layout.root)
    names = ", ".join(layout.names) or "none"
    return folder_tree.refuse(
        f"{layout.root} has no split {split!r}; it has: {names}", layout.folder
    )


@functools.lru_cache(maxsize=4)
def _read_split(
    layout: folder_layout.FolderLayout, split: str, asked: str, test_share: float, seed: int
) -> Whole:
    """Ranks a split, once in a process: there may be a million files."""
    listing = layout.listing(split)
    own, files = listing.classes, sum(map(len, listing.classes.values()))
    listing = dataclasses.replace(listing, classes={})
    notes: list[str] = []
    if layout.whole is None or split == "train":  # of two parts of one listing, one tells of it
        notes += listing.notes
    else:
        listing = dataclasses.replace(listing, others=[], hidden=[])
    classes = _classes(layout, split, own, notes)
    if layout.whole is not None:
        own = _cut(layout, own, split, test_share, seed, notes)
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
    folder = split if layout.whole is None else layout.whole
    prefix = f"{folder}/" if folder and not layout.labels else ""
    ranked = [prefix + names[i] for i in order]
    return Whole(classes, ranked, labels[order], listing, files, tuple(notes))


def _classes(
    layout: folder_layout.FolderLayout, split: str, own: dict[str, list[str]], notes: list[str]
) -> tuple[str, ...]:
    """The classes of a split: its own, or those of the training part where it has no others."""
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


def _cut(
    layout: folder_layout.FolderLayout,
    classes: dict[str, list[str]],
    split: str,
    test_share: float,
    seed: int,
    notes: list[str],
) -> dict[str, list[str]]:
    """The part of each class that is `train`, or the one that is held out."""
    rank = _ranking(seed)
    cut = {}
    for name, files in classes.items():
        ranked = sorted(files, key=rank)
        held_out = min(max(1, math.floor(test_share * len(files) + 0.5)), len(files) - 1)
        cut[name] = ranked[held_out:] if split == "train" else ranked[:held_out]
    single = [name for name, files in classes.items() if len(files) == 1]
    if len(single) == len(classes):
        folder_tree.refuse(
            f"every class of {layout.root} has one image, so none can be held out", layout.folder
        )
    if single:
        named = ", ".join(map(printable, single[:5])) + (", ..." if len(single) > 5 else "")
        notes.append(f"classes of one image, which 'train' has: {len(single):,}: {named}")
    if layout.whole:
        notes.append(f"{layout.held!r} is the part of {layout.whole!r} that is held out")
    return cut


def _check_missing(layout: folder_layout.FolderLayout, wholes: list[Whole], most: float) -> None:
    missing = [name for whole in wholes for name in whole.listing.missing]
    there = sum(whole.files for whole in wholes)
    share = len(missing) / (len(missing) + there)
    if share > most:
        raise UsageError(
            f"{len(missing):,} of the {len(missing) + there:,} files that {layout.labels} names "
            f"are not there, as {printable(missing[0], 80)!r}; more than the share of {most:g} "
            f"that may be missing. Unpack them all, or raise config.data.max_skipped"
        )


def _ranking(seed: int) -> Callable[[str], int]:
    """Ranks names, `CLASS/FILE`, by a hash that the seed is the key of."""
    keyed = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))

    def rank(name: str) -> int:
        digest = keyed.copy()
        digest.update(name.encode(errors="surrogateescape"))
        return int.from_bytes(digest.digest(), "little")

    return rank


def _summarize(what: str, classes: tuple[str, ...], labels: np.ndarray, wholes: list[Whole]) -> str:
    """Classes, images, the least and the most of a class, what was left out; then the notes."""
    counts = np.bincount(labels, minlength=len(classes))
    least, most = int(counts.argmin()), int(counts.argmax())
    text = (
        f"{what}: {len(labels):,} images, {len(classes):,} classes of {counts[least]:,} "
        f"({printable(classes[least])}) to {counts[most]:,} ({printable(classes[most])})"
    )
    others = sorted({name for whole in wholes for name in whole.listing.others})
    hidden = sorted({name for whole in wholes for name in whole.listing.hidden})
    for kind, unit, left_out in (
        ("no image of a class", " files", others), ("hidden or a system's", "", hidden),
    ):  # fmt: skip
        if left_out:
            named = ", ".join(map(printable, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
            text += f"; left out as {kind}: {len(left_out):,}{unit}: {named}"
    notes = dict.fromkeys(note for whole in wholes for note in whole.notes)
    return "\n".join([text, *notes])
