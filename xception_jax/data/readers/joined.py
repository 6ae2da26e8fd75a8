"""Several data sets as one: the records of each follow those of the one before."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from xception_jax.data.readers.folder_files import composed
from xception_jax.data.source import Source
from xception_jax.errors import UsageError


class JoinedRecords(Sequence[Any]):
    """The records of several splits: `records[i]` is `{"image": bytes, "label": ...}`.

    The label is a number; in multi-label splits, the numbers of all classes of the image.

    Args:
      parts: the splits.
    """

    def __init__(self, parts: Sequence[Source]):
        self.parts = tuple(parts)
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def __getitem__(self, index: Any) -> Any:
        """Reads a record; raises `ExampleError` or `ReadError`."""
        part, own = self._find(index)
        example = part[own]
        label = np.flatnonzero(example.label) if part.multilabel else example.label
        return {"image": example.encoded, "label": label}

    def path_of(self, index: int) -> str | None:
        """See `Source.path_of`."""
        part, own = self._find(index)
        return part.path_of(own)

    def describe(self, index: int) -> str:
        """The name of a record in error messages."""
        part, own = self._find(index)
        return part.name_of(own)


def join(parts: Sequence[Source]) -> Source:
    """Joins several splits; the record numbers of each follow those of the one before.

    Raises:
      UsageError: the splits have different classes, or only some are multi-label.
    """
    first = parts[0]
    for part in parts:
        if part.multilabel != first.multilabel:
            several, one = (part, first) if part.multilabel else (first, part)
            raise UsageError(
                f"{several.name} has several labels per image, but {one.name} has one; "
                f"config.data.mix takes sets of one kind"
            )
        same_classes(first, part)
    records = JoinedRecords(parts)
    return Source(
        name=" + ".join(part.name for part in parts),
        class_names=first.class_names,
        records=records,
        image_key="image",
        label_key="label",
        multilabel=first.multilabel,
        describe=records.describe,
        summary="\n".join(part.summary for part in parts if part.summary),
    )


def same_classes(left: Source, right: Source) -> None:
    """Raises `UsageError` if two splits have different classes."""
    if tuple(map(composed, left.class_names)) != tuple(map(composed, right.class_names)):
        only = sorted(set(left.class_names) ^ set(right.class_names))
        named = f": only one of them has {only[0]!r}" if only else ""
        raise UsageError(f"{left.name} and {right.name} have different classes{named}")
