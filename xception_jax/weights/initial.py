"""What a run starts from where it has no checkpoint yet: `config.init_from`, for fine-tuning."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import models
from xception_jax.data.readers.folder_files import composed
from xception_jax.errors import UsageError
from xception_jax.training import preflight
from xception_jax.training.state import TrainState, Tree
from xception_jax.utils import paths
from xception_jax.weights import converted, pretrained
from xception_jax.weights.tensors import CLASSIFIER, abstract

# Of `config.data`, what weights may say of the images that they were made for.
_IMAGES = ("image_size", "eval_preset", "eval_crop", "exif")
_LARGEST_SIDE = 4096  # pixels, of what a file may ask for; a config may ask for more


def resolve_with_weights(config: ConfigDict, begun: ConfigDict | None = None) -> ConfigDict:
    """`config.resolve`, and what is left open of the model and of the images as the weights say.

    It stands in the run's `config.json`, so that the run goes on without the weights' file, and
    evaluation makes the same images.

    Args:
      config: valid.
      begun: the resolved config of the run that is to go on, if there is one.

    Raises:
      UsageError: there are no such weights, or they are of another model.
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
    """The weights of `init_from`; where there are none, the error says which have been published.

    Raises:
      UsageError: there are no such weights, or they cannot be read.
    """
    path, name = paths.local("config.init_from", config.init_from), config.model.name
    if not path.exists() and not path.is_symlink():
        known = [found.source for found in models.published_results(name) if found.weights]
        told = f"Published weights of {name}: {', '.join(known)}; " if known else ""
        raise UsageError(
            f"config.init_from: there are no weights at {path}; it takes a Keras or timm file, one "
            f"that python -m xception_jax.convert wrote, or a run's folder. {told}docs/weights.md "
            f"says how to get them as a file"
        )
    return pretrained.open_pretrained(path)


def _with_images(config: ConfigDict, source: pretrained.Pretrained) -> ConfigDict:
    """A copy with the images that the weights were made for where the config leaves them open."""
    config = ConfigDict(config).copy_and_resolve_references()
    data, made_for = config.data, _made_for(source)
    if data.image_size is None and "image_size" in made_for:
        data.image_size = made_for["image_size"]
    if data.eval_preset is None and "eval_preset" in made_for:
        data.eval_preset = made_for["eval_preset"]
    if data.eval_preset == made_for.get("eval_preset"):
        # Those two mean little to another way of resizing.
        if data.eval_crop is None:
            data.eval_crop = made_for.get("eval_crop", source.usual_crop(config.model.name))
        if data.exif == "auto" and "exif" in made_for:
            data.exif = made_for["exif"]
    preflight.check_crop(config)
    return config


def _made_for(source: pretrained.Pretrained) -> dict[str, Any]:
    """What the weights say of their images, in the words of `config.data`.

    Raises:
      UsageError: it is no size, preset or crop that a config could have.
    """
    found = {name: source.preprocessing[name] for name in _IMAGES if name in source.preprocessing}
    if "exif" in found:
        found["exif"] = "on" if found["exif"] else "off"
    for name, value in found.items():
        if complaint := config_lib.SCHEMA[f"data.{name}"].check(value):
            raise UsageError(f"{source.path}: its {name} {complaint}")
    if found.get("image_size", 0) > _LARGEST_SIDE:
        raise UsageError(
            f"{source.path} is for images of {found['image_size']:,} pixels, by its header; at "
            f"most {_LARGEST_SIDE:,} are taken from a file"
        )
    return found


def _with(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """The config with these overrides of the model where it leaves them open."""
    for name, value in overrides.items():
        if config.model.get(name) is None:
            config.model[name] = value
    return config


def _tensors(source: pretrained.Pretrained, config: ConfigDict) -> dict[str, np.ndarray]:
    """The weights of the config's model, with the classes that they have."""
    name, built = config.model.name, config_lib.model_overrides(config)
    return source.tensors(abstract(name, source.num_classes, built), name)


def fill(
    config: ConfigDict, state: TrainState, class_names: tuple[str, ...], notes: list[str]
) -> tuple[TrainState, list[str]]:
    """A fresh state with the weights of `config.init_from`, and what is to be said of it.

    The classifier stays as it is where that of the weights is for other classes, or there is none.

    Args:
      config: resolved.
      state: at step 0.
      class_names: of the data.
      notes: what is to be said already.

    Raises:
      UsageError: the weights are not those of the config's model.
    """
    if not config.init_from:
        return state, notes
    source, name = _open(config), config.model.name
    built = config_lib.model_overrides(config)
    notes = [*notes, f"starts from {config.init_from}", *source.notes()]
    asked, known = source.overrides(name), pretrained.effective(name, built)
    for override, value in asked.items():
        if value != known[override]:
            notes.append(f"NOTE: config.model.{override} is {known[override]!r}, and the weights "
                         f"were made with {value!r}")  # fmt: skip
    notes += _image_notes(config, source)
    tensors = _tensors(source, config)
    if (other := _other_classes(source, class_names)) is not None:
        notes.append(f"a fresh classifier of {len(class_names)} classes: {other}")
        tensors = {key: array for key, array in tensors.items() if not key.startswith(CLASSIFIER)}
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    filled = _filled(weights, tensors)
    # Arrays of its own: a step is given both to write over.
    return replace(state, **filled, ema=state.ema and _filled(state.ema, tensors)), notes


def _image_notes(config: ConfigDict, source: pretrained.Pretrained) -> list[str]:
    """Which images are as the weights say, in one line; and each thing that is not."""
    made_for, data = _made_for(source), config.data
    same = [name for name, value in made_for.items() if data[name] == value]
    notes = []
    if same:
        shown = ", ".join(f"{name} {data[name]}" for name in same)
        notes.append(f"images as the weights were made for (config.data): {shown}")
    if "eval_preset" in same and "eval_crop" not in made_for:
        notes.append(f"NOTE: the weights do not say their eval_crop; it is {data.eval_crop}")
    if "eval_preset" in made_for and "eval_preset" not in same:
        # Crop and EXIF are a matter of the preset.
        made_for = {name: made_for[name] for name in ("image_size", "eval_preset")
                    if name in made_for}  # fmt: skip
    return notes + [
        f"NOTE: config.data.{name} is {data[name]!r}, and the weights were made with {value!r}"
        for name, value in made_for.items()
        if data[name] != value
    ]


def _other_classes(source: pretrained.Pretrained, class_names: tuple[str, ...]) -> str | None:
    """Why the weights' classifier will not do, or None."""
    if source.num_classes is None:
        return "the weights have none"
    if source.num_classes != len(class_names):
        return f"that of the weights has {source.num_classes}"
    learnt = source.class_names
    if learnt is not None and [*map(composed, learnt)] != [*map(composed, class_names)]:
        return "that of the weights is for others"
    return None


def _filled(tree: Tree, tensors: dict[str, np.ndarray]) -> Tree:
    """The tree with arrays of the given values, laid out as its own are."""

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        array = tensors.get(jax.tree_util.keystr(path, simple=True, separator="."))
        if array is None:
            return leaf
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda i: array[i])

    return jax.tree_util.tree_map_with_path(fill, tree)
