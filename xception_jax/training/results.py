"""What training and evaluation return."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xception_jax.utils.numbers import for_json


@dataclass(frozen=True)
class TrainResult:
    """The state of a run when `train.train` returns.

    Attributes:
      workdir: the run's folder.
      step: the last step done; it has a checkpoint.
      total_steps: the steps of the whole run.
      finished: all steps are done and the last one is evaluated. False after a signal to stop: the
        same call continues.
      metrics: of the evaluation at `step`, by name: `top1`, `loss`, `examples`, of a further set
        `real/top1`. Empty if there was none.
    """

    workdir: Path
    step: int
    total_steps: int
    finished: bool
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        """What `--json` prints."""
        return {"step": self.step, **for_json(self.metrics)}


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate.evaluate` has found.

    Attributes:
      workdir: the run's folder.
      step: of the checkpoint.
      weights: `ema` (averaged) or `raw`.
      split: of the data set.
      metrics: by name. `top1` and (from 20 classes on) `top5`, of multi-label data `map`,
        `precision` and `recall`; `loss`, the metrics of `eval.metrics`, `examples` and `skipped`.
        Those of a further set have its name before: `real/top1`.
    """

    workdir: Path
    step: int
    weights: str
    split: str
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, object]:
        """What `--json` prints."""
        about = {"step": self.step, "weights": self.weights, "split": self.split}
        return {**about, **for_json(self.metrics)}
