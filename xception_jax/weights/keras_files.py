"""Keras' files: `.weights.h5` and `.keras` of Keras 3, and the `.h5` of Keras 1 and 2.

Read and written without Keras, whose own reader goes by the places of the layers too: see
`weights.keras`. The formats are those of keras/src/saving/saving_lib.py and
keras/src/legacy/saving/legacy_h5_format.py.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.weights import archives, hdf5
from xception_jax.weights.hdf5 import explained
from xception_jax.weights.keras import Layer

SUFFIXES = (".h5", ".hdf5", ".keras")


# Of a config, as JSON; that of the largest model here has half a megabyte.
_MAX_CONFIG_BYTES = 16 * 2**20


def read(path: Path) -> tuple[dict[str, Any], dict[str, str], float | None]:
    """What a file holds.

    Returns:
      Its tensors by the names of `weights.keras`; the names that its layers have, by their keys;
      and the epsilon of its batch normalization, if it says.

    Raises:
      UsageError: it is damaged, or no Keras file.
    """
    config: Any = None
    with explained(path, "Keras file"):
        if path.suffix == ".keras":
            limits = {"config.json": _MAX_CONFIG_BYTES, "model.weights.h5": hdf5.MAX_FILE_BYTES}
            members = archives.read_members(path, limits)
            config = json.loads(members["config.json"])
            file = hdf5.open_file(io.BytesIO(members["model.weights.h5"]))
        else:
            file = hdf5.open_file(path)
            config = json.loads(hdf5.text(file, "model_config", _MAX_CONFIG_BYTES) or "null")
        legacy = "model_weights" in file or "layer_names" in file.attrs
        layers = list(_legacy(file.get("model_weights", file)) if legacy else _keras_3(file))
        epsilon = _epsilon(config, path)
        found = {
            f"{key}/{i}": hdf5.Dataset(tensor, path)
            for key, _, tensors in layers
            for i, tensor in enumerate(tensors)
        }
    if not found:
        raise UsageError(f"{path} is no Keras file of one model: it holds no layers with weights")
    return found, {key: name for key, name, _ in layers if name}, epsilon


# The key of a layer, its name, and its tensors.
_Read = Iterator[tuple[str, str, list[Any]]]


def _keras_3(file: Any) -> _Read:
    layers = file.get("layers", file.get("_layer_checkpoint_dependencies", {}))
    for key, group in layers.items():
        held = group.get("vars", {})
        nested = [name for name in group if name != "vars" and len(group[name])]
        if nested:
            raise hdf5.Refused(f"has a nested model, {key}; save it alone")
        if len(held):
            name = held.attrs.get("name", "")
            yield key, str(name), [held[str(i)] for i in range(len(held))]


def _legacy(group: Any) -> _Read:
    backend = _text(group.attrs.get("backend", b""))
    if backend == "theano":
        raise hdf5.Refused("is of Keras on Theano, whose convolutions are flipped; convert it with "
                           "Keras")  # fmt: skip
    places = Counter[str]()
    for name in _names(group, "layer_names"):
        held = [group[name][tensor] for tensor in _names(group[name], "weight_names")]
        if not held:
            continue
        kind = _class_of([tensor.ndim for tensor in held])
        if kind is None:
            raise hdf5.Refused(f"has a layer {name!r} of {len(held)} tensors, which is none of an "
                               f"Xception or Inception V3")  # fmt: skip
        key = f"{kind}_{places[kind]}" if places[kind] else kind
        places[kind] += 1
        yield key, name, held


def _class_of(ranks: list[int]) -> str | None:
    """A layer's class by the ranks of its tensors."""
    if set(ranks) == {1} and len(ranks) in (3, 4):
        return "batch_normalization"
    return {(4,): "conv2d", (4, 4): "separable_conv2d", (2, 1): "dense"}.get(tuple(ranks))


def _names(group: Any, attribute: str) -> Iterator[str]:
    """An attribute's names; one that is too long for HDF5 is cut into several."""
    if attribute in group.attrs:
        yield from map(_text, group.attrs[attribute])
        return
    i = 0
    while f"{attribute}{i}" in group.attrs:
        yield from map(_text, group.attrs[f"{attribute}{i}"])
        i += 1


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _epsilon(config: Any, path: Path) -> float | None:
    layers = config["config"].get("layers", []) if isinstance(config, dict) else []
    found = {
        layer["config"].get("epsilon")
        for layer in layers
        if layer.get("class_name") == "BatchNormalization"
    }
    if len(found) > 1:
        raise UsageError(f"{path} has batch normalization of several epsilons: {sorted(found)}")
    return found.pop() if found else None


def check_order(layers: list[Layer], names: Mapping[str, str], source: str) -> None:
    """Raises `UsageError` where a layer has the name that is given to another one."""
    given = {layer.name: layer.key for layer in layers if layer.given}
    for layer in layers:
        name = names.get(layer.key, layer.name)
        if given.get(name, layer.key) != layer.key:
            raise UsageError(f"{source}: its {name} is where {layer.name} belongs")


def write(path: Path, kind: str, layers: list[Layer], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes what Keras' `model.load_weights` reads, by the ending of `kind`.

    Args:
      path: of the file.
      kind: the name it will have: `.weights.h5` of Keras 3, else `.h5` of Keras 2.
      layers: from `weights.keras`.
      tensors: Keras' by name.
    """
    with hdf5.h5py().File(path, "w") as file:
        if kind.endswith(".weights.h5"):
            for layer in layers:
                group = file.create_group(f"layers/{layer.key}/vars")
                group.attrs["name"] = layer.name
                for i, tensor in enumerate(layer.tensors):
                    group[str(i)] = tensors[tensor.theirs]
            return
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2"
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{name}:0" for name in layer.names]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, tensor in zip(names, layer.tensors, strict=True):
                group[name] = tensors[tensor.theirs]
