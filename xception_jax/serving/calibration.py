"""Calibrated probabilities: a temperature that divides the logits (arXiv:1706.04599, section 4.2).

It is fitted on an evaluation split and changes no order. With several labels an image, each class
also has a threshold. A run keeps both in a file for each checkpoint and kind of weights, which
`inference.of_run` reads.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xception_jax.errors import RunError
from xception_jax.training.trained import Trained
from xception_jax.utils import seal
from xception_jax.utils.files import write_atomically

# Of the expected calibration error, as in the paper.
BINS = 15
# The temperature is in between 1 / this and this.
_MOST = 100.0
# A label is there from this probability on, unless a threshold is fitted.
THRESHOLD = 0.5


# What makes probabilities of logits.
ACTIVATIONS = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def probabilities_of(logits: jax.Array, activation: str, temperature: float) -> jax.Array:
    """Calibrated probabilities `[batch, classes]`, see `serving.calibration`."""
    scaled = logits if temperature == 1 else logits / temperature
    return ACTIVATIONS[activation](scaled)


@dataclass(frozen=True)
class Calibration:
    """What is fitted, and what it changes on the examples it is fitted on.

    Attributes:
      temperature: the divisor of the logits.
      activation: `softmax` or `sigmoid`.
      data: the data set and its split.
      examples: their number.
      before, after: `nll`, the mean negative log-likelihood, and `ece`, see `calibration_error`;
        for sigmoid also `f1`, see `mean_f1`.
      thresholds: for sigmoid, of each class: see `best_thresholds`.
    """

    temperature: float
    activation: str
    data: str
    examples: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    thresholds: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The output of `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class CalibrationResult:
    """The result of `evaluate.calibrate`.

    Attributes:
      workdir: the run's folder.
      step: the checkpoint's step.
      weights: `ema` (averaged) or `raw`.
      split: the split of the data set.
      file: keeps the calibration.
      calibration: what was fitted.
    """

    workdir: Path
    step: int
    weights: str
    split: str
    file: Path
    calibration: Calibration

    def to_json(self) -> dict[str, Any]:
        """The output of `--json`."""
        about = {"step": self.step, "weights": self.weights, "split": self.split}
        return {**about, **self.calibration.to_json(), "file": str(self.file)}


def fit(
    logits: np.ndarray,
    targets: np.ndarray,
    activation: str,
    data: str,
    say: Callable[[str], None] = print,
) -> Calibration:
    """The temperature with the least negative log-likelihood, and for sigmoid thresholds.

    Args:
      logits: `[examples, classes]`.
      targets: int labels `[examples]`, or multi-hot `[examples, classes]`.
      activation: `softmax` or `sigmoid`.
      data: the data set and its split.
      say: prints a line if there is no such temperature.
    """
    logits = np.asarray(logits, np.float64)
    if targets.ndim == 1:
        targets = np.eye(logits.shape[1])[targets]
    temperature = 1.0
    if _all_right(logits, targets, activation):  # the likelihood only grows as it goes to 0
        say(f"NOTE: the model is right on all {len(logits):,} examples, so there is no most likely "
            f"temperature; it stays 1")  # fmt: skip
    else:
        temperature = _temperature(logits, targets, activation)
    before, after = (_errors(each, targets, activation) for each in (logits, logits / temperature))
    thresholds: list[float] = []
    if activation == "sigmoid":
        found = _probabilities(logits / temperature, activation)
        thresholds = best_thresholds(found, targets).tolist()
        before["f1"] = mean_f1(found >= THRESHOLD, targets)
        after["f1"] = mean_f1(found >= thresholds, targets)
    return Calibration(temperature, activation, data, len(logits), before, after, thresholds)


def _temperature(logits: np.ndarray, targets: np.ndarray, activation: str) -> float:
    # By the inverse temperature, the likelihood has one maximum: bisect its derivative.
    low, high = -np.log(_MOST), np.log(_MOST)
    for _ in range(50):
        middle = (low + high) / 2
        wrong = (_probabilities(np.exp(middle) * logits, activation) - targets) * logits
        low, high = (low, middle) if wrong.sum() > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def _all_right(logits: np.ndarray, targets: np.ndarray, activation: str) -> bool:
    if activation == "sigmoid":
        return bool(((logits > 0) == (targets > 0)).all())
    return bool(targets[np.arange(len(logits)), logits.argmax(1)].all())


def best_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The threshold of each class with its best F1, in the middle between two probabilities.

    Args:
      probabilities: `[examples, classes]`.
      targets: multi-hot, `[examples, classes]`.

    Returns:
      Float64 `[classes]`; `THRESHOLD` for a class that no example has.
    """
    thresholds = np.full(targets.shape[1], THRESHOLD)
    for label in np.flatnonzero(targets.any(0)):
        order = np.argsort(-probabilities[:, label], kind="stable")
        falling, right = probabilities[order, label], targets[order, label]
        below = np.append(falling[1:], 0.0)
        predicted = np.arange(1, len(order) + 1)
        f1 = 2 * np.cumsum(right) / (predicted + right.sum())
        last = int(np.where(below < falling, f1, -1).argmax())  # equal ones are not divided
        thresholds[label] = (falling[last] + below[last]) / 2
    return thresholds


