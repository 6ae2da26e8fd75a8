"""One split of a data set, from any reader: `source[i]` is an example."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from xception_jax.errors import ExampleError, ReadError
from xception_jax.utils import retry

FOLDER = "folder:"  # before the path of a data set that is a folder of images


class Example(NamedTuple):
    """An encoded image, its label, and its name in error messages.

    The label is a number; in a multi-label set, multi-hot uint8 `[classes]`.
    """

    encoded: bytes
    label: int | np.ndarray
    name: str


@dataclass(frozen=True)
class Source:
    """One split of a data set. `source[i]` is an `Example`.

    Attributes:
      name: the data set, its version and split, as `optical_digits/1.0.0:train`.
      class_names: the name of each label; their number is the number of classes.
      records: the split's examples as TFDS reads them, images still encoded.
      image_key, label_key: the names of the two features; a nested one is `objects/label`.
      multilabel: whether an example may have any number of labels.
      confidence_key: the confidence feature of such labels, if any; 0 marks a label that was
        verified as absent.
      describe: returns the name of an example in error messages; None: by its number.
      summary: description of the split for the log at the start of a run; may be empty.
      directory: the folder where TFDS prepared it; empty: it is not a TFDS data set.
      patience: seconds for which a read is retried after transient errors.
    """

    name: str
    class_names: tuple[str, ...]
    records: Sequence[Any]
    image_key: str
    label_key: str
    multilabel: bool = False
    confidence_key: str | None = None
    describe: Callable[[int], str] | None = None
    summary: str = ""
    directory: str = ""
    patience: float = retry.SECONDS

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        """Reads an example.

        Raises:
          ExampleError: its bytes are damaged, its file is missing or not readable, or its label is
            wrong.
          ReadError: it could not be read for `patience` seconds; see `retry`.
        """
        name = self.name_of(index)
        reading: Callable[[], Any] = partial(operator.getitem, self.records, index)
        try:
            record = retry.reading(reading, name, seconds=self.patience, reopen=self._reopen)
        except (ExampleError, ReadError):  # ExampleError comes from a joined data set
            raise
        # RuntimeError: a damaged tfrecord (our `RunError`), or a wrong hash in array_record. The
        # last two come from protobuf and TFDS, for an intact record of another data set.
        except (OSError, RuntimeError, ValueError, DecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise ExampleError(name, f"cannot be read: {reason}") from None
        entries, key = record, self.label_key
        if key not in record:
            group, _, key = key.rpartition("/")
            entries = record[group]
        encoded, marked = record[self.image_key], entries[key]
        if encoded is None or marked is None:
            raise ExampleError(name, f"has no {'image' if encoded is None else 'label'}")
        labels, classes = np.ravel(marked).tolist(), len(self.class_names)
        if labels and not 0 <= min(labels) <= max(labels) < classes:
            # On the device such a label trains the wrong class, or gives NaN with finite gradients.
            outside = next(label for label in labels if not 0 <= label < classes)
            raise ExampleError(name, f"has label {outside}, outside 0...{classes - 1}")
        label = self._multi_hot(entries, labels) if self.multilabel else int(labels[0])
        return Example(encoded, label, name)

    def _reopen(self) -> None:
        """Opens new array_record readers: one that has failed keeps failing.

        Its pickle methods drop the readers; other threads keep the ones that they use.
        """
        files = getattr(self.records, "data_source", None)
        if files is not None:
            files.__setstate__(files.__getstate__())

    def name_of(self, index: int) -> str:
        """The name of an example in error messages."""
        return self.describe(index) if self.describe else f"example {index} of {self.name}"

    def path_of(self, index: int) -> str | None:
        """The path of the file that is an example; None: examples are not files."""
        find: Callable[[int], str | None] | None = getattr(self.records, "path_of", None)
        return find(index) if find else None

    def _multi_hot(self, entries: Any, marked: list[int]) -> np.ndarray:
        labels = np.asarray(marked, np.int64)
        found = np.zeros(len(self.class_names), np.uint8)
        found[labels] = 1
        if self.confidence_key:
            # Humans verified the machine's labels: an entry with 0 overrules the others.
            sure = np.asarray(entries[self.confidence_key.rpartition("/")[2]])
            found[labels[sure <= 0]] = 0
        return found

    def __repr__(self) -> str:
        return f"Source({self.name!r}, {len(self)} examples)"
