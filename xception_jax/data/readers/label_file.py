"""A table of labels beside images: a .csv with a row for each file, as on Kaggle.

File names may lack their ending or their folder, have Windows separators, or be full paths of
another machine. A row matches a file if the shorter of the two paths is the end of the longer one.
"""

import csv
import functools
import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from xception_jax.data.readers import folder_files
from xception_jax.data.readers.folder_files import Listing, composed, role_of
from xception_jax.data.readers.folder_tree import refuse
from xception_jax.errors import UsageError
from xception_jax.utils.text import printable

# Names of columns in lower case. If a table has several of them, the first in these lists is used;
# for files, the column with the most entries that are files.
_FILE = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image_path", "img_path"),
    *("image", "image_name", "image_id", "imageid", "img", "img_name", "picture", "photo"),
    *("name", "id"),
)
_LABEL = (
    *("label", "labels", "class", "class_name", "classname", "category", "target", "breed"),
    *("species", "diagnosis", "variety", "tag", "class_id", "category_id", "y"),
)
_SPLIT = ("split", "set", "subset", "partition", "phase")
# An entry of Kaggle's `LOC_val_solution.csv` of ImageNet: boxes, each after the image's class.
_BOXES = re.compile(r"(n\d{8})(?: \d+){4}(?: \1(?: \d+){4})* ?")
# Rows that are tried to interpret a table without a header.
_TRIED = 50


class _Row(NamedTuple):
    line: int
    file: str
    label: str
    split: str


@functools.lru_cache(maxsize=2)
def read(path: str) -> dict[str, Listing]:
    """The splits of a table of labels, read once in a process; `""` if it names none.

    Files are searched first in a folder beside the table with the table's name, then below the
    table's folder. File names are relative to the table's folder.

    Raises:
      UsageError: it is not such a table, a row matches two files, two rows contradict each other,
        or no file of the table exists.
      OSError: it cannot be read.
    """
    root = os.path.dirname(path) or "."
    cells = _cells(path)
    beside = os.path.splitext(os.path.basename(path))[0]
    places = [f"{beside}/"] if os.path.isdir(os.path.join(root, beside)) else []
    best: dict[str, Listing] | None = None
    for place in [*places, ""]:
        files = _Files(root, place, path)
        listings = _listings(path, cells, files)
        best = best or listings
        if any(any(one.classes.values()) for one in listings.values()):
            if not any(one.missing for one in listings.values()):
                return listings
            best = listings
    assert best is not None
    if not any(any(one.classes.values()) for one in best.values()):
        missing = next((one.missing[0] for one in best.values() if one.missing), "no file")
        refuse(f"{path} names no file that is there, as {printable(missing, 80)!r}", root)
    return best


def _cells(path: str) -> list[tuple[int, list[str]]]:
    """The non-empty rows, each with the number of its last line."""
    with open(path, "rb") as file:
        data = file.read()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        # In tables of old Macs a single \r ends a line.
        text = io.StringIO(data.decode(encoding), newline=None).read()
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path} is not UTF-8 in line {line}; save it as UTF-8 (in Excel: CSV UTF-8)"
        ) from None
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read in line {reader.line_num}: {error}") from None
    rows = [(line, row) for line, row in rows if any(row)]
    if not rows:
        raise UsageError(f"{path} is empty; it takes a row for each image: file, label")
    return rows


