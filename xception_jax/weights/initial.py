"""The initial weights of a run without a checkpoint: `config.init_from`, for fine-tuning."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.data.readers.folder_files import composed
from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import cluster
from xception_jax.training import preflight
from xception_jax.training.state import TrainState, Tree
from xception_jax.utils import paths, seal
from xception_jax.utils.files import write_atomically
from xception_jax.utils.text import printable, without_secrets
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import CLASSIFIER, abstract

# The fields of `config.data` that weights can specify.
_IMAGES = ("image_size", "eval_preset", "eval_crop", "exif", "white_level", "mean", "std")
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
    source, name = open_weights(config), config.model.name
    own = pretrained.effective(name, {})
    asked = source.overrides(name).items()
    resolved = config_lib.resolve(_with_images(config, source))
    resolved = _with(resolved, {key: value for key, value in asked if value != own[key]})
    _tensors(source, resolved)  # before anything is written or compiled
    return resolved


def open_weights(config: ConfigDict) -> pretrained.Pretrained:
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
    for name in ("mean", "std"):
        if data[name] is None and name in made_for:
            data[name] = made_for[name]
    data.white_level = data.white_level or made_for.get("white_level", 0)
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
    found |= {name: tuple(found[name]) for name in ("mean", "std") if name in found}
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

    Of the classifier, the classes that the weights know by name keep their values, in any order.
    The others are initialized, or all of them if the weights have no classifier for these classes.
    Numbers count as names only if all of them are the same.

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
    source, name = open_weights(config), config.model.name
    built = config_lib.model_overrides(config)
    shown = without_secrets(config.init_from)
    notes = [*notes, f"starts from {shown}", *source.notes()]
    asked, known = source.overrides(name), pretrained.effective(name, built)
    for override, value in asked.items():
        if value != known[override]:
            notes.append(f"NOTE: config.model.{override} is {known[override]!r}, but the weights "
                         f"expect {value!r}")  # fmt: skip
    notes += _image_notes(config, source)
    tensors = _tensors(source, config)
    check_same_weights(shown, tensors)
    kept, told = _kept_classes(source, class_names)
    notes += [told] if told else []
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    filled = _filled(weights, tensors, kept)
    if jax.process_index() == 0:
        about = {"init_from": shown, **source.about(name).source}
        write_atomically(workdir / "init_from.json", json.dumps(about, indent=1) + "\n")
    # Separate arrays for the EMA: a step donates both.
    return replace(state, **filled, ema=state.ema and _filled(state.ema, tensors, kept)), notes


def source_of(workdir: Path) -> dict[str, Any] | None:
    """What `init_from.json` says of the initial weights of a run; None: there is no such file.

    Raises:
      RunError: the file is damaged.
    """
    path = workdir / "init_from.json"
    try:
        return seal.parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from None


def check_same_weights(name: str, tensors: Mapping[str, np.ndarray]) -> None:
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
    usual = {name for name in ("mean", "std") if made_for.get(name) == config_lib.HALF}
    notes = []
    if told := [name for name in same if name not in usual]:
        shown = ", ".join(f"{name} {data[name]}" for name in told)
        notes.append(f"images as the weights expect them (config.data): {shown}")
    if "eval_preset" in same and "eval_crop" not in made_for:
        notes.append(f"NOTE: the weights do not specify eval_crop; it is {data.eval_crop}")
    if "eval_preset" in made_for and "eval_preset" not in same:
        # Crop and EXIF depend on the preset.
        made_for = {name: value for name, value in made_for.items()
                    if name not in ("eval_crop", "exif")}  # fmt: skip
    return notes + [
        f"NOTE: config.data.{name} is {data[name]!r}, but the weights expect {value!r}"
        for name, value in made_for.items()
        if data[name] != value
    ]


def _kept_classes(
    source: pretrained.Pretrained, class_names: tuple[str, ...]
) -> tuple[np.ndarray, str]:
    """Where the classifier of each class comes from.

    Returns:
      For each class of the data its number in the weights, or -1: it is initialized. And a note
      unless the classes are known to be the same.
    """
    count, learnt = len(class_names), source.class_names
    new, fresh = f"new classifier of {count} classes", np.full(count, -1)
    if source.num_classes is None:
        return fresh, f"{new}: the weights have no classifier"
    if source.num_classes != count and (learnt is None or _are_numbers(learnt)):
        return fresh, f"{new}: the one of the weights has {source.num_classes}"
    if learnt is None:
        return np.arange(count), (
            f"NOTE: the classifier of the weights is kept for {count:,} classes in their order, "
            f"because the weights do not name theirs"
        )
    number = {composed(name): i for i, name in enumerate(learnt)}
    kept = np.array([number.get(composed(name), -1) for name in class_names])
    if (kept == np.arange(count)).all() and len(learnt) == count:
        return kept, ""
    if _are_numbers(learnt) and (kept < 0).any():  # numbers are no names: other data has them too
        return fresh, f"{new}: the weights name theirs by numbers, which differ"
    if (kept < 0).all():
        other = "is for other classes" if len(learnt) == count else f"has {len(learnt)}"
        return kept, f"{new}: the one of the weights {other}"
    lacking = [name for name, old in zip(class_names, kept, strict=True) if old < 0]
    few = ", ".join(map(printable, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
    others = f"; new: {few}" if lacking else ", which has others or another order"
    known = count - len(lacking)
    return kept, f"classifier: {known:,} of {count:,} classes by name from the weights{others}"


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def _filled(tree: Tree, tensors: dict[str, np.ndarray], kept: np.ndarray) -> Tree:
    """The tree with the given values, in arrays with the same shardings.

    Args:
      tree: arrays.
      tensors: their values by name, of the classifier those of the weights' classes.
      kept: see `_kept_classes`.
    """

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        array = tensors.get(name)
        by_class = name.startswith(CLASSIFIER)
        if array is None or (by_class and (kept < 0).all()):
            return leaf
        values = array[..., kept] if by_class else array
        found = jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: values[i])
        if not by_class or (kept >= 0).all():
            return found
        choose = jax.jit(partial(jnp.where, kept >= 0), out_shardings=leaf.sharding)
        chosen: jax.Array = choose(found, leaf)
        return chosen

    return jax.tree_util.tree_map_with_path(fill, tree)
