"""Keras' files: `.weights.h5` and `.keras` of Keras 3, and the `.h5` of Keras 1 and 2.

They are read and written without Keras. A file with a config is read by its config
(`keras.config`). A file of weights only is read by the places of its layers, as Keras does
(`keras.names`).
"""

import io
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xception_jax.errors import UsageError
from xception_jax.weights import archives, files
from xception_jax.weights.files import Refused, explained
from xception_jax.weights.keras import config as keras_config
from xception_jax.weights.keras import hdf5
from xception_jax.weights.keras import head as keras_head
from xception_jax.weights.keras.names import Layer
from xception_jax.weights.keras.tree import Leaf, Tree

SUFFIXES = (".h5", ".hdf5", ".keras")
# The limit of a config as JSON; the largest model here has 0.5 MB.
_MAX_CONFIG_BYTES = 16 * 2**20
# The limit of all tensors; a classifier of 100,000 classes takes 0.8 GB.
_MAX_TENSOR_BYTES = 2**30
# Layers without weights that change the output, by generated names; `_AFTER` are head layers.
_AFTER = ("global_max_pooling2d", "flatten")
_TELLING = (*_AFTER, "rescaling", "normalization", "resizing", "re_lu", "leaky_re_lu", "lambda")


@dataclass
class Contents:
    """The contents of a file.

    Attributes:
      tensors: by the names of `keras.names`.
      by_name: whether those names contain the layers' names instead of their keys.
      layer_names: the layers' names by their keys, if the layers are identified by place.
      dense: the units of each dense layer of the head; the last one is the classifier.
      activation: `softmax` or `sigmoid` after the classifier; None if not specified.
      pooling: `average` or `max`.
      epsilon: of batch normalization; None if not specified.
      image_size: height and width of the images; None if not specified.
      problem: why the head was left out, or None; all else is complete.
      notes: notes for the user.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    by_name: bool = False
    layer_names: dict[str, str] = field(default_factory=dict)
    dense: list[int] = field(default_factory=list)
    activation: str | None = None
    pooling: str = "average"
    epsilon: float | None = None
    image_size: tuple[int, int] | None = None
    problem: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, tensors: Any) -> None:
        self.tensors |= {f"{name}/{i}": tensor for i, tensor in enumerate(tensors)}

    def add_head(self, dense: list[tuple[Any, Any]]) -> None:
        """Adds fully connected layers and the classifier."""
        for i, (kernel, bias) in enumerate(dense):
            self.add(f"dense_{i}" if i else "dense", (kernel, bias))
        self.dense = [bias.size for _, bias in dense]


def read(path: Path) -> Contents:
    """Reads a file; its tensors are read on access by NumPy.

    Raises:
      UsageError: the file is damaged, not a Keras file, or has a model that is not Keras' own.
    """
    config: Any = None
    with explained(path, "a Keras file"):
        if path.suffix == ".keras":
            limits = {"config.json": _MAX_CONFIG_BYTES, "model.weights.h5": files.MAX_BYTES}
            members = archives.read_members(path, limits)
            config = files.parse_json(members["config.json"])
            file = hdf5.open_file(io.BytesIO(members["model.weights.h5"]))
        else:
            file = hdf5.open_file(path)
            config = files.parse_json(hdf5.text(file, "model_config", _MAX_CONFIG_BYTES) or "null")
        tree = Tree(file, path)
        contents = _from_places(tree) if config is None else _from_config(tree, config)
        size = sum(tensor.nbytes for tensor in contents.tensors.values())
        if size > _MAX_TENSOR_BYTES:
            raise Refused(f"declares {size:,} bytes of weights, more than {_MAX_TENSOR_BYTES:,}")
        if not contents.tensors:
            raise Refused("is not a Keras file of one model: it has no layers with weights")
    return contents


def _from_config(tree: Tree, config: Any) -> Contents:
    """The contents of a file with a config."""
    parsed = keras_config.parse_model(config)
    contents = Contents(by_name=True, epsilon=parsed.epsilon, image_size=parsed.image_size)
    for name, layer in parsed.layers.items():
        if layer.kind in ("Conv2D", "SeparableConv2D", "BatchNormalization"):
            contents.add(name, tree.tensors(layer))
    # A problem here is an error: without these layers, the backbone would get other inputs.
    # A problem in the head is only reported: the backbone can be used without it.
    _scale(contents, parsed, keras_head.scaling(parsed.before, tree.tensors))
    try:
        if parsed.problem:
            raise Refused(parsed.problem)
        head = keras_head.head(parsed.head, tree.tensors)
    except Refused as problem:
        contents.problem = str(problem)
        return contents
    contents.add_head(head.dense)
    contents.activation, contents.pooling = head.activation, head.pooling
    contents.notes += [f"NOTE: the {note}" for note in head.notes]
    return contents


def _scale(
    contents: Contents,
    parsed: keras_config.ParsedModel,
    scaled: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Folds the file's scaling of images into the first convolution, and adds a note."""
    if scaled is None:
        contents.notes.append("NOTE: the file does not scale images; [-1, 1] is assumed, as in "
                              "keras.applications")  # fmt: skip
    elif not (np.allclose(scaled[0], 1, rtol=1e-6) and np.allclose(scaled[1], 0, atol=1e-6)):
        kernel, mean = (("block1_conv1/0", "block1_conv1_bn/2")
                        if parsed.backbone == "xception"
                        else ("conv2d/0", "batch_normalization/1"))  # fmt: skip
        keras_head.fold_scaling(contents.tensors, kernel, mean, *scaled)
        contents.notes.append("NOTE: the file scales images to another range than [-1, 1]; this "
                              "is folded into the first convolution")  # fmt: skip