class _Files:
    """Images below a folder, by the names that a row may use.

    Args:
      root: the folder that names are relative to.
      place: the folder below it that is searched, `images/`; empty: `root` itself.
      path: path of the table, which is not reported as left out.
    """

    def __init__(self, root: str, place: str, path: str):
        found = folder_files.list_files(os.path.join(root, place))
        self.names = [place + name for name in sorted(found.images)]
        table = os.path.normpath(path)
        self.others = sorted(name for name in found.others if os.path.normpath(name) != table)
        self.hidden = sorted(found.hidden)
        self.role = role_of(_first_word(os.path.basename(path))) or "train"
        self._by_name: dict[str, list[str]] = {}
        for name in self.names:
            self._by_name.setdefault(_key(name.rpartition("/")[2]), []).append(name)

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for key, names in self._by_name.items():
            stems.setdefault(os.path.splitext(key)[0], []).extend(names)
        return stems

    def meant(self, text: str) -> list[str]:
        """The files that match a row: none, one, or several that match equally well."""
        *folders, last = [part for part in re.split(r"[\\/]+", text) if part not in ("", ".", "..")
                          ] or [""]  # fmt: skip
        key = _key(last)
        above = [_key(part) for part in folders]
        named = self._by_name.get(key) or self._by_stem.get(key) or []
        depths = ((_agreement(above, name), name) for name in named)
        fits = [(depth, name) for depth, name in depths if depth is not None]
        for choose in (self._of_other_role, _depth, _spelt(last)):
            least = min(map(choose, fits), default=0)
            fits = [fit for fit in fits if choose(fit) == least]
        return [name for _, name in fits]

    def _of_other_role(self, fit: tuple[int, str]) -> int:
        """Prefers `train/1.jpg` to `1.jpg`, and `1.jpg` to `test/1.jpg`, in a training table."""
        roles = {role_of(_first_word(part)) for part in fit[1].split("/")[:-1]} - {None}
        return 1 if not roles else 0 if self.role in roles else 2


def _depth(fit: tuple[int, str]) -> int:
    return -fit[0]


def _spelt(last: str) -> Callable[[tuple[int, str]], int]:
    """Prefers the exact spelling, with or without the ending."""
    return lambda fit: last not in ((name := fit[1].rpartition("/")[2]), os.path.splitext(name)[0])


def _agreement(above: Sequence[str], name: str) -> int | None:
    """Number of folders that a row's path and a file's share, from the end; None: no match."""
    own = [_key(part) for part in name.split("/")[:-1]]
    depth = min(len(own), len(above))
    return depth if own[len(own) - depth :] == list(above[len(above) - depth :]) else None


def _key(name: str) -> str:
    return composed(name).casefold()


def _first_word(name: str) -> str:
    """The first word of a name: `train` for `train_images` and `train.csv`."""
    return re.split(r"[\W_]", name, maxsplit=1)[0]


@dataclass(frozen=True)
class _Columns:
    """The columns of a table; `split` is None if there is no such column."""

    file: int
    label: int
    split: int | None
    header: bool

    @classmethod
    def of(cls, path: str, cells: list[tuple[int, list[str]]], files: _Files) -> "_Columns":
        """Finds the columns by the names in the first row; of two columns also by their entries."""
        first = [cell.lower().replace(" ", "_") for cell in cells[0][1]]
        file, label = _file_column(first, cells, files), _position(first, _LABEL)
        split = _position(first, _SPLIT)
        width = max(len(row) for _, row in cells[: _TRIED + 1])
        if width == 2 and (file is None) != (label is None):
            file = 1 - label if label is not None else file
            label = None if file is None else 1 - file
        if file is not None and label is not None:
            roles = {role_of(row[split]) for _, row in cells[1:]
                     if split is not None and len(row) > split}  # fmt: skip
            return cls(file, label, split if roles - {None} else None, True)
        if width != 2:
            there = ", ".join(printable(cell, 30) for cell in first[:6])
            raise UsageError(
                f"{path} has {width} column{'s' * (width != 1)} ({there}); "
                f"name the one with the files 'file' and the one with the labels 'label' in its "
                f"first row"
            )
        tried = cells[1 : 1 + _TRIED] or cells
        counts = [_known(tried, i, files) for i in range(2)]
        file = int(counts[1] > counts[0])
        known = len(cells[0][1]) > file and files.meant(cells[0][1][file])
        return cls(file, 1 - file, None, header=not known and max(counts) > 0)


