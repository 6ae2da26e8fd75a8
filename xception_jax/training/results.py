"""The results of training and evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xception_jax.models.published import Result
from xception_jax.training.class_report import ClassReport
from xception_jax.utils.numbers import for_json


@dataclass(frozen=True)
class TrainResult:
    """The state of a run when `train.train` returns.

    Attributes:
      workdir: the run's folder.
      step: the last completed step, which has a checkpoint.
      total_steps: the number of steps of the run.
      finished: whether all steps are completed, or the run ended early by `eval.patience`, and the
        last step is evaluated. False after a signal to stop; the same call continues.
      metrics: the metrics of the evaluation at `step` by name: `top1`, `loss`, `examples`, and for
        other sets `real/top1`. Empty without an evaluation.
    """

    workdir: Path
    step: int
    total_steps: int
    finished: bool
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        """The output of `--json`."""
        return {"step": self.step, **for_json(self.metrics)}


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate.evaluate`.

    Attributes:
      workdir: the run's folder.
      step: the checkpoint's step.
      weights: `ema` (averaged) or `raw`.
      data: the name of the data set, with its split.
      split: the split of the data set.
      metrics: by name. `top1` and (from 20 classes on) `top5`, or for multi-label data `map`,
        `precision` and `recall`; also `loss`, the metrics of `eval.metrics`, `examples` and
        `skipped`. The metrics of other sets have the set's name as prefix: `real/top1`.
      classes: what was found for each class, if asked for.
    """

    workdir: Path
    step: int
    weights: str
    data: str
    split: str
    metrics: Mapping[str, float]
    classes: ClassReport | None = None

    def to_json(self) -> dict[str, object]:
        """The output of `--json`, without `classes`."""
        about = {"step": self.step, "weights": self.weights}
        about |= {"data": self.data, "split": self.split}
        return {**about, **for_json(self.metrics)}


@dataclass(frozen=True)
class InputEvaluation:
    """The result of `evaluate.evaluate_input`.

    Attributes:
      input: the file or the name of the weights.
      model: the name of their model.
      data: the name of the data set, with its split.
      split: the split of the data set.
      metrics: see `EvaluationResult`.
      classes: what was found for each class, if asked for.
      published: the published accuracy of these weights, if their name and the data tell it.
    """

    input: str
    model: str
    data: str
    split: str
    metrics: Mapping[str, float]
    classes: ClassReport | None = None
    published: tuple[Result, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The output of `--json`, without `classes`."""
        about = {"input": self.input, "model": self.model, "data": self.data, "split": self.split}
        published = [{"source": each.source, "top1": each.top1 / 100, "top5": each.top5 / 100}
                     for each in self.published]  # fmt: skip
        told = {"published": published} if published else {}
        return {**about, **for_json(self.metrics), **told}
