"""Converted weights: one `.safetensors` file of our names, which says what it holds.

Its header has two entries: `xception_jax`, JSON of `About`; and `sha256`, of that JSON and of every
tensor's name, shape and bytes in the order of names. So a flipped bit shows wherever it is.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax import models
from xception_jax.errors import UsageError


@dataclass(frozen=True)
class About:
    """What is said of weights.

    Attributes:
      model: its name, see `models.names()`.
      overrides: of the model, those that change what the weights compute.
      num_classes: None without a classifier.
      class_names: None where they are not known.
      preprocessing: `range` of the pixels, their `mean` and `std` on a scale of [0, 1], and where
        known `image_size`, `eval_preset`, `eval_crop` (as in `config.data`) and `interpolation`.
      source: `format`, and `file` and `sha256`, or `step` and `weights` of a run; `of`, of a
        converted file, is its own source.
      activation: `softmax` or `sigmoid`, what makes probabilities of the logits; None where it is
        not known. Files written before it was kept have none.
    """

    model: str
    overrides: dict[str, Any]
    num_classes: int | None
    class_names: tuple[str, ...] | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    activation: str | None = None


def write(path: Path, about: About, tensors: dict[str, np.ndarray]) -> None:
    """Writes the file."""
    from safetensors.numpy import save_file

    text = json.dumps(asdict(about), sort_keys=True)
    save_file(tensors, path, {"xception_jax": text, "sha256": _digest(text, tensors)})


def read_about(path: Path) -> About | None:
    """What a `.safetensors` file says of itself; None where it is not one of ours.

    Raises:
      UsageError: it is damaged.
    """
    metadata = _metadata(path)
    if "xception_jax" not in metadata:
        return None
    try:
        held = json.loads(metadata["xception_jax"])
        names = held.pop("class_names")
        overrides = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in held.pop("overrides").items()
        }
        names = None if names is None else tuple(names)
        if held["model"] not in models.names():
            raise ValueError(f"no model {held['model']!r}")
        return About(**held, overrides=overrides, class_names=names)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: its header: {error}") from None


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors, checked against the digest; `UsageError` where they are not what was written."""
    from safetensors.numpy import load_file

    metadata = _metadata(path)
    try:
        tensors = load_file(path)
    except Exception as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if metadata.get("sha256") != _digest(metadata["xception_jax"], tensors):
        raise UsageError(f"{path} is damaged: its tensors or its header are not what was written")
    return tensors


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except Exception as error:
        raise UsageError(f"{path} is damaged or no .safetensors file: {error}") from None


def _digest(text: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()
