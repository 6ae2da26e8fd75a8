"""The layers of a Keras file in its HDF5 layout: that of Keras 3 or the legacy one.

Keras 3 (keras/src/saving/saving_lib.py) stores a layer under its class and its number in that
class, and a nested model as a layer with layers. The legacy layout (keras/src/legacy/saving/
legacy_h5_format.py) stores layers by name, and a nested model as one layer with all weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xception_jax.weights.files import Refused
from xception_jax.weights.keras.config import ConfigLayer
from xception_jax.weights.keras.hdf5 import Dataset

_LAYERS = ("layers", "_layer_checkpoint_dependencies")
# The random state of a dropout layer.
_NO_WEIGHTS = ("seed_generator",)
_MAX_DEPTH = 32
# Keras' order of a layer's tensors; the legacy layout does not keep it in a nested model.
_ORDER = ["depthwise_kernel", "pointwise_kernel", "kernel", "gamma", "bias", "beta", "moving_mean",
          "moving_variance", "mean", "variance"]  # fmt: skip
_KINDS = {(4,): "conv2d", (4, 1): "conv2d", (4, 4): "separable_conv2d", (2,): "dense",
          (2, 1): "dense"}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """A layer with its tensors.

    Attributes:
      container: the places of the models that contain it, outermost first.
      kind: its class as written in Keras 3's files.
      index: its number in its class in the innermost model.
      name: its name; empty if the file does not have it.
      tensors: in Keras' order; empty for a layer without weights.
    """

    container: tuple[str, ...]
    kind: str
    index: int
    name: str
    tensors: list[Dataset]

    @property
    def key(self) -> str:
        return f"{self.kind}_{self.index}" if self.index else self.kind


class Tree:
    """The layers of a file.

    Args:
      file: from `hdf5.open_file`.
      path: the file's path, for messages.
    """

    def __init__(self, file: Any, path: Path):
        self.path = path
        self.legacy = "model_weights" in file or "layer_names" in file.attrs \
            or "layer_names0" in file.attrs  # fmt: skip
        self.root = file.get("model_weights", file) if self.legacy else file
        if self.legacy and _text(self.root.attrs.get("backend", b"")) == "theano":
            raise Refused("was written by Keras on Theano, whose convolutions are flipped; convert "
                          "it with Keras")  # fmt: skip

    def tensors(self, layer: ConfigLayer) -> list[Dataset]:
        """The tensors of a layer of the file's config.

        Raises:
          Refused: it has none, or the file has another layer's weights in its place.
        """
        found = self._by_name(layer) if self.legacy else self._by_place(layer)
        if not found:
            raise Refused(f"has no weights for the {layer}")
        return found

    def _by_place(self, layer: ConfigLayer) -> list[Dataset]:
        group = self.root
        for place in layer.place:
            group = _layers(group).get(place, {})
        held = group.get("vars", {})
        if not len(held):
            return []
        name = _text(held.attrs.get("name", layer.name))
        if name != layer.name:
            raise Refused(f"has the weights of {name!r} where its config has {layer.name!r}")
        return self._vars(held)

    def _vars(self, held: Any) -> list[Dataset]:
        return [Dataset(held[str(i)], self.path) for i in range(len(held))]

    def _by_name(self, layer: ConfigLayer) -> list[Dataset]:
        top, *inner = layer.path
        if top not in self.root:
            return []
        held = self._held(top)
        if not inner:
            return [tensor for _, tensors in held for tensor in tensors]
        same = [tensors for name, tensors in held if name.split("/")[-1] == layer.name]
        if len(same) > 1:
            raise Refused(f"has {len(same)} layers {layer.name!r} in the nested model {top!r}")
        return same[0] if same else []

    def _held(self, name: str) -> list[tuple[str, list[Dataset]]]:
        """The layers in a layer of the legacy layout, by name, in order."""
        group = self.root[name]
        found: dict[str, dict[str, Dataset]] = {}
        for tensor in _names(group, "weight_names"):
            owner, _, part = tensor.rpartition("/")
            found.setdefault(owner, {})[part] = Dataset(group[tensor], self.path)
        if len(found) == 1:
            return [(name, list(found.popitem()[1].values()))]
        return [(owner, [held[part] for part in sorted(held, key=_rank)])
                for owner, held in found.items()]  # fmt: skip

    def leaves(self) -> Iterator[Leaf]:
        """All layers, in the file's order if it has one."""
        if not self.legacy:
            yield from self._leaves(self.root, ())
            return
        counts: dict[tuple[tuple[str, ...], str], int] = {}
        for name in _names(self.root, "layer_names"):
            held = self._held(name)
            if not held:
                yield Leaf((), re.sub(r"_\d+$", "", name), 0, name, [])
            for owner, tensors in held:
                container = (name,) if len(held) > 1 else ()
                kind = self._kind(owner, tensors)
                index = counts.get((container, kind), 0)
                counts[container, kind] = index + 1
                yield Leaf(container, kind, index, owner.split("/")[-1], tensors)

    def _kind(self, name: str, tensors: list[Dataset]) -> str:
        """Infers a layer's class from the ranks of its tensors."""
        ranks = tuple(tensor.ndim for tensor in tensors)
        if set(ranks) == {1} and len(ranks) in (2, 3, 4):
            return "batch_normalization"
        if ranks not in _KINDS:
            raise Refused(f"has a layer {name!r} with {len(ranks)} tensors; not one of an "
                          f"Xception or Inception V3")  # fmt: skip
        return _KINDS[ranks]

    def _leaves(self, group: Any, container: tuple[str, ...]) -> Iterator[Leaf]:
        if len(container) > _MAX_DEPTH:
            raise Refused(f"has models nested more than {_MAX_DEPTH} deep")
        for key, held in _layers(group).items():
            if len(_layers(held)):
                yield from self._leaves(held, (*container, key))
                continue
            own, others = held.get("vars", {}), _others(held)
            if others:
                raise Refused(f"has a nested layer {'/'.join((*container, key))!r} with "
                              f"{others[0]!r}, which is not a Keras model")  # fmt: skip
            kind, _, index = key.rpartition("_")
            named = _text(own.attrs.get("name", "")) if hasattr(own, "attrs") else ""
            numbered = bool(kind) and index.isdecimal()
            yield Leaf(container, kind if numbered else key, int(index) if numbered else 0, named,
                       self._vars(own))  # fmt: skip


def _layers(group: Any) -> Any:
    return next((group[name] for name in _LAYERS if name in group), {})


def _others(group: Any) -> list[str]:
    known = ("vars", *_LAYERS, *_NO_WEIGHTS)
    return [name for name in group if name not in known and len(group[name])]


def _rank(part: str) -> tuple[int, str]:
    stem = re.sub(r"(_\d+)?(:\d+)?$", "", part)
    return (_ORDER.index(stem) if stem in _ORDER else len(_ORDER), part)


def _names(group: Any, attribute: str) -> Iterator[str]:
    """The names in an attribute, which Keras splits if it is too long for HDF5."""
    if attribute in group.attrs:
        yield from map(_text, group.attrs[attribute])
        return
    i = 0
    while f"{attribute}{i}" in group.attrs:
        yield from map(_text, group.attrs[f"{attribute}{i}"])
        i += 1


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
