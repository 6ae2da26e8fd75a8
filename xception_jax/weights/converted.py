"""Converted weights: one `.safetensors` file with this package's names and its own description.

Its header has two entries. `xception_jax` is the JSON of `About`. `sha256` covers that JSON and
every tensor's name, dtype, shape and bytes, sorted by name, so that any flipped bit is detected.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax import models
from xception_jax.config import SCHEMA
from xception_jax.errors import UsageError
from xception_jax.models.options import OF_TRAINING
from xception_jax.weights import files, safetensors_files


def architecture(name: str) -> tuple[str, ...]:
    """The overrides of a model that change which tensors it has or what they compute."""
    fields = {key: SCHEMA.get(f"model.{key}") for key in models.overrides(name)}
    return tuple(
        key
        for key, field in fields.items()
        if field is not None and not field.harmless and key not in OF_TRAINING
    )


_LARGEST = 10_000_000  # of any number in a header


@dataclass(frozen=True)
class About:
    """The description of weights.

    Attributes:
      model: its name, see `models.names()`.
      overrides: the model overrides that change what the weights compute.
      num_classes: None without a classifier.
      class_names: None if unknown.
      preprocessing: `mean` and `std` of the pixels on a scale of [0, 1], and the `range` that they
        give if it is [-1, 1]. If known also `image_size`, `eval_preset`, `eval_crop` (as in
        `config.data`), `interpolation`, `exif` (whether the EXIF orientation is applied) and
        `white_level` (as in `config.data`, if it is set).
      source: `format`, and `file` and `sha256`, or `step` and `weights` of a run. In a converted
        file, `of` is the source of its source.
      activation: `softmax` or `sigmoid`, which turns logits into probabilities; None if unknown.
        Older files do not have it.
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
    """The description in a `.safetensors` file; None if this package did not write the file.

    Raises:
      UsageError: the file is damaged, or its description is invalid.
    """
    tensors, metadata = safetensors_files.read(path)
    if "xception_jax" not in metadata:
        return None
    try:
        return _about(files.parse_json(metadata["xception_jax"]), len(tensors))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: its header: {files.reason(error)}") from None


def _about(held: Any, tensors: int) -> About:
    """Checks each value of the header's entry.

    Args:
      held: the entry.
      tensors: the number of tensors, an upper limit for counts of blocks or layers.
    """
    if not isinstance(held, dict):
        raise ValueError("it is not a JSON object")
    _check_keys(held, {field.name for field in fields(About)}, "entry")
    if not isinstance(held["model"], str) or held["model"] not in models.names():
        raise ValueError(f"no model {held['model']!r}")
    overrides = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in held["overrides"].items()
    }
    _check_keys(overrides, set(architecture(held["model"])), "override")
    for name, value in overrides.items():
        _check(f"model.{name}", value)
        count = len(value) if isinstance(value, tuple) else value
        if name in ("middle_blocks", "fc_units") and count is not None and count > tensors:
            raise ValueError(f"{name} is {count:,}, but there are only {tensors:,} tensors")
        if isinstance(value, int | float) and value > _LARGEST:
            raise ValueError(f"{name} is {value:,}")
    classes, names = held["num_classes"], held["class_names"]
    if classes is not None and (type(classes) is not int or not 0 < classes <= _LARGEST):
        raise ValueError(f"num_classes is {classes!r}")
    if names is not None and not (
        isinstance(names, list)
        and len(names) == classes
        and all(isinstance(name, str) for name in names)
    ):
        raise ValueError("class_names is not a list with one name per class")
    _check_preprocessing(held["preprocessing"])
    if not isinstance(held["source"], dict):
        raise ValueError("source is not a JSON object")
    if held.get("activation") not in (None, "softmax", "sigmoid"):
        raise ValueError(f"activation is {held['activation']!r}")
    about = {"overrides": overrides, "class_names": None if names is None else tuple(names)}
    return About(**held | about)


def _check_preprocessing(held: dict[str, Any]) -> None:
    known = {"image_size", "eval_preset", "eval_crop", "white_level", "mean", "std"}
    _check_keys(held, {*known, "range", "interpolation", "exif"}, "preprocessing")
    for name, value in held.items():
        if value is None:  # a config may leave a value open; weights leave out the entry
            raise ValueError(f"{name} is null")
        if name in known:
            _check(f"data.{name}", value)
        elif name == "interpolation":
            if not isinstance(value, str):
                raise ValueError("interpolation is not a string")
        elif name == "exif":
            if not isinstance(value, bool):
                raise ValueError("exif is neither true nor false")
        elif not (
            isinstance(value, list)
            and len(value) == 2
            and all(isinstance(number, int | float) for number in value)
        ):
            raise ValueError(f"{name} is not a list of 2 numbers")


def _check_keys(held: dict[str, Any], known: set[str], what: str) -> None:
    if unknown := sorted(held.keys() - known):
        raise ValueError(f"unknown {what} {unknown[0]!r}")


def _check(name: str, value: Any) -> None:
    if complaint := SCHEMA[name].check(value):
        raise ValueError(f"{name} {complaint}")


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors. Raises `UsageError` if they do not match the digest."""
    stored, metadata = safetensors_files.read(path)
    try:
        tensors = {name: np.asarray(tensor) for name, tensor in stored.items()}
    except Exception as error:
        raise UsageError(f"{path} is damaged: {files.reason(error)}") from None
    if metadata.get("sha256") != _digest(metadata["xception_jax"], tensors):
        raise UsageError(f"{path} is damaged: its tensors or header do not match its checksum")
    return tensors


def _digest(text: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
