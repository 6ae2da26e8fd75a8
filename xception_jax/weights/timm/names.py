"""The map to timm's tensors of timm/models/xception.py, xception_aligned.py and inception_v3.py.

It is based on timm 1.0.31. Two kinds of tensors are left out: `num_batches_tracked` of batch
normalization, which has no effect, and Inception V3's auxiliary head `AuxLogits`, which is only
used in training.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.models.aligned_xception import AlignedXception
from xception_jax.models.inception_modules import Branches, Chain
from xception_jax.models.inception_v3 import InceptionV3
from xception_jax.models.layers import BatchNorm, Conv, ConvNorm
from xception_jax.models.published import NameLayers
from xception_jax.models.xception import Xception
from xception_jax.weights.tensors import SAME, AxisOrder, Names, Tensor, layers_of, parts

_CONV = AxisOrder(lambda x: x.transpose(3, 2, 0, 1), lambda x: x.transpose(2, 3, 1, 0))
_AXES = {
    "conv": _CONV,
    "depthwise": _CONV,
    "pointwise": AxisOrder(lambda x: x.T[:, :, None, None], lambda x: x[:, :, 0, 0].T),
    "linear": AxisOrder(lambda x: x.T, lambda x: x.T),
}
_TENSOR_NAMES = {"bias": "bias", "mean": "running_mean", "var": "running_var"}

_MIXED = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
_STEM = ["1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"]

_Named = Iterator[tuple[nnx.Module, str]]


def tensor_map(model: Any) -> list[Tensor]:
    """A model's tensors with their names in timm.

    Raises:
      UsageError: timm has no counterpart of some tensor.
    """
    if getattr(model, "head", None) is not None and model.head.fc:
        raise UsageError("timm's models have no fully connected layers before the classifier")
    names, found = Names(model), []
    for layer, name in layers_of("timm", model, _LAYERS):
        if isinstance(layer, BatchNorm) and layer.scale is None:
            raise UsageError("timm's models have a scale in batch normalization (bn_scale)")
        for part, variable in parts(layer):
            theirs = f"{name}.{_TENSOR_NAMES.get(part, 'weight')}"
            found.append(names.tensor(variable, theirs, _AXES.get(part, SAME)))
    names.check_complete(found, f"timm's {type(model).__name__}")
    return found


def classifier_biases() -> set[str]:
    """The tensors that have one number a class, of all models."""
    return {f"{theirs.classifier}.bias" for theirs in models.elsewhere("timm").values()}


def is_unused(name: str) -> bool:
    """Whether a tensor of timm's has no effect on the logits."""
    return name.endswith("num_batches_tracked") or name.startswith("AuxLogits.")


def _conv_norm(layer: ConvNorm, name: str) -> _Named:
    yield layer.conv, f"{name}.conv"
    yield layer.bn, f"{name}.bn"


def _inception(model: Any) -> _Named:
    convs = [layer for layer in model.stem.layers if isinstance(layer, ConvNorm)]
    for layer, name in zip(convs, _STEM, strict=True):
        yield from _conv_norm(layer, f"Conv2d_{name}")
    for module, mixed in zip(model.mixed, _MIXED, strict=True):
        for branch in module.names:
            yield from _branch(getattr(module, branch), f"Mixed_{mixed}.{branch}")
    yield from _classifier(model, "fc")


def _branch(branch: Any, name: str) -> _Named:
    """A branch's convolutions: `NAME`, or `NAME_1`, `NAME_2` etc.; the last can be `a` and `b`."""
    if isinstance(branch, ConvNorm):
        yield from _conv_norm(branch, name)
    elif isinstance(branch, Chain):
        for i, layer in enumerate(branch.layers, start=1):
            if isinstance(layer, ConvNorm):
                pooled = name.endswith("branch_pool")
                yield from _conv_norm(layer, name if pooled else f"{name}_{i}")
            elif isinstance(layer, Branches):
                for part in layer.names:
                    yield from _conv_norm(getattr(layer, part), f"{name}_{i}{part}")


def _aligned(model: Any) -> _Named:
    for i, layer in enumerate((model.stem.conv1, model.stem.conv2)):
        if isinstance(layer, Conv):
            yield layer, f"stem.{i}"
        else:
            yield from _conv_norm(layer, f"stem.{i}")
    for name, block in list(model.blocks())[1:]:
        if hasattr(block, "bn"):
            yield from _preactivated(block, name)
            continue
        for i, unit in enumerate(block.units, start=1):
            place = f"{name}.stack.conv{i}"
            yield unit.depthwise, f"{place}.conv_dw"
            yield unit.depthwise_bn, f"{place}.bn_dw"
            yield unit.pointwise, f"{place}.conv_pw"
            yield unit.pointwise_bn, f"{place}.bn_pw"
        if block.skip is not None:
            yield from _conv_norm(block.skip, f"{name}.shortcut")
    yield from _classifier(model, "head.fc")


def _preactivated(block: Any, name: str) -> _Named:
    yield block.bn, f"{name}.norm"
    for i, unit in enumerate(block.units, start=1):
        place = f"{name}.stack.conv{i}"
        if unit.bn is not None:
            yield unit.bn, f"{place}.norm"
        yield unit.depthwise, f"{place}.conv_dw"
        yield unit.pointwise, f"{place}.conv_pw"
    if block.skip is not None:
        yield block.skip, f"{name}.shortcut"


def _legacy(model: Any) -> _Named:
    for i in (1, 2):
        yield getattr(model.stem, f"conv{i}"), f"conv{i}"
        yield getattr(model.stem, f"bn{i}"), f"bn{i}"
    *blocks, (_, tail) = list(model.blocks())[1:]
    for i, (_, block) in enumerate(blocks, start=1):
        place = 0
        for unit in block.units:
            place += unit.relu  # timm also counts the activations
            yield unit.conv.depthwise, f"block{i}.rep.{place}.conv1"
            yield unit.conv.pointwise, f"block{i}.rep.{place}.pointwise"
            yield unit.bn, f"block{i}.rep.{place + 1}"
            place += 2
        if block.skip is not None:
            yield block.skip.conv, f"block{i}.skip"
            yield block.skip.bn, f"block{i}.skipbn"
    for i, unit in enumerate(tail.units, start=3):
        yield unit.conv.depthwise, f"conv{i}.conv1"
        yield unit.conv.pointwise, f"conv{i}.pointwise"
        yield unit.bn, f"bn{i}"
    yield from _classifier(model, "fc")


def _classifier(model: Any, name: str) -> _Named:
    if model.head is not None:
        yield model.head.classifier, name


_LAYERS: dict[type, NameLayers] = {
    Xception: _legacy,
    InceptionV3: _inception,
    AlignedXception: _aligned,
}
