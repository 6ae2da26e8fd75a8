"""The layout of a folder of images: its splits, and the classes and files of each."""

import functools
import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from xception_jax.data.readers import folder_files, label_file
from xception_jax.data.readers.folder_files import (
    ROLES,
    Listing,
    composed,
    folders_in,
    is_hidden,
    role_of,
    same_form,
)
from xception_jax.data.readers.folder_tree import refuse
from xception_jax.errors import UsageError, nearest
from xception_jax.utils.text import as_utf8, printable

LABELS = "labels.csv"


@dataclass(frozen=True)
class FolderLayout:
    """The layout of a folder.

    Attributes:
      root: the folder, or the file of labels.
      splits: the folders that are splits and contain classes; for a file of labels, its splits.
      divided: the folder of classes that is divided into `train` and a held-out part, empty for
        `root` itself; None: none is divided.
      labels: the file with the labels; empty: folders name the labels.
      unlabelled: folders named like splits that contain no folders of classes.
      held: the name of the held-out part of a divided folder: `test` or `validation`.
      rules: see `folder_files.RULES`.
    """

    root: str
    splits: tuple[str, ...]
    divided: str | None
    labels: str = ""
    unlabelled: tuple[str, ...] = ()
    held: str = "test"
    rules: int = folder_files.RULES

    @property
    def names(self) -> list[str]:
        """The names of the splits."""
        return list(self.splits) if self.divided is None else sorted([self.held, "train"])

    @property
    def folder(self) -> str:
        """The folder that file names are relative to."""
        return os.path.dirname(self.labels) or "." if self.labels else self.root

    def find(self, asked: str) -> str | None:
        """The split that a name means: the same name in any case, or a synonym; None: no split.

        `test` means the validation part if there is no test part.
        """
        if asked in (self.names if self.divided is not None else self.splits):
            return asked
        if self.rules == 1:
            return None
        role = role_of(asked)
        if self.divided is not None:
            return role if role in self.names else self.held if role == "test" else None
        choices = [
            [name for name in self.splits if name.casefold() == asked.casefold()],
            [name for name in self.splits if role and role_of(name) == role],
            [name for name in self.splits if role == "test" and role_of(name) == "validation"],
        ]
        found = next(filter(None, choices), [])
        if len(found) > 1:
            raise UsageError(
                f"{self.root} has no split {asked!r}, and it may be {' or '.join(found)}; name one "
                f"of them in config.data.train_split or eval_split"
            )
        return found[0] if found else None

    def listing(self, split: str) -> Listing:
        """The classes of a split and their files; for both parts of a divided folder, all of it."""
        split = split if self.divided is None else self.divided
        if self.labels:
            return label_file.read(self.labels)[split]
        if self.divided is None:  # not cached: a million names take memory and are used once
            return _list_classes.__wrapped__(os.path.join(self.root, split), self.rules)
        return _list_classes(os.path.join(self.root, split) if split else self.root, self.rules)

    def classes(self, split: str) -> tuple[str, ...] | None:
        """The classes of the training part, which another split shares; None: it has its own."""
        training = [name for name in self.splits if role_of(name) == "train"]
        if self.rules == 1 or self.divided is not None or split in training or len(training) != 1:
            return None
        if self.labels:
            return tuple(self.listing(training[0]).classes)
        return tuple(sorted(_classes_in(os.path.join(self.root, training[0]), self.rules)))


@functools.lru_cache(maxsize=8)
def find_layout(root: str, rules: int = folder_files.RULES, hold_out: str = "") -> FolderLayout:
    """Finds the layout of a folder or a file of labels; raises `UsageError`, `OSError`.

    Args:
      root: the folder, or the file of labels.
      rules: see `folder_files.RULES`.
      hold_out: the part that is held out from the training part if there is no other part, `test`
        or `validation`; empty: none.
    """
    if rules > 1 and os.path.isfile(root):
        return _of_labels(root, hold_out)
    folders = folders_in(root, rules)
    if rules == 1:
        splits = _splits_1(root, folders)
        return FolderLayout(root, tuple(splits), None if splits else "", rules=1)
    csv = _labels_in(root)
    if _are_splits(root, folders):
        held = {name: folders_in(os.path.join(root, name)) for name in folders}
        full = tuple(name for name in folders if held[name])
        bare = tuple(name for name in folders if not held[name] and role_of(name))
        if csv and "train" not in map(role_of, full):
            return _of_labels(csv, hold_out)
        divided = _training_alone(full) if hold_out else None
        return FolderLayout(root, full, divided, unlabelled=bare, held=hold_out or "test")
    if csv and (len(folders) < 2 or _named_like_splits(folders)):
        return _of_labels(csv, hold_out)
    if not folders:
        refuse(f"{root} holds no folder with an image in it", root, _csv_hint(root))
    if _named_like_splits(folders):
        hint = _csv_hint(root) or "; name them train and test, or make links with these names"
        refuse(f"{root} holds {', '.join(folders[:3])}, which look like splits", root, hint)
    return FolderLayout(root, (), "", held=hold_out or "test")


