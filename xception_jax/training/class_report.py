"""What an evaluation finds for each class: a table, and the confusion matrix."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.utils.files import write_atomically


@dataclass(frozen=True)
class ClassResult:
    """What an evaluation finds for one class.

    Attributes:
      name: the class.
      images: the images with this label.
      right: those of them whose prediction is this class.
      precision: the share of `right` among the images that are predicted as this class; None: none.
      recall: the share of `right` among `images`; None: there are none.
      confused_with: the most frequent wrong prediction for `images`; None: there is none.
      confused: how many of `images` are predicted as `confused_with`.
    """

    name: str
    images: int
    right: int
    precision: float | None
    recall: float | None
    confused_with: str | None = None
    confused: int | None = None


@dataclass(frozen=True)
class ClassReport:
    """The results of all classes.

    Attributes:
      class_names: in the order of the labels.
      images, predicted, right: int64 `[classes]`: images with this label, images that are predicted
        as this class, and images that are both.
      confusion: int64 `[classes, classes]`, the number of images of each label (row) by prediction
        (column). None with more than `metrics.MATRIX_CLASSES` classes, and with several labels per
        image, where a prediction is a probability above 0.5.
    """

    class_names: tuple[str, ...]
    images: np.ndarray
    predicted: np.ndarray
    right: np.ndarray
    confusion: np.ndarray | None = None

    @classmethod
    def of(cls, class_names: tuple[str, ...], sums: Mapping[str, Any]) -> "ClassReport":
        """The report of `metrics.class_sums` over a set."""
        counts = {name: np.asarray(each).astype(np.int64) for name, each in sums.items()}
        if (matrix := counts.pop("confusion", None)) is not None:
            return cls(class_names, matrix.sum(1), matrix.sum(0), matrix.diagonal(), matrix)
        return cls(class_names, **counts)

    def classes(self) -> list[ClassResult]:
        """The result of each class."""
        found = []
        for i, name in enumerate(self.class_names):
            images, predicted, right = int(self.images[i]), self.predicted[i], int(self.right[i])
            confused = self._confused(i)
            found.append(
                ClassResult(
                    name,
                    images,
                    right,
                    float(right / predicted) if predicted else None,
                    right / images if images else None,
                    *confused,
                )
            )
        return found

    def _confused(self, i: int) -> tuple[str | None, int | None]:
        if self.confusion is None:
            return None, None
        wrong = self.confusion[i].copy()
        wrong[i] = 0
        most = int(wrong.argmax())
        return (self.class_names[most], int(wrong[most])) if wrong[most] else (None, 0)

    def to_json(self) -> dict[str, Any]:
        """`classes`, and the matrix in `confusion` if there is one."""
        found: dict[str, Any] = {"classes": [asdict(each) for each in self.classes()]}
        if self.confusion is not None:
            found["confusion"] = self.confusion.tolist()
        return found

    def write(self, folder: Path, about: Mapping[str, Any]) -> list[Path]:
        """Writes `classes.csv`, `confusion.csv` (if there is a matrix) and `report.json`.

        Args:
          folder: is made; existing files with these names are replaced, each completely or not at
            all, and an older `confusion.csv` is removed if there is no matrix.
          about: entries of `report.json` before those of `to_json`.

        Returns:
          The files.

        Raises:
          OSError: a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        rows = [asdict(each) for each in self.classes()]
        written = [_write(folder / "classes.csv", [[*rows[0]], *(row.values() for row in rows)])]
        if self.confusion is not None:
            lines = zip(self.class_names, self.confusion.tolist(), strict=True)
            matrix = [["label", *self.class_names], *([name, *row] for name, row in lines)]
            written.append(_write(folder / "confusion.csv", matrix))
        else:
            (folder / "confusion.csv").unlink(missing_ok=True)
        path = folder / "report.json"
        text = json.dumps({**about, **self.to_json()}, ensure_ascii=False) + "\n"
        write_atomically(path, text)
        return [*written, path]


def _write(path: Path, rows: list[Any]) -> Path:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue())
    return path
