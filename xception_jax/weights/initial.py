"""The initial weights of a run without a checkpoint: `config.init_from`, for fine-tuning."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.data.readers.folder_files import composed
from xception_jax.errors import UsageError
from xception_jax.runtime import cluster
from xception_jax.training import preflight
from xception_jax.training.state import TrainState, Tree
from xception_jax.utils import paths
from xception_jax.utils.files import write_atomically
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import CLASSIFIER, abstract

# The fields of `config.data` that weights can specify.
_IMAGES = ("image_size", "eval_preset", "eval_crop", "exif")
_LARGEST_SIDE = 4096  # pixels; the limit for a weights file, not for a config


def resolve_with_weights(config: ConfigDict, begun: ConfigDict | None = None) -> ConfigDict:
    """`config.resolve`, with open fields of the model and the images taken from the weights.

    The values are written to the run's `config.json`. So the run can continue without the weights
    file, and evaluation prepares images in the same way.

    Args:
      config: valid.
      begun: the resolved config of the run to continue, if any.

    Raises:
      UsageError: the weights do not exist or belong to another model.
    """
    if not config.init_from:
        return config_lib.resolve(config, begun)
    if begun is not None:
        resolved = config_lib.resolve(config, begun)
        kept = converted.architecture(begun.model.name)
        return _with(resolved, {name: begun.model.get(name) for name in kept})
    source, name = _open(config), config.model.name
    own = pretrained.effective(name, {})
    asked = source.overrides(name).items()
    resolved = config_lib.resolve(_with_images(config, source))
    resolved = _with(resolved, {key: value for key, value in asked if value != own[key]})
    _tensors(source, resolved)  # before anything is written or compiled
    return resolved


def _open(config: ConfigDict) -> pretrained.Pretrained:
    """Opens the weights of `init_from`.

    Raises:
      UsageError: they do not exist (the error lists published weights) or cannot be read.
    """
    if paths.is_weights_name(config.init_from):
        return pretrained.open_pretrained(config.init_from)
    path, name = paths.local("config.init_from", config.init_from), config.model.name
    if not path.exists() and not path.is_symlink():
        published = models.published_results(name)
        known = filter(None, (models.download_name(name, found) for found in published))
        told = f"Published weights of {name}: {listed}; " if (listed := ", ".join(known)) else ""
        raise UsageError(
            f"config.init_from: there are no weights at {path}; give a Keras or timm file, a file "
            f"written by python -m xception_jax.convert, or a run's folder. {told}docs/weights.md "
            f"says how to download them"
        )
    return pretrained.open_pretrained(path)


def _with_images(config: ConfigDict, source: pretrained.Pretrained) -> ConfigDict:
    """A copy whose open image fields are filled in from the weights."""
    config = ConfigDict(config).copy_and_resolve_references()
    data, made_for = config.data, _made_for(source)
    if data.image_size is None and "image_size" in made_for:
        data.image_size = made_for["image_size"]
    if data.eval_preset is None and "eval_preset" in made_for:
        data.eval_preset = made_for["eval_preset"]
    if data.eval_preset == made_for.get("eval_preset"):
        # These two fields depend on the preset.
        if data.eval_crop is None:
            data.eval_crop = made_for.get("eval_crop", source.usual_crop(config.model.name))
        if data.exif == "auto" and "exif" in made_for:
            data.exif = made_for["exif"]
    preflight.check_crop(config)
    return config


def _made_for(source: pretrained.Pretrained) -> dict[str, Any]:
    """The image fields of `config.data` that the weights specify.

    Raises:
      UsageError: a size, preset or crop is not valid in a config.
    """
    found = {name: source.preprocessing[name] for name in _IMAGES if name in source.preprocessing}
    if "exif" in found:
        found["exif"] = "on" if found["exif"] else "off"
    for name, value in found.items():
        if complaint := config_lib.SCHEMA[f"data.{name}"].check(value):
            raise UsageError(f"{source.path}: its {name} {complaint}")
    if found.get("image_size", 0) > _LARGEST_SIDE:
        raise UsageError(
            f"{source.path} asks for images of {found['image_size']:,} pixels; the limit for a "
            f"weights file is {_LARGEST_SIDE:,}"
        )
    return found


def _with(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """The config with these model overrides in the fields that it leaves open."""
    for name, value in overrides.items():
        if config.model.get(name) is None:
            config.model[name] = value
    return config


def _tensors(source: pretrained.Pretrained, config: ConfigDict) -> dict[str, np.ndarray]:
    """The weights of the config's model, with as many classes as the weights have."""
    name, built = config.model.name, config_lib.model_overrides(config)
    return source.tensors(abstract(name, source.num_classes, built), name)


