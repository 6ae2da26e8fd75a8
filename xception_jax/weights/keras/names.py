"""The map to Keras' tensors (keras/src/applications/xception.py and inception_v3.py, Keras 3.15).

Keras' files identify a layer by its class and its number in that class: `conv2d_4/0` is the first
tensor of the fifth ordinary convolution. The order starts at the inputs: by the distance to the
output, and at equal distance by the order of the branches. Names that Keras generates (`conv2d_7`)
depend on what the process has built before; given names do not.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flax import nnx

from xception_jax.errors import UsageError
from xception_jax.models.inception_modules import Branches, Chain
from xception_jax.models.inception_v3 import InceptionV3
from xception_jax.models.layers import BatchNorm, ConvNorm, SeparableConv
from xception_jax.models.published import NameLayers
from xception_jax.models.xception import Xception
from xception_jax.weights.tensors import SAME, AxisOrder, Names, Tensor, layers_of, parts

_AXES = {
    "depthwise": AxisOrder(lambda x: x.swapaxes(2, 3), lambda x: x.swapaxes(2, 3)),
    "pointwise": AxisOrder(lambda x: x[None, None], lambda x: x[0, 0]),
}
_TENSOR_NAMES = {
    "depthwise": "depthwise_kernel",
    "pointwise": "pointwise_kernel",
    "conv": "kernel",
    "linear": "kernel",
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


@dataclass(frozen=True)
class Layer:
    """A layer of a Keras model.

    Attributes:
      key: its class and number, `conv2d_4`.
      name: its given name, or the name that Keras generates in a new process.
      given: whether the name is given.
      tensors: its tensors, `KEY/0`, `KEY/1` etc.
      names: the tensors' names in legacy files, as `kernel`.
    """

    key: str
    name: str
    given: bool
    tensors: list[Tensor]
    names: list[str]


# A layer of a model here and its given name in Keras (None: generated), in the order of the graph.
_NamedLayer = tuple[nnx.Module, str | None]


def layers(model: Any) -> list[Layer]:
    """Keras' layers with weights for a model, in the order of Keras' graph.

    Raises:
      UsageError: Keras has no such model, or no counterpart of some tensor.
    """
    names, places, found = Names(model), Counter[str](), []
    placed = list(layers_of("keras", model, _LAYERS))
    made_up = _made_up_names(model, placed)
    for layer, name in placed:
        theirs = _class_of(layer)
        key = f"{theirs}_{places[theirs]}" if places[theirs] else theirs
        places[theirs] += 1
        held = list(parts(layer))
        tensors = [
            names.tensor(variable, f"{key}/{i}", _AXES.get(part, SAME))
            for i, (part, variable) in enumerate(held)
        ]
        legacy = [_TENSOR_NAMES[part] for part, _ in held]
        if theirs in ("conv2d", "dense"):
            legacy = ["kernel", "bias"][: len(held)]
        found.append(Layer(key, name or made_up[id(layer)], name is not None, tensors, legacy))
    library = f"Keras' {type(model).__name__}"
    names.check_complete([t for layer in found for t in layer.tensors], library)
    if isinstance(model, InceptionV3) and next(_conv_norms(model.stem)).bn.scale is not None:
        raise UsageError("Keras' InceptionV3 has no scale in its batch normalization (bn_scale)")
    return found


def tensor_map(model: Any, *, by_name: bool = False) -> list[Tensor]:
    """A model's tensors with their names in Keras.

    Args:
      model: of arrays or of shapes.
      by_name: whether to use the layers' names, `block1_conv1/0`, instead of their keys. Layers of
        the head always have keys.
    """
    found = []
    for layer in layers(model):
        head = layer.key.partition("_")[0] == "dense"
        for i, tensor in enumerate(layer.tensors):
            named = by_name and not head
            found.append(replace(tensor, library_name=f"{layer.name}/{i}") if named else tensor)
    return found


def _class_of(layer: nnx.Module) -> str:
    if isinstance(layer, BatchNorm):
        return "batch_normalization"
    if isinstance(layer, SeparableConv):
        return "separable_conv2d"
    return "dense" if isinstance(layer, nnx.Linear) else "conv2d"


def _made_up_names(model: Any, placed: list[tuple[Any, str | None]]) -> dict[int, str]:
    """Generated names of the layers without a given name, numbered in the order of creation."""
    if isinstance(model, Xception):
        made: list[Any] = [block.skip for _, block in model.blocks() if hasattr(block, "skip")]
        made = [skip for skip in made if skip is not None]
    elif isinstance(model, InceptionV3):
        made = [layer for _, block in model.blocks() for layer in _conv_norms(block)]
    else:
        counts, found = Counter[str](), {}
        for layer, name in placed:
            if name is None:
                theirs = _class_of(layer)
                found[id(layer)] = f"{theirs}_{counts[theirs]}" if counts[theirs] else theirs
                counts[theirs] += 1
        return found
    names: dict[int, str] = {}
    for i, layer in enumerate(made):
        end = f"_{i}" if i else ""
        names |= {id(layer.conv): f"conv2d{end}", id(layer.bn): f"batch_normalization{end}"}
    for i, layer in enumerate(model.head.fc if model.head is not None else ()):
        names[id(layer)] = f"dense_{i}" if i else "dense"
    return names


def _conv_norms(module: Any) -> Iterator[ConvNorm]:
    """The convolutions of an Inception module in the order that Keras creates them, by branch."""
    if isinstance(module, ConvNorm):
        yield module
    elif isinstance(module, Chain):
        for layer in module.layers:
            yield from _conv_norms(layer)
    elif isinstance(module, Branches):
        for name in module.names:
            yield from _conv_norms(getattr(module, name))


def _xception(model: Any) -> Iterator[_NamedLayer]:
    for i in (1, 2):
        yield getattr(model.stem, f"conv{i}"), f"block1_conv{i}"
        yield getattr(model.stem, f"bn{i}"), f"block1_conv{i}_bn"
    for name, block in list(model.blocks())[1:]:
        for i, unit in enumerate(block.units, start=1):
            yield unit.conv, f"{name}_sepconv{i}"
            yield unit.bn, f"{name}_sepconv{i}_bn"
        if getattr(block, "skip", None) is not None:
            # These are as far from the output as the pooling and the layer before it.
            yield from ((block.skip.conv, None), (block.skip.bn, None))
    yield from _predictions(model)


def _inception(model: Any) -> Iterator[_NamedLayer]:
    for _, block in model.blocks():
        placed, _ = _distances(block, 0)
        for _, layer in sorted(placed, key=lambda both: -both[0]):  # stable: by branch
            yield layer, None
    yield from _predictions(model)


def _predictions(model: Any) -> Iterator[_NamedLayer]:
    if model.head is not None:
        yield from ((layer, None) for layer in model.head.fc)
        yield model.head.classifier, "predictions"


def _distances(module: Any, end: int) -> tuple[list[tuple[int, nnx.Module]], int]:
    """The layers of an Inception module with their distances to its end, and its input's distance.

    In Keras' graph, a convolution, its normalization, its activation, a pooling and a
    concatenation are nodes. Each is one further from the end than the node that takes its output.
    """
    if isinstance(module, ConvNorm):
        return [(end + 3, module.conv), (end + 2, module.bn)], end + 3
    if isinstance(module, Chain):
        found: list[tuple[int, nnx.Module]] = []
        for layer in reversed(module.layers):
            inner, end = _distances(layer, end)
            found += inner
        return found, end
    if isinstance(module, Branches):
        branches = [_distances(getattr(module, name), end + 1) for name in module.names]
        return [pair for inner, _ in branches for pair in inner], max(far for _, far in branches)
    return [], end + 1  # a pooling


_LAYERS: dict[type, NameLayers] = {Xception: _xception, InceptionV3: _inception}
