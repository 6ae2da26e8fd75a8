"""Calibrated probabilities: a temperature that divides the logits (arXiv:1706.04599, section 4.2).

It is fitted on an evaluation split and changes no prediction. A run keeps it in a file for each
checkpoint and kind of weights, which `inference.of_run` reads.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import RunError
from xception_jax.training.trained import Trained
from xception_jax.utils import seal
from xception_jax.utils.files import write_atomically

# Of the expected calibration error, as in the paper.
BINS = 15
# The temperature is in between 1 / this and this.
_MOST = 100.0


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature, and what it changes on the examples it is fitted on.

    Attributes:
      temperature: the divisor of the logits.
      activation: `softmax` or `sigmoid`.
      data: the data set and its split.
      examples: their number.
      before, after: `nll`, the mean negative log-likelihood, and `ece`, see `calibration_error`.
    """

    temperature: float
    activation: str
    data: str
    examples: int
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)

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


def fit(logits: np.ndarray, targets: np.ndarray, activation: str, data: str) -> Calibration:
    """The temperature with the least negative log-likelihood.

    Args:
      logits: `[examples, classes]`.
      targets: int labels `[examples]`, or multi-hot `[examples, classes]`.
      activation: `softmax` or `sigmoid`.
      data: the data set and its split.
    """
    logits = np.asarray(logits, np.float64)
    if targets.ndim == 1:
        targets = np.eye(logits.shape[1])[targets]
    # By the inverse temperature, the likelihood has one maximum: bisect its derivative.
    low, high = -np.log(_MOST), np.log(_MOST)
    for _ in range(50):
        middle = (low + high) / 2
        wrong = (_probabilities(np.exp(middle) * logits, activation) - targets) * logits
        low, high = (low, middle) if wrong.sum() > 0 else (middle, high)
    temperature = float(np.exp(-(low + high) / 2))
    return Calibration(
        temperature,
        activation,
        data,
        len(logits),
        _errors(logits, targets, activation),
        _errors(logits / temperature, targets, activation),
    )


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


def _digest(trained: Trained) -> str:
    """Of the checkpoint, so that a calibration is never used for other weights."""
    return hashlib.sha256(seal.canonical(trained.meta.digests).encode()).hexdigest()


def write(trained: Trained, calibration: Calibration) -> None:
    """Keeps a calibration beside its checkpoint, in place of an earlier one.

    Raises:
      OSError: the file cannot be written.
    """
    path = path_of(trained)
    path.parent.mkdir(exist_ok=True)
    fields = seal.sealed({"checkpoint": _digest(trained), **calibration.to_json()})
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
        if fields.pop("checkpoint") != _digest(trained):
            raise ValueError("it is of another checkpoint")
        fields.pop(seal.NAME)
        return Calibration(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{path} is damaged: {error}; delete it, or calibrate again: python -m "
            f"xception_jax.evaluate --calibrate"
        ) from None