def _from_places(tree: Tree) -> Contents:
    """The contents of a file without a config, by the places of its layers.

    The nested model with the most convolutions is the backbone; dense layers are the head.
    """
    leaves = list(tree.leaves())
    counts = Counter(leaf.container for leaf in leaves if leaf.kind in _CONVOLUTIONS)
    if not counts:
        raise Refused("is not a Keras file of one model: it has no convolutions")
    [(backbone, convolutions)] = counts.most_common(1)
    contents = Contents(by_name=tree.legacy and bool(backbone))
    rest = []
    names = _fresh_names(leaves, backbone) if contents.by_name else {}
    for leaf in leaves:
        own = leaf.container == backbone and leaf.kind != "dense" and leaf.tensors
        # In the backbone there is one normalization per convolution; others are in the head.
        if own and not (leaf.kind == "batch_normalization" and leaf.index >= convolutions):
            key = names.get(id(leaf), leaf.name) if contents.by_name else leaf.key
            contents.add(key, leaf.tensors)
            if not contents.by_name and leaf.name:
                contents.layer_names[key] = leaf.name
        else:
            rest.append(leaf)
    _assume_head(contents, rest)
    return contents


_CONVOLUTIONS = ("conv2d", "separable_conv2d")


def _fresh_names(leaves: list[Leaf], backbone: tuple[str, ...]) -> dict[int, str]:
    """Generated names (`conv2d_7`) as Keras numbers them in a new process, by `id(leaf)`."""
    found: dict[int, str] = {}
    for kind in ("conv2d", "batch_normalization"):
        numbered = [
            (int(match[1] or 0), leaf)
            for leaf in leaves
            if leaf.container == backbone
            and (match := re.fullmatch(kind + r"(?:_(\d+))?", leaf.name))
        ]
        numbered.sort(key=lambda both: both[0])
        for i, (_, leaf) in enumerate(numbered):
            found[id(leaf)] = f"{kind}_{i}" if i else kind
    return found


def _assume_head(contents: Contents, rest: list[Leaf]) -> None:
    """Assumes that the dense layers are the head, with ReLU between them."""
    # A dense layer has a kernel and a bias; a quantized one has more tensors.
    dense = [leaf for leaf in rest if leaf.kind == "dense" and len(leaf.tensors) in (1, 2)]
    # An inner model comes before the layers on top of it.
    dense.sort(key=lambda leaf: (-len(leaf.container), leaf.index))
    for leaf in rest:
        named = leaf.name or leaf.key
        unknown = leaf.tensors and leaf not in dense
        if unknown or leaf.kind.startswith(_TELLING) or named.startswith(_TELLING):
            contents.problem = (
                f"has a nested or last layer {named!r}, which cannot be read from weights without "
                f"a config; save the complete model as .keras"
            )
            if not _is_after(leaf, named):
                raise Refused(contents.problem)
    if contents.problem:
        return
    pairs = [
        (leaf.tensors[0],
         leaf.tensors[1] if len(leaf.tensors) > 1 else np.zeros(leaf.tensors[0].shape[1], "f4"))
        for leaf in dense
    ]  # fmt: skip
    for (before, _), (after, _) in itertools.pairwise(pairs):
        if before.shape[1] != after.shape[0]:
            raise Refused(f"has dense layers of {list(before.shape)} and {list(after.shape)}, "
                          f"which do not fit together")  # fmt: skip
    contents.add_head(pairs)
    assumed = ["images scaled to [-1, 1]", "average pooling"]
    if len(pairs) > 1:
        assumed.append("ReLU between dense layers")
    if dense and dense[-1].name == "predictions":
        # The name of keras.applications' classifier; any other could be for multiple labels.
        contents.activation = "softmax"
        assumed.append("softmax")
    contents.notes.append("NOTE: the file has weights but no config; assumed: "
                          + ", ".join(assumed))  # fmt: skip


def _is_after(leaf: Leaf, named: str) -> bool:
    """Whether a layer cannot be between the images and the backbone."""
    if leaf.kind == "batch_normalization" and leaf.tensors:
        return leaf.tensors[0].size > 4  # more channels than an image has
    return leaf.kind.startswith(_AFTER) or named.startswith(_AFTER)


def check_order(layers: list[Layer], names: Mapping[str, str], source: str) -> None:
    """Raises `UsageError` if a layer has the fixed name of another layer."""
    given = {layer.name: layer.key for layer in layers if layer.given}
    for layer in layers:
        name = names.get(layer.key, layer.name)
        if given.get(name, layer.key) != layer.key:
            raise UsageError(f"{source}: expected layer {layer.name}, got {name}")


def write(path: Path, kind: str, layers: list[Layer], tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file for Keras' `model.load_weights`.

    Args:
      path: of the file.
      kind: its final name: `.weights.h5` is Keras 3's format, `.h5` Keras 2's.
      layers: from `keras.names`.
      tensors: by Keras' names.
    """
    with hdf5.h5py().File(path, "w") as file:
        if kind.endswith(".weights.h5"):
            for layer in layers:
                group = file.create_group(f"layers/{layer.key}/vars")
                group.attrs["name"] = layer.name
                for i, tensor in enumerate(layer.tensors):
                    group[str(i)] = tensors[tensor.library_name]
            return
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2"
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{name}:0" for name in layer.names]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, tensor in zip(names, layer.tensors, strict=True):
                group[name] = tensors[tensor.library_name]