def mean_f1(predicted: np.ndarray, targets: np.ndarray) -> float:
    """The mean over classes of F1, the harmonic mean of precision and recall.

    Args:
      predicted: bool `[examples, classes]`.
      targets: multi-hot, `[examples, classes]`. A class that no example has does not count.
    """
    there, hits = targets.sum(0), (predicted * targets).sum(0)
    f1 = 2 * hits / np.maximum(predicted.sum(0) + there, 1)
    return float(f1[there > 0].mean()) if there.any() else 0.0


def _errors(logits: np.ndarray, targets: np.ndarray, activation: str) -> dict[str, float]:
    found = _probabilities(logits, activation)
    if activation == "softmax":
        best = logits.max(1, keepdims=True)
        log_shares = logits - best - np.log(np.exp(logits - best).sum(1, keepdims=True))
        nll = -(targets * log_shares).sum() / len(logits)
        right = targets[np.arange(len(logits)), logits.argmax(1)]
        return {"nll": float(nll), "ece": calibration_error(found.max(1), right)}
    nll = (np.logaddexp(0, logits) - targets * logits).sum() / len(logits)
    return {"nll": float(nll), "ece": calibration_error(found.ravel(), targets.ravel())}


def _probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    if activation == "sigmoid":
        found: np.ndarray = np.exp(-np.logaddexp(0, -logits))
        return found
    shares = np.exp(logits - logits.max(1, keepdims=True))
    scaled: np.ndarray = shares / shares.sum(1, keepdims=True)
    return scaled


def calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error: the mean gap of confidence and accuracy in `BINS` bins.

    Args:
      confidences: probabilities `[n]`: of each most probable class, or of each label on its own.
      right: 1 where the prediction is correct, or the label is there, else 0.
    """
    bins = np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, confidences - right, BINS)
    return float(np.abs(gaps).sum() / len(confidences))


def path_of(trained: Trained) -> Path:
    """The file of a checkpoint's calibration."""
    return trained.workdir / "calibration" / f"{trained.step}-{trained.kind}.json"


def write(trained: Trained, calibration: Calibration) -> None:
    """Keeps a calibration beside its checkpoint, in place of an earlier one.

    Raises:
      OSError: the file cannot be written.
    """
    path = path_of(trained)
    path.parent.mkdir(exist_ok=True)
    # The digest, so that a calibration is never used for other weights.
    fields = seal.sealed({"checkpoint": trained.digest, **calibration.to_json()})
    write_atomically(path, json.dumps(fields, indent=1) + "\n")


def read(trained: Trained) -> Calibration | None:
    """The calibration of a checkpoint; None: it is not calibrated.

    Raises:
      RunError: the file is damaged, or of another checkpoint.
    """
    path = path_of(trained)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    try:
        fields = seal.parse(text)
        seal.check(fields)
        if fields.pop("checkpoint") != trained.digest:
            raise ValueError("it is of another checkpoint")
        fields.pop(seal.NAME)
        return Calibration(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} is damaged: {error}; delete it, or calibrate again: python -m "
            f"xception_jax.evaluate --calibrate"
        ) from None
