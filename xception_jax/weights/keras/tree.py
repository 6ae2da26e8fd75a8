"""The layers that a Keras file holds, as they lie in its HDF5: in Keras 3's layout or the older.

Keras 3 (keras/src/saving/saving_lib.py) keeps a layer under its class and its place among the
layers of that class, a model in a model as a layer with layers. Before (keras/src/legacy/saving/
legacy_h5_format.py) it was by name, and a model in a model as one layer with all weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xception_jax.weights.files import Refused
from xception_jax.weights.keras.config import Placed
from xception_jax.weights.keras.hdf5 import Dataset

_LAYERS = ("layers", "_layer_checkpoint_dependencies")
# Of a dropout, the state of its random numbers.
_NO_WEIGHTS = ("seed_generator",)
_MAX_DEPTH = 32
# Keras' order of a layer's tensors, which the older layout mixes up in a nested model.
_ORDER = ["depthwise_kernel", "pointwise_kernel", "kernel", "gamma", "bias", "beta", "moving_mean",
          "moving_variance", "mean", "variance"]  # fmt: skip
_KINDS = {(4,): "conv2d", (4, 1): "conv2d", (4, 4): "separable_conv2d", (2,): "dense",
          (2, 1): "dense"}  # fmt: skip


@dataclass(frozen=True)
class Leaf:
    """A layer with its tensors.

    Attributes:
      container: the places of the models that it is in, from the outermost.
      kind: its class as Keras 3 has it in its files.
      index: its place among those of its class in the innermost model.
      name: its own; empty where the file does not say.
      tensors: in Keras' order; none of a layer without weights.
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
      path: for messages.
    """

    def __init__(self, file: Any, path: Path):
        self.path = path
        self.legacy = "model_weights" in file or "layer_names" in file.attrs \
            or "layer_names0" in file.attrs  # fmt: skip
        self.root = file.get("model_weights", file) if self.legacy else file
        if self.legacy and _text(self.root.attrs.get("backend", b"")) == "theano":
            raise Refused("is of Keras on Theano, whose convolutions are flipped; convert it with "
                          "Keras")  # fmt: skip

    def tensors(self, layer: Placed) -> list[Dataset]:
        """Those of a layer of the file's own config.

        Raises:
          Refused: it has none, or the weights there are another layer's.
        """
        found = self._by_name(layer) if self.legacy else self._by_place(layer)
        if not found:
            raise Refused(f"has no weights of the {layer}")
        return found

    def _by_place(self, layer: Placed) -> list[Dataset]:
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

    def _by_name(self, layer: Placed) -> list[Dataset]:
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
        """The layers in a layer of the older layout, by name, in order."""
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
        """All layers, in the file's order where it has one."""
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
        """A layer's class by the ranks of its tensors."""
        ranks = tuple(tensor.ndim for tensor in tensors)
        if set(ranks) == {1} and len(ranks) in (2, 3, 4):
            return "batch_normalization"
        if ranks not in _KINDS:
            raise Refused(f"has a layer {name!r} of {len(ranks)} tensors, which is none of an "
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
                              f"{others[0]!r}, which is no model of Keras' own")  # fmt: skip
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
