"""What a run starts from where it has no checkpoint yet: `config.init_from`, for fine-tuning."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xception_jax import config as config_lib
from xception_jax import paths
from xception_jax.training.state import TrainState, Tree
from xception_jax.weights import converted, sources
from xception_jax.weights.tensors import CLASSIFIER, abstract


def resolve(config: ConfigDict, begun: ConfigDict | None = None) -> ConfigDict:
    """`config.resolve`, and overrides of the model that are left open as the weights ask for.

    They stand in the run's `config.json`, so that it goes on without the weights' file.

    Args:
      config: valid.
      begun: the resolved config of the run that is to go on, if there is one.

    Raises:
      UsageError: there are no such weights, or they are of another model.
    """
    resolved, model = config_lib.resolve(config, begun), config.model
    if not config.init_from:
        return resolved
    if begun is not None:
        return _with(resolved, {name: begun.model.get(name) for name in converted.ARCHITECTURE})
    source = sources.open_source(paths.local("config.init_from", config.init_from))
    own = sources.effective(model.name, {})
    asked = source.overrides(model.name).items()
    resolved = _with(resolved, {name: value for name, value in asked if value != own[name]})
    _tensors(source, resolved)  # before anything is written or compiled
    return resolved


def _with(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """The config with these overrides of the model where it leaves them open."""
    for name, value in overrides.items():
        if config.model.get(name) is None:
            config.model[name] = value
    return config


def _tensors(source: sources.Source, config: ConfigDict) -> dict[str, np.ndarray]:
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
    source = sources.open_source(paths.local("config.init_from", config.init_from))
    name = config.model.name
    built = config_lib.model_overrides(config)
    notes = [*notes, f"starts from {config.init_from}", *source.notes()]
    asked, known = source.overrides(name), sources.effective(name, built)
    for override, value in asked.items():
        if value != known[override]:
            notes.append(f"NOTE: config.model.{override} is {known[override]!r}, and the weights "
                         f"were made with {value!r}")  # fmt: skip
    tensors = _tensors(source, config)
    if (other := _other_classes(source, class_names)) is not None:
        notes.append(f"a fresh classifier of {len(class_names)} classes: {other}")
        tensors = {key: array for key, array in tensors.items() if not key.startswith(CLASSIFIER)}
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    filled = _filled(weights, tensors)
    # Arrays of its own: a step is given both to write over.
    return replace(state, **filled, ema=state.ema and _filled(state.ema, tensors)), notes


def _other_classes(source: sources.Source, class_names: tuple[str, ...]) -> str | None:
    """Why the weights' classifier will not do, or None."""
    if source.num_classes is None:
        return "the weights have none"
    if source.num_classes != len(class_names):
        return f"that of the weights has {source.num_classes}"
    if source.class_names not in (None, class_names):
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