def held_out(eval_split: str) -> str:
    """The held-out part that evaluation on a split needs: `test`, `validation`, or empty: none."""
    roles = set(map(role_of, names_in(eval_split)))
    return next((role for role in ("test", "validation") if role in roles), "")


def names_in(split: str) -> list[str]:
    """The names in a sum of splits and parts of them, `train[:10%]+test`; sorted."""
    return sorted({part.strip().partition("[")[0] for part in split.split("+")})


def _training_alone(splits: Sequence[str]) -> str | None:
    """The training part, if no other split has a usual name."""
    usual = [name for name in splits if role_of(name)]
    return usual[0] if list(map(role_of, usual)) == ["train"] else None


def _of_labels(path: str, hold_out: str) -> FolderLayout:
    if not path.lower().endswith(".csv"):
        folder = os.path.dirname(path) or "."
        refuse(f"{path} is a file, but not a .csv", folder, "; unpack it if it is an archive")
    splits = tuple(sorted(label_file.read(path)))
    divided = "" if splits == ("",) else _training_alone(splits) if hold_out else None
    return FolderLayout(path, splits, divided, labels=path, held=hold_out or "test")


def _labels_in(root: str) -> str:
    """The file of labels in a folder; empty: there is none."""
    with os.scandir(root) as entries:
        found = sorted(e.path for e in entries if e.name.lower() == LABELS and e.is_file())
    return found[0] if found else ""


def _csv_hint(root: str) -> str:
    with os.scandir(root) as entries:
        found = sorted(
            e.path for e in entries if e.name.lower().endswith(".csv") and not is_hidden(e.name)
        )
    ours = [path for path in found if "test" not in os.path.basename(path).lower()] or found
    return f"; did you mean folder:{ours[0]}?" if ours else ""


def _splits_1(root: str, folders: list[str]) -> list[str]:
    """The splits by rules 1; none if the folder itself contains the classes."""
    names = {name.lower() for name in folders}
    if names <= ROLES.keys():
        return folders
    if "train" not in folders:
        return []
    deep = folders_in(os.path.join(root, "train"), 1)
    return folders if len(names & ROLES.keys()) > 1 or deep else []


def _are_splits(root: str, folders: list[str]) -> bool:
    roles = [role for role in map(role_of, folders) if role]
    if len(roles) == len(folders):
        return bool(folders)
    if "train" in roles and len(set(roles)) > 1:
        return True
    if "train" not in folders:
        return False
    return len({name.lower() for name in folders} & ROLES.keys()) > 1 or bool(
        folders_in(os.path.join(root, "train"))
    )


def _named_like_splits(folders: Sequence[str]) -> bool:
    """Whether names are like `train_images` and `test_images`, or `seg_train` and `seg_test`."""
    start = _common(folders)
    end = _common([name[len(start) :][::-1] for name in folders])
    rest = [name[len(start) : len(name) - len(end)].strip(" _-.") for name in folders]
    found = set(map(role_of, rest))
    return "train" in found and len(found - {None}) > 1


def _common(names: Sequence[str]) -> str:
    """The common beginning of the names, up to a space, `_`, `-` or dot."""
    first, last = min(names), max(names)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return re.sub(r"[^ _.-]*$", "", "".join(character for character, _ in same))


def _classes_in(folder: str, rules: int) -> dict[str, list[str]]:
    """The classes in a folder, `{name: folders}`: one folder each, unless names look the same."""
    names = folders_in(folder, rules)
    if rules == 1:
        return {name: [name] for name in names}
    groups = same_form(names)
    return {one[0] if len(one) == 1 else form: one for form, one in groups.items()}


