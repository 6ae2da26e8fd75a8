"""Xception and Inception V3 against Keras' own with the same weights."""

import os
import re
from collections.abc import Iterator

import numpy as np
import pytest
from flax import nnx

from tests.models import agreement
from xception_jax.models.layers import BatchNorm, Conv, ConvNorm, Pointwise, SeparableConv

pytestmark = [
    pytest.mark.slow,
    # Keras 3.15 reads its own variables in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")


Pairs = Iterator[tuple[nnx.Module, str]]


def unnamed(theirs, kind: str) -> Iterator[str]:
    """The layers that Keras has named itself, `conv2d_7` after `conv2d_6`, as they were made."""
    names = [layer.name for layer in theirs.layers if re.fullmatch(rf"{kind}(_\d+)?", layer.name)]
    return iter(sorted(names, key=lambda name: int((re.findall(r"\d+$", name) or [0])[0])))


def xception(model, theirs) -> Pairs:
    skips = unnamed(theirs, "conv2d"), unnamed(theirs, "batch_normalization")
    for i in (1, 2):
        yield getattr(model.stem, f"conv{i}"), f"block1_conv{i}"
        yield getattr(model.stem, f"bn{i}"), f"block1_conv{i}_bn"
    for name, block in list(model.blocks())[1:]:
        for i, unit in enumerate(block.units, start=1):
            yield unit.conv, f"{name}_sepconv{i}"
            yield unit.bn, f"{name}_sepconv{i}_bn"
        if getattr(block, "skip", None) is not None:
            yield block.skip.conv, next(skips[0])
            yield block.skip.bn, next(skips[1])
    yield model.head.classifier, "predictions"


def inception(model, theirs) -> Pairs:
    def convs(module) -> Iterator[ConvNorm]:
        if isinstance(module, ConvNorm):
            yield module
        for part in getattr(module, "layers", ()):
            yield from convs(part)
        for name in getattr(module, "names", ()):
            yield from convs(getattr(module, name))

    names = unnamed(theirs, "conv2d"), unnamed(theirs, "batch_normalization")
    for _, block in model.blocks():
        for layer in convs(block):
            yield layer.conv, next(names[0])
            yield layer.bn, next(names[1])
    yield model.head.classifier, "predictions"


def copy(layer: nnx.Module, tensors: list[np.ndarray]) -> None:
    """Fills a layer of ours by the tensors of Keras'."""
    if isinstance(layer, BatchNorm):
        params = [layer.bias, layer.mean, layer.var]
        params = params if layer.scale is None else [layer.scale, *params]
    elif isinstance(layer, SeparableConv):
        params = [layer.depthwise.kernel, layer.pointwise.kernel]
        tensors = [tensors[0].swapaxes(2, 3), tensors[1][0, 0]]
    elif isinstance(layer, Pointwise):
        params, tensors = [layer.kernel], [tensors[0][0, 0]]
    else:
        params = [layer.kernel] if isinstance(layer, Conv) else [layer.kernel, layer.bias]
    for param, tensor in zip(params, tensors, strict=True):
        assert param.shape == tensor.shape
        param[...] = tensor


@pytest.mark.parametrize(
    ("name", "pairs", "make"),
    [
        ("xception", xception, "Xception"),
        ("inception_v3", inception, "InceptionV3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_and_logits_are_keras_own(name, pairs, make):
    def theirs(size: int):
        return getattr(keras.applications, make)(
            weights=None, input_shape=(size, size, 3), classifier_activation=None
        )

    whole = theirs(agreement.SIZES[0])
    rng = np.random.default_rng(0)
    for layer in whole.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            drawn = agreement.batch_statistics(rng, layer.moving_mean.shape[0])
            layer.set_weights([drawn[k] for k in drawn if layer.scale or k != "scale"])
        elif isinstance(layer, keras.layers.SeparableConv2D):
            depthwise, pointwise = (weight.shape for weight in layer.weights)
            layer.set_weights(
                [
                    agreement.kernel(rng, depthwise, 9, name),
                    agreement.kernel(rng, pointwise, pointwise[2], name),
                ]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            shape = layer.kernel.shape
            layer.set_weights([agreement.kernel(rng, shape, int(np.prod(shape[:3])), name)])
    model = agreement.create(name)
    tensors = {layer.name: layer.get_weights() for layer in whole.layers if layer.weights}
    for layer, key in pairs(model, whole):
        copy(layer, tensors.pop(key))
    assert not tensors, "what Keras has besides"

    def reference(images):
        sized = whole if images.shape[1] == agreement.SIZES[0] else theirs(images.shape[1])
        sized.set_weights(whole.get_weights())
        both = keras.Model(sized.input, [sized.layers[-3].output, sized.output])
        return [np.asarray(output) for output in both.predict_on_batch(images)]

    agreement.assert_agrees(model, reference)
