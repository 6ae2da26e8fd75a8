"""The labels of a whole split, for an order that balances its classes."""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
from etils import epath
from rich.progress import Progress

from xception_jax import cache
from xception_jax.console import make_console
from xception_jax.data import folder, joined
from xception_jax.data.sources import Source
from xception_jax.errors import ExampleError

# From so many records on, reading them takes long enough to be shown.
_MANY_RECORDS = 20_000


def labels_of(source: Source) -> np.ndarray:
    """The label of each record, int32 `[records]`; -1 where it cannot be read or is wrong.

    A folder's are known from its listing. Of a prepared data set each record is read, once: what
    was found is kept in the cache folder, by the name and the `dataset_info.json` of the data set.
    """
    records = source.records
    if isinstance(records, joined.Records):
        return np.concatenate([labels_of(part) for part in records.parts])
    if isinstance(records, folder.Files):
        return records.labels
    if not source.directory:
        return _read(source)
    path = _path(source)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there yet, or not whole
        found = _read(source)
    # A name of its own, since another process may be writing the same.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # it is only read again then
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.save(file, found)
        os.replace(draft, path)
    return found


def _path(source: Source) -> Path:
    """Where the labels are kept."""
    about = epath.Path(source.directory) / "dataset_info.json"
    known = (source.directory, source.name, source.label_key, about.read_text())
    digest = hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
    return cache.folder() / "labels" / f"{digest}.npy"


def _read(source: Source) -> np.ndarray:
    console = make_console(stderr=True)
    many = len(source) >= _MANY_RECORDS
    if many:
        console.print(f"reading the labels of {len(source):,} records of {source.name}, this once")
    found = np.full(len(source), -1, np.int32)
    with Progress(console=console, disable=not (many and console.is_terminal)) as progress:
        for record in progress.track(range(len(source)), description="labels"):
            with contextlib.suppress(ExampleError):
                found[record] = source[record].label
    return found
