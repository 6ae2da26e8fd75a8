"""Keras' files: `.weights.h5` and `.keras` of Keras 3, and the `.h5` of Keras 1 and 2.

Read and written without Keras, whose own reader goes by the places of the layers too: see
`weights.keras`. The formats are those of keras/src/saving/saving_lib.py and
keras/src/legacy/saving/legacy_h5_format.py.
"""

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.weights.keras import Layer

SUFFIXES = (".h5", ".hdf5", ".keras")
_INSTALL = "needs h5py: pip install 'xception_jax[convert]'"


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise UsageError(f"a Keras file {_INSTALL}") from None
    return h5py


def read(path: Path) -> tuple[dict[str, Any], dict[str, str], float | None]:
    """What a file holds.

    Returns:
      Its tensors by the names of `weights.keras`; the names that its layers have, by their keys;
      and the epsilon of its batch normalization, if it says.

    Raises:
      UsageError: it is damaged, or no Keras file.
    """
    h5py = _h5py()
    config: Any = None
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                # Read whole, so that its checksum is checked.
                file = h5py.File(io.BytesIO(archive.read("model.weights.h5")), "r")
        else:
            file = h5py.File(path, "r")
            config = json.loads(file.attrs.get("model_config", "null"))
        legacy = "model_weights" in file or "layer_names" in file.attrs
        layers = list(_legacy(file.get("model_weights", file)) if legacy else _keras_3(file))
        epsilon = _epsilon(config, path)
        found = {
            f"{key}/{i}": np.asarray(tensor)
            for key, _, tensors in layers
            for i, tensor in enumerate(tensors)
        }
    except UsageError:
        raise
    except Exception as error:  # h5py and zipfile raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} is damaged or no Keras file: {reason}") from None
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
            raise UsageError(f"a layer of {file.filename} is a model itself, {key}; save it alone")
        if len(held):
            name = held.attrs.get("name", "")
            yield key, str(name), [held[str(i)] for i in range(len(held))]


def _legacy(group: Any) -> _Read:
    backend = _text(group.attrs.get("backend", b""))
    if backend == "theano":
        raise UsageError(f"{group.file.filename} is of Keras on Theano, whose convolutions are "
                         f"flipped; convert it with Keras")  # fmt: skip
    places = Counter[str]()
    for name in _names(group, "layer_names"):
        held = [group[name][tensor] for tensor in _names(group[name], "weight_names")]
        if not held:
            continue
        kind = _class_of([tensor.ndim for tensor in held])
        if kind is None:
            raise UsageError(f"{group.file.filename}: layer {name!r} of {len(held)} tensors is "
                             f"none of an Xception or Inception V3")  # fmt: skip
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
    with _h5py().File(path, "w") as file:
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