@functools.lru_cache(maxsize=4)
def _list_classes(folder: str, rules: int) -> Listing:
    """Lists the classes in a folder, once in a process: there may be a million files."""
    classes: dict[str, list[str]] = {}
    notes: list[str] = []
    others: list[str] = []
    hidden: list[str] = []
    inside: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name, rules):
                hidden.append(entry.path)
            elif not entry.is_dir():
                others.append(entry.path)
    for name, folders in sorted(_classes_in(folder, rules).items()):
        files: list[str] = []
        for own in folders:
            found = folder_files.list_files(os.path.join(folder, own), rules)
            files += [f"{own}/{file}" for file in found.images]
            others += found.others
            hidden += found.hidden
            inside[own] = found.folders
        classes[name] = sorted(files)
        if len(folders) > 1:
            notes.append(f"{len(folders)} folders named {name!r} in other Unicode forms: one class")
    if rules > 1:
        _refuse_splits_inside(folder, inside)
    for name in classes:
        if name != as_utf8(name):
            raise UsageError(f"{folder} has a folder whose name is not UTF-8: {printable(name)}")
    if not any(classes.values()):
        refuse(f"{folder} holds no folder with an image in it", folder)
    return Listing(classes, tuple(notes), sorted(others), sorted(hidden))


def _refuse_splits_inside(folder: str, inside: dict[str, list[str]]) -> None:
    """Refuses a folder whose classes contain splits: a level too high, or splits inside classes."""
    found = [
        name
        for name, folders in inside.items()
        if "train" in (roles := set(map(role_of, folders))) and roles & {"validation", "test"}
    ]
    if not found:
        return
    if len(found) == 1:
        deeper = os.path.join(folder, found[0])
        refuse(f"{deeper} holds the splits", folder, f"; did you mean folder:{deeper}?")
    first = found[0]
    hint = f"; the split comes first: train/{first}, not {first}/train"
    refuse(f"{folder} holds splits inside each class", folder, hint)


def refuse_classes(layout: FolderLayout, split: str, more: Sequence[str]) -> NoReturn:
    """Raises `UsageError` for a split with classes that the training part lacks."""
    training = next(name for name in layout.splits if role_of(name) == "train")
    named = ", ".join(repr(printable(name)) for name in more[:3]) + ", ..." * (len(more) > 3)
    noun = "a class" if len(more) == 1 else f"{len(more):,} classes"
    refuse(f"{split!r} of {layout.root} has {noun} that {training!r} lacks: {named}", layout.folder)


def check_classes(layout: FolderLayout, split: str, classes: dict[str, list[str]]) -> None:
    """Checks a split's own classes: each has images, and there are at least two."""
    part = split if layout.divided is None else layout.divided
    folder = os.path.join(layout.root, part) if part else layout.root
    for name, files in classes.items():
        if not files:
            _refuse_empty(folder, name)
    if len(classes) < 2 and layout.labels:
        refuse(f"{layout.labels} names one class, {next(iter(classes))!r}; two are needed",
               layout.folder)  # fmt: skip
    if len(classes) < 2:
        _refuse_one_class(folder, next(iter(classes)))


def _refuse_one_class(folder: str, name: str) -> NoReturn:
    """Suggests the folder that may be meant: the first one further down with several folders."""
    deeper = os.path.join(folder, name)
    inside = folders_in(deeper)
    while len(inside) == 1 and not role_of(inside[0]):
        deeper = os.path.join(deeper, inside[0])
        inside = folders_in(deeper)
    hint = f"; did you mean folder:{deeper}?" if inside else _csv_hint(folder)
    refuse(f"{folder} holds one class, {name!r}; two are needed", folder, hint)


def _refuse_empty(folder: str, name: str) -> NoReturn:
    refuse(
        f"class {name!r} is empty: there is no image in {os.path.join(folder, name)}",
        folder,
        f"; an image is a file that ends in {', '.join(sorted(folder_files.ENDINGS))}, or a file "
        f"without an ending whose first bytes are those of an image",
    )


def missing(root: str) -> str:
    """A hint for a missing folder: the nearest name beside it."""
    parent, name = os.path.split(root.rstrip("/"))
    try:
        beside = folders_in(parent or ".")
    except OSError:
        return ""
    same = [other for other in beside if composed(other).casefold() == composed(name).casefold()]
    close = f"; did you mean {same[0]!r}?" if same else nearest(name, beside)
    return close or (f"; {parent or '.'} holds: {', '.join(beside[:5])}" if beside else "")