def fill(
    config: ConfigDict,
    state: TrainState,
    class_names: tuple[str, ...],
    notes: list[str],
    workdir: Path,
) -> tuple[TrainState, list[str]]:
    """Fills a new state with the weights of `config.init_from`.

    Process 0 writes their source (format, file, address, revision, license, hash) to
    `init_from.json` in the run's folder.

    The classifier keeps its initial values if the weights have none or one for other classes.

    Args:
      config: resolved.
      state: at step 0.
      class_names: the classes of the data.
      notes: earlier notes for the user.
      workdir: the run's folder.

    Returns:
      The state, and all notes for the user.

    Raises:
      UsageError: the weights do not belong to the config's model.
      RunError: processes have read different weights.
    """
    if not config.init_from:
        return state, notes
    source, name = _open(config), config.model.name
    built = config_lib.model_overrides(config)
    notes = [*notes, f"starts from {config.init_from}", *source.notes()]
    asked, known = source.overrides(name), pretrained.effective(name, built)
    for override, value in asked.items():
        if value != known[override]:
            notes.append(f"NOTE: config.model.{override} is {known[override]!r}, but the weights "
                         f"expect {value!r}")  # fmt: skip
    notes += _image_notes(config, source)
    tensors = _tensors(source, config)
    _check_same(config.init_from, tensors)
    if (other := _other_classes(source, class_names)) is not None:
        notes.append(f"new classifier of {len(class_names)} classes: {other}")
        tensors = {key: array for key, array in tensors.items() if not key.startswith(CLASSIFIER)}
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    filled = _filled(weights, tensors)
    if jax.process_index() == 0:
        told = {"init_from": config.init_from, **source.origin}
        write_atomically(workdir / "init_from.json", json.dumps(told, indent=1) + "\n")
    # Separate arrays for the EMA: a step donates both.
    return replace(state, **filled, ema=state.ema and _filled(state.ema, tensors)), notes


def _check_same(name: str, tensors: dict[str, np.ndarray]) -> None:
    """Checks that all processes have read the same weights: a branch of the Hub can move between.

    Raises:
      RunError: in all processes, if they have not.
    """
    if jax.process_count() > 1:
        content = hashlib.sha256()
        for key in sorted(tensors):
            content.update(np.ascontiguousarray(tensors[key]).data)
        cluster.check_same(f"the weights {name}", content.digest())


def _image_notes(config: ConfigDict, source: pretrained.Pretrained) -> list[str]:
    """One line with the image fields that match the weights, and a line for each that differs."""
    made_for, data = _made_for(source), config.data
    same = [name for name, value in made_for.items() if data[name] == value]
    notes = []
    if same:
        shown = ", ".join(f"{name} {data[name]}" for name in same)
        notes.append(f"images as the weights expect them (config.data): {shown}")
    if "eval_preset" in same and "eval_crop" not in made_for:
        notes.append(f"NOTE: the weights do not specify eval_crop; it is {data.eval_crop}")
    if "eval_preset" in made_for and "eval_preset" not in same:
        # Crop and EXIF depend on the preset.
        made_for = {name: made_for[name] for name in ("image_size", "eval_preset")
                    if name in made_for}  # fmt: skip
    return notes + [
        f"NOTE: config.data.{name} is {data[name]!r}, but the weights expect {value!r}"
        for name, value in made_for.items()
        if data[name] != value
    ]


def _other_classes(source: pretrained.Pretrained, class_names: tuple[str, ...]) -> str | None:
    """Why the weights' classifier cannot be used, or None."""
    if source.num_classes is None:
        return "the weights have no classifier"
    if source.num_classes != len(class_names):
        return f"the one of the weights has {source.num_classes}"
    learnt = source.class_names
    if learnt is not None and [*map(composed, learnt)] != [*map(composed, class_names)]:
        return "the one of the weights is for other classes"
    return None


def _filled(tree: Tree, tensors: dict[str, np.ndarray]) -> Tree:
    """The tree with the given values, in arrays with the same shardings."""

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        array = tensors.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if array is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: array[i])

    return jax.tree_util.tree_map_with_path(fill, tree)
