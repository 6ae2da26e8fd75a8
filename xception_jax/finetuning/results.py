"""The results of fine-tuning, and of its cross-validation."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.data.readers import folder
from xception_jax.data.source import Source
from xception_jax.training.class_report import ClassResult
from xception_jax.utils.numbers import for_json, from_json
from xception_jax.utils.text import as_utf8


@dataclass(frozen=True)
class FinetuneResult:
    """The result of `finetune.finetune`.

    Attributes:
      workdir: the run's folder.
      finished: False after a signal to stop; the same call continues. The rest is empty then.
      step: the best checkpoint.
      split: the split of the results.
      tested: whether it is a test set, which nothing was selected by.
      metrics: of the best checkpoint on it, see `evaluate.evaluate`.
      classes: the same by class.
    """

    workdir: Path
    finished: bool
    step: int = 0
    split: str = ""
    tested: bool = False
    metrics: Mapping[str, float] | None = None
    classes: tuple[ClassResult, ...] = ()

    @classmethod
    def from_json(cls, workdir: Path, stored: Mapping[str, Any]) -> "FinetuneResult":
        """The inverse of `to_json` for a finished run, which may have moved to `workdir`."""
        about = {"workdir", "finished", "step", "split", "tested", "classes"}
        metrics = from_json({name: stored[name] for name in stored if name not in about})
        classes = tuple(ClassResult(**one) for one in stored["classes"])
        return cls(
            workdir, True, stored["step"], stored["split"], stored["tested"], metrics, classes
        )

    def to_json(self) -> dict[str, Any]:
        """The output of `--json`."""
        about = {"workdir": str(self.workdir), "finished": self.finished}
        if not self.finished:
            return about
        return {
            **about, "step": self.step, "split": self.split, "tested": self.tested,
            **for_json(self.metrics or {}), "classes": [asdict(one) for one in self.classes],
        }  # fmt: skip


@dataclass(frozen=True)
class CrossValidationResult:
    """The result of `finetune.cross_validate`.

    Attributes:
      workdir: the folder of the folds' runs.
      finished: False after a signal to stop; the same call continues.
      folds: the metrics of each fold on its own part, by the best checkpoint.
      predictions: the table of the predictions out of fold.
    """

    workdir: Path
    finished: bool
    folds: tuple[Mapping[str, float], ...]
    predictions: Path

    @property
    def mean(self) -> dict[str, float]:
        """The mean over the folds of each metric."""
        return {name: float(np.mean(values)) for name, values in self._values().items()}

    @property
    def spread(self) -> dict[str, float]:
        """The standard deviation over the folds of each metric (of a sample: divisor n - 1)."""
        return {name: float(np.std(values, ddof=1)) for name, values in self._values().items()}

    def _values(self) -> dict[str, list[float]]:
        counts = ("examples", "skipped")
        names = [name for name in (self.folds[0] if self.folds else ()) if name not in counts]
        return {name: [fold[name] for fold in self.folds] for name in names}

    def to_json(self) -> dict[str, Any]:
        """The output of `--json`."""
        about = {"workdir": str(self.workdir), "finished": self.finished}
        if not self.finished:
            return about
        return {
            **about, "predictions": str(self.predictions), "mean": for_json(self.mean),
            "spread": for_json(self.spread), "folds": [for_json(one) for one in self.folds],
        }  # fmt: skip


def out_of_fold(fold: int, source: Source, probabilities: Sequence[np.ndarray]) -> str:
    """The lines of a fold in the table of predictions, as CSV.

    Args:
      fold: its number.
      source: its images. The labels of several are separated by `|`.
      probabilities: of each image, empty for one that cannot be used.
    """
    text, names = io.StringIO(), source.class_names
    table = csv.writer(text, lineterminator="\n")
    files = folder.names_of(source) or [source.name_of(i) for i in range(len(source))]
    for record, found in enumerate(probabilities):
        if not len(found):
            table.writerow([files[record], fold, "", "", *[""] * len(names)])
            continue
        label = source[record].label
        shown = np.flatnonzero(label) if source.multilabel else [int(label)]
        best = np.flatnonzero(found > 0.5) if source.multilabel else [int(found.argmax())]
        told = ("|".join(as_utf8(names[i]) for i in each) for each in (shown, best))
        table.writerow([files[record], fold, *told, *(f"{value:.8g}" for value in found)])
    return text.getvalue()


def header(class_names: Sequence[str]) -> str:
    """The first line of the table of predictions."""
    text = io.StringIO()
    names = (f"probability {as_utf8(name)}" for name in class_names)
    csv.writer(text, lineterminator="\n").writerow(["file", "fold", "label", "predicted", *names])
    return text.getvalue()
