"""Every model that timm has too, against timm's own with the same weights."""

from collections.abc import Iterator

import numpy as np
import pytest
from flax import nnx

from tests.models import agreement
from xception_jax.models.layers import BatchNorm, Conv, ConvNorm, Depthwise, Pointwise

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

Pairs = Iterator[tuple[nnx.Module, str]]

MIXED = ["5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
STEM = ["1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"]


def conv_norm(layer: ConvNorm, name: str) -> Pairs:
    yield layer.conv, f"{name}.conv"
    yield layer.bn, f"{name}.bn"


def inception(model) -> Pairs:
    convs = [layer for layer in model.stem.layers if isinstance(layer, ConvNorm)]
    for layer, name in zip(convs, STEM, strict=True):
        yield from conv_norm(layer, f"Conv2d_{name}")
    for module, mixed in zip(model.mixed, MIXED, strict=True):
        for branch in module.names:
            layers = getattr(module, branch)
            if isinstance(layers, ConvNorm):
                yield from conv_norm(layers, f"Mixed_{mixed}.{branch}")
                continue
            for i, layer in enumerate(getattr(layers, "layers", ()), start=1):
                if branch == "branch_pool" and isinstance(layer, ConvNorm):
                    yield from conv_norm(layer, f"Mixed_{mixed}.{branch}")
                elif isinstance(layer, ConvNorm):
                    yield from conv_norm(layer, f"Mixed_{mixed}.{branch}_{i}")
                elif hasattr(layer, "names"):
                    for part in layer.names:
                        name = f"Mixed_{mixed}.{branch}_{i}{part}"
                        yield from conv_norm(getattr(layer, part), name)
    yield model.head.classifier, "fc"


def aligned(model) -> Pairs:
    for i, layer in enumerate((model.stem.conv1, model.stem.conv2)):
        if isinstance(layer, ConvNorm):
            yield from conv_norm(layer, f"stem.{i}")
        else:
            yield layer, f"stem.{i}"
    for name, block in list(model.blocks())[1:]:
        for i, unit in enumerate(block.units, start=1):
            yield unit.depthwise, f"{name}.stack.conv{i}.conv_dw"
            yield unit.depthwise_bn, f"{name}.stack.conv{i}.bn_dw"
            yield unit.pointwise, f"{name}.stack.conv{i}.conv_pw"
            yield unit.pointwise_bn, f"{name}.stack.conv{i}.bn_pw"
        if block.skip is not None:
            yield from conv_norm(block.skip, f"{name}.shortcut")
    yield model.head.classifier, "head.fc"


def preactivation(model) -> Pairs:
    yield from conv_norm(model.stem.conv1, "stem.0")
    yield model.stem.conv2, "stem.1"
    for name, block in list(model.blocks())[1:]:
        yield block.bn, f"{name}.norm"
        for i, unit in enumerate(block.units, start=1):
            if unit.bn is not None:
                yield unit.bn, f"{name}.stack.conv{i}.norm"
            yield unit.depthwise, f"{name}.stack.conv{i}.conv_dw"
            yield unit.pointwise, f"{name}.stack.conv{i}.conv_pw"
        if block.skip is not None:
            yield block.skip, f"{name}.shortcut"
    yield model.head.classifier, "head.fc"


def legacy(model) -> Pairs:
    for i in (1, 2):
        yield getattr(model.stem, f"conv{i}"), f"conv{i}"
        yield getattr(model.stem, f"bn{i}"), f"bn{i}"
    *blocks, (_, tail) = list(model.blocks())[1:]
    for i, (_, block) in enumerate(blocks, start=1):
        place = 0
        for unit in block.units:
            place += unit.relu  # timm counts the activations too
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
    yield model.head.classifier, "fc"


def copy(layer: nnx.Module, tensors: dict[str, np.ndarray], name: str) -> None:
    """Takes a layer's tensors out of the state of timm's model."""
    weight = tensors.pop(f"{name}.weight")
    if isinstance(layer, BatchNorm):
        layer.scale[...], layer.bias[...] = weight, tensors.pop(f"{name}.bias")
        layer.mean[...] = tensors.pop(f"{name}.running_mean")
        layer.var[...] = tensors.pop(f"{name}.running_var")
    elif isinstance(layer, Conv | Depthwise):
        layer.kernel[...] = weight.transpose(2, 3, 1, 0)
    elif isinstance(layer, Pointwise):
        layer.kernel[...] = weight[:, :, 0, 0].T
    else:
        layer.kernel[...], layer.bias[...] = weight.T, tensors.pop(f"{name}.bias")


@pytest.mark.parametrize(
    ("name", "pairs", "overrides"),
    [
        ("legacy_xception", legacy, {}),
        ("inception_v3", inception, {"bn_scale": True, "count_padding": True}),
        ("xception41", aligned, {}),
        ("xception65", aligned, {}),
        ("xception71", aligned, {}),
        ("xception41p", preactivation, {}),
        ("xception65p", preactivation, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_and_logits_are_timms(name, pairs, overrides):
    theirs = timm.create_model(name, pretrained=False, num_classes=1000).eval()
    rng = np.random.default_rng(0)
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d):
            shape = module.weight.shape
            drawn = agreement.kernel(rng, shape, int(np.prod(shape[1:])), name)
            module.weight.data = torch.from_numpy(drawn)
        elif isinstance(module, torch.nn.BatchNorm2d):
            drawn = agreement.batch_statistics(rng, module.num_features)
            for field, kind in zip(
                ("weight", "bias", "running_mean", "running_var"), drawn.values(), strict=True
            ):
                getattr(module, field).data = torch.from_numpy(kind)
    model = agreement.create(name, **overrides)
    tensors = {
        key: value.numpy()
        for key, value in theirs.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    for layer, key in pairs(model):
        copy(layer, tensors, key)
    assert not tensors, "what timm has besides"

    def reference(images):
        with torch.inference_mode():
            features = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2)))
            return features.numpy().transpose(0, 2, 3, 1), theirs.forward_head(features).numpy()

    agreement.assert_agrees(model, reference)
