"""The labels of all records of a split, for an order that balances its classes."""

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
from etils import epath
from rich.progress import Progress

from xception_jax.data.readers import folder, joined
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError
from xception_jax.runtime import cache, cluster
from xception_jax.utils.console import make_console

# From this number of records on, reading takes long enough for a progress bar.
_MANY_RECORDS = 20_000


def labels_of(source: Source) -> np.ndarray:
    """The label of each record, int32 `[records]`; -1 where it cannot be read or is wrong.

    The labels of a folder are known from its listing. In a prepared data set each record is read
    once. The labels are then stored in the cache folder, under a hash of the name and the
    `dataset_info.json` of the data set. Labels that could not be read are tried again each time.

    Raises:
      RunError: the processes of a run read different labels.
    """
    records = source.records
    if isinstance(records, joined.JoinedRecords):
        return np.concatenate([labels_of(part) for part in records.parts])
    if isinstance(records, folder.Files):
        return records.labels
    found = _kept(source)
    missing = np.flatnonzero(found < 0)
    _read(source, missing, found)
    if source.directory and (found[missing] >= 0).any():
        _keep(source, found)
    # With different labels the processes would train in different orders.
    cluster.check_same(f"the labels of {source.name}", found.tobytes())
    return found


def _kept(source: Source) -> np.ndarray:
    """The labels in the cache folder; -1 for all if there are none."""
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there yet, or incomplete
        if source.directory:
            kept: np.ndarray = np.load(_path(source), allow_pickle=False)
            return kept
    return np.full(len(source), -1, np.int32)


def _keep(source: Source, found: np.ndarray) -> None:
    path = _path(source)
    # A unique name: another process may be writing the same file.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # without the file the labels are read again
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            np.save(file, found)
        os.replace(draft, path)


def _path(source: Source) -> Path:
    """The file that stores the labels."""
    about = epath.Path(source.directory) / "dataset_info.json"
    known = (source.directory, source.name, source.label_key, about.read_text(encoding="utf-8"))
    digest = hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
    return cache.folder() / "labels" / f"{digest}.npy"


def _read(source: Source, records: np.ndarray, found: np.ndarray) -> None:
    """Reads the labels of some records."""
    console = make_console(stderr=True)
    many = len(records) >= _MANY_RECORDS
    if many:
        console.print(f"reading the labels of {len(records):,} records of {source.name}, once only")
    with Progress(console=console, disable=not (many and console.is_terminal)) as progress:
        for record in progress.track(records.tolist(), description="labels"):
            with contextlib.suppress(ExampleError):
                found[record] = source[record].label
