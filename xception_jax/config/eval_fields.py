"""What the fields `eval.*` mean: further sets, further metrics, and which step is the best."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ml_collections import ConfigDict

from xception_jax.errors import UsageError, nearest

_NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class EvalSet:
    """An additional set to evaluate on.

    Attributes:
      name: the prefix of its metrics, as `real` in `real/top1`.
      split: the split of the data set.
      dataset: the data set; None: `data.dataset`.
    """

    name: str
    split: str
    dataset: str | None = None


def eval_sets(config: ConfigDict) -> list[EvalSet]:
    """The sets in `eval.also`; raises `UsageError`."""
    sets = [_parsed(text) for text in config.eval.also]
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"config.eval.also has two sets with the name {name!r}; rename one")
    return sets


def _parsed(text: str) -> EvalSet:
    """Reads `SPLIT`, `NAME=SPLIT` or `NAME=DATASET@SPLIT`."""
    name, named, rest = text.partition("=")
    dataset, _, split = (rest if named else text).rpartition("@")
    if not _NAME.fullmatch(name) or not split or (dataset and not named):
        raise UsageError(
            f"config.eval.also has {text!r}; it takes SPLIT, NAME=SPLIT or NAME=DATASET@SPLIT, as "
            f"'real=imagenet2012_real@validation'; a name has letters, digits and _ . -"
        )
    return EvalSet(name, split, dataset or None)


def eval_metrics(config: ConfigDict, name: str = "") -> tuple[str, ...]:
    """The metrics in `eval.metrics` for a set; an empty name is `data.eval_split`.

    Raises:
      UsageError: a metric is for a set that is not in `eval.also`.
    """
    known = [one.name for one in eval_sets(config)]
    found = []
    for text in config.eval.metrics:
        owner, owned, metric = text.rpartition("/")
        if owned and owner not in known:
            raise UsageError(
                f"config.eval.metrics has {text!r}, but config.eval.also has no set {owner!r}"
            )
        if not owned or owner == name:
            found.append(metric)
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Best:
    """The criterion for the best checkpoint.

    Attributes:
      metric: the name of the metric; empty: the highest top-1, or MAP for multi-label data.
      lowest: whether the lowest value is best.
    """

    metric: str = ""
    lowest: bool = False

    @classmethod
    def parse(cls, text: str) -> "Best":
        """Parses `auto`, `METRIC`, `METRIC:max` or `METRIC:min`; the default for a loss is min.

        Raises:
          UsageError: the direction is neither `min` nor `max`.
        """
        if text == "auto":
            return cls()
        metric, given, direction = text.partition(":")
        if given and direction not in ("min", "max"):
            raise UsageError(f"config.eval.best is {text!r}; it takes METRIC:min or METRIC:max")
        return cls(metric, direction == "min" if given else metric.rpartition("/")[2] == "loss")

    def is_in(self, metrics: Mapping[str, float]) -> bool:
        """Whether the metric was measured, and is finite."""
        return not self.metric or math.isfinite(metrics.get(self.metric, math.nan))

    def quality(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """A key for comparison, higher is better; ties go to the lower loss. Needs `is_in`."""
        if not self.metric:
            return metrics["map" if "map" in metrics else "top1"], -metrics["loss"]
        value = metrics[self.metric]
        return -value if self.lowest else value, -metrics["loss"]

    def check(self, known: list[str]) -> None:
        """Raises `UsageError` if the metric is not one of the run's metrics."""
        if self.metric and self.metric not in known:
            raise UsageError(
                f"config.eval.best is {self.metric!r}, which is not a metric of this run"
                f"{nearest(self.metric, known) or ';'} There are: {', '.join(known)}"
            )