def _file_column(
    first: Sequence[str], cells: list[tuple[int, list[str]]], files: _Files
) -> int | None:
    """The column of files by its name; of several, the one with the most entries that are files."""
    named = [first.index(name) for name in _FILE if name in first]
    if len(named) < 2:
        return named[0] if named else None
    return max(named, key=lambda column: _known(cells[1 : 1 + _TRIED], column, files))


def _known(rows: list[tuple[int, list[str]]], column: int, files: _Files) -> int:
    """Number of entries of a column that match a file."""
    return sum(bool(files.meant(row[column])) for _, row in rows if len(row) > column)


def _position(cells: Sequence[str], known: Sequence[str]) -> int | None:
    return next((cells.index(name) for name in known if name in cells), None)


def _listings(path: str, cells: list[tuple[int, list[str]]], files: _Files) -> dict[str, Listing]:
    columns = _Columns.of(path, cells, files)
    rows, incomplete = _rows(cells, columns)
    seen: dict[str, _Row] = {}
    missing: dict[str, list[str]] = {}
    again = 0
    for row in rows:
        names = files.meant(row.file)
        if len(names) > 1:
            raise UsageError(
                f"{path} line {row.line}: {row.file!r} may be {names[0]} or {names[1]}; write more "
                f"of the path"
            )
        if not names:
            missing.setdefault(row.split, []).append(row.file)
            continue
        before = seen.setdefault(names[0], row)
        if before.label != row.label or before.split != row.split:
            raise UsageError(
                f"{path} lines {before.line} and {row.line} contradict each other about "
                f"{names[0]}: {', '.join((before.label, before.split)).rstrip(', ')} and "
                f"{', '.join((row.label, row.split)).rstrip(', ')}"
            )
        again += before is not row
    notes = [_about(path, cells[0][1], columns, len(rows))]
    if again:
        notes.append(f"rows that repeat another row: {again:,}")
    if incomplete:
        notes.append(
            f"rows without a file or a label, left out: {len(incomplete):,}, "
            f"for example line {incomplete[0]}"
        )
    gone = [name for names in missing.values() for name in names]
    if gone:
        notes.append(
            f"files in the table that do not exist: {len(gone):,}, for example {_few(gone)}"
        )
    unnamed = [name for name in files.names if name not in seen]
    if unnamed:
        notes.append(
            f"images that are not in the table, left out: {len(unnamed):,}, "
            f"for example {_few(unnamed)}"
        )
    splits = sorted({row.split for row in rows})
    return {
        split: Listing(
            _classes(seen, split), tuple(notes), files.others, files.hidden, missing.get(split, [])
        )
        for split in splits
    }


def _rows(cells: list[tuple[int, list[str]]], columns: _Columns) -> tuple[list[_Row], list[int]]:
    """The complete rows, and the line numbers of the incomplete ones."""
    rows, incomplete = [], []
    for line, row in cells[columns.header :]:
        needed = [columns.file, columns.label, *([] if columns.split is None else [columns.split])]
        values = [row[column] if column < len(row) else "" for column in needed]
        if all(values):
            file, label, split = (*values, "")[:3]
            if boxes := _BOXES.fullmatch(label):
                label = boxes[1]
            rows.append(_Row(line, file, composed(label), split.casefold()))
        else:
            incomplete.append(line)
    return rows, incomplete


def _classes(seen: dict[str, _Row], split: str) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for name, row in seen.items():
        if row.split == split:
            classes.setdefault(row.label, []).append(name)
    return {label: sorted(classes[label]) for label in sorted(classes)}


def _about(path: str, first: Sequence[str], columns: _Columns, rows: int) -> str:
    """A note that says which columns are used."""
    taken = [columns.file, columns.label, *([] if columns.split is None else [columns.split])]
    told = ", ".join(repr(first[column]) for column in taken)
    named = f"columns {told}" if columns.header else "no header"
    return f"{printable(path)}: {rows:,} rows, {named}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(printable(name, 80) for name in names[:3])
