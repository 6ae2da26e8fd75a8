"""Translates the layers around a Keras backbone: scaling before it, a head after it.

The models here take images of [-1, 1]. Their head has global pooling, fully connected layers with
ReLU, and a classifier. Affine layers (rescaling, batch normalization, dense layers without an
activation) are folded in float64 into the next layer with weights. All other layers are refused by
name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xception_jax.weights.files import Refused
from xception_jax.weights.keras.config import ConfigLayer, activation

# Returns a layer's tensors in Keras' order.
Weights = Callable[[ConfigLayer], Sequence[Any]]

# Layers that do nothing in inference. (`RandomCrop` still crops.)
_IDENTITIES = {
    "Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise", "SpatialDropout2D",
    "ActivityRegularization", "RandomFlip", "RandomRotation", "RandomZoom", "RandomContrast",
    "RandomBrightness", "RandomTranslation", "RandomHue", "RandomSaturation",
    "RandomSharpness", "RandomColorJitter", "RandomShear", "RandomErasing", "RandomGrayscale",
}  # fmt: skip
_DIVIDE = ("TrueDivide", "Divide", "tf.math.truediv", "tf.math.divide")
_SUBTRACT = ("Subtract", "tf.math.subtract")
_MULTIPLY, _ADD = ("Multiply", "tf.math.multiply"), ("Add", "tf.__operators__.add", "tf.math.add")
_POOLING = {"GlobalAveragePooling2D": "average", "GlobalMaxPooling2D": "max"}
# The maximum number of multiplications to fold two layers.
_MAX_PRODUCT = 2e10


@dataclass
class Head:
    """A head that the models here can express.

    Attributes:
      dense: kernel `[units_in, units]` and bias `[units]` of each layer; ReLU between them. Empty
        without a classifier.
      activation: `softmax` or `sigmoid` of the last one; None if not specified.
      pooling: `average` or `max`.
      notes: what was folded.
    """

    dense: list[tuple[Any, Any]] = field(default_factory=list)
    activation: str | None = None
    pooling: str = "average"
    notes: list[str] = field(default_factory=list)


def scaling(
    before: Sequence[ConfigLayer], weights: Weights
) -> tuple[np.ndarray, np.ndarray] | None:
    """The scaling of images from [-1, 1] to the backbone's input.

    The model's input is assumed to be pixels in [0, 1] if these become [-1, 1], else in [0, 255].

    Returns:
      `(scale, offset)`, float64 [3]; None if no layer scales images.

    Raises:
      Refused: a layer does more than scale, or the range of the model's input cannot be inferred.
    """
    scale, offset, scales = np.ones(3), np.zeros(3), False
    for layer in before:
        if layer.odd:
            raise Refused(f"has the {layer} before the backbone, which {layer.odd}")
        if layer.kind in _IDENTITIES or _is_linear(layer):
            continue
        times, plus = _affine(layer, weights)
        scale, offset, scales = scale * times, offset * times + plus, True
    if not scales:
        return None
    if np.allclose(scale, 2, rtol=1e-6) and np.allclose(offset, -1, rtol=1e-6):
        return np.ones(3), np.zeros(3)
    low, high = offset, scale * 255 + offset
    if not np.isfinite([low, high]).all() or max(abs(low).max(), abs(high).max()) > 16:
        raise Refused(f"scales pixels of 0 and 255 to {low.round(3).tolist()} and "
                      f"{high.round(3).tolist()} up to the {before[-1]}; the range of its input "
                      f"cannot be inferred")  # fmt: skip
    return scale * 127.5, scale * 127.5 + offset


def _is_linear(layer: ConfigLayer) -> bool:
    return layer.kind == "Activation" and activation(layer.config) == "linear"


def _affine(layer: ConfigLayer, weights: Weights) -> tuple[Any, Any]:
    """The factor and the summand that a layer applies to images, each a number or of shape [3]."""
    config, kind = layer.config, layer.kind
    if kind == "TFOpLambda":
        kind = str(config.get("function") or config.get("name"))
        kind = kind if kind.startswith("tf.") else f"tf.{kind}"
    numbers = np.array([x for x in layer.arguments if x is not None], np.float64)
    if layer.arguments[:1] == (None,) and len(numbers) in (1, 3):
        if kind in _DIVIDE:
            return 1 / numbers, 0
        if kind in _SUBTRACT:
            return 1, -numbers
        if kind in _MULTIPLY:
            return numbers, 0
        if kind in _ADD:
            return 1, numbers
    if kind == "Rescaling":
        return _channels(config["scale"], layer), _channels(config.get("offset", 0), layer)
    if kind == "Normalization" and config.get("axis") in (-1, 3, [-1], [3], None):
        mean, variance = config.get("mean"), config.get("variance")
        if mean is None:
            mean, variance = (np.asarray(x) for x in weights(layer)[:2])
        std = np.maximum(np.sqrt(_channels(variance, layer)), 1e-7)  # Keras' epsilon
        times, plus = 1 / std, -_channels(mean, layer) / std
        return (std, _channels(mean, layer)) if config.get("invert") else (times, plus)
    raise Refused(f"has the {layer} before the backbone; only layers that scale images can be read")


def _channels(value: Any, layer: ConfigLayer) -> np.ndarray:
    if isinstance(value, dict):  # an array in Keras 3
        value = value["config"]["value"]
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or array.size != np.shape(np.atleast_1d(array))[-1]:
        raise Refused(f"has the {layer} with an array of {list(array.shape)}; expected one number, "
                      f"or one for each of three channels")  # fmt: skip
    return array.reshape(-1)


def head(layers: Sequence[ConfigLayer], weights: Weights) -> Head:
    """The head of a model.

    Args:
      layers: the layers after the backbone, in order.
      weights: returns the weights of a layer.

    Raises:
      Refused: the models here cannot express the head; the message names the layer.
    """
    made, pending, pooled = Head(), [], False  # type: Head, list[tuple[Any, Any]], bool
    for layer in layers:
        kind, does = layer.kind, activation(layer.config)
        if layer.odd:
            raise Refused(f"has the {layer} in its head, which {layer.odd}")
        if made.activation is not None and kind not in _IDENTITIES:
            raise Refused(f"has the {layer} after {made.activation}")
        if kind in _POOLING and not pooled and _is_plain(layer):
            made.pooling, pooled = _POOLING[kind], True
            if pending and made.pooling == "max":
                raise Refused(f"has batch normalization before the {layer}")
        elif kind == "BatchNormalization" and _is_last(layer, pooled):
            # Average pooling commutes with an affine map per channel.
            pending.append(_norm(layer, weights))
            made.notes.append(f"{layer} is folded into a dense layer")
        elif kind == "Dense" and pooled:
            pending.append(_dense(layer, weights))
        elif not (
            kind in _IDENTITIES
            or (kind == "Activation" and (pooled or not pending))
            or (kind == "Flatten" and pooled)
        ):
            raise Refused(f"has the {layer} in its head; {_READ}")
        if kind in ("Dense", "Activation") and does != "linear":
            pending = _activated(does, layer, made, pending)
    if made.activation is None:
        _end(made, pending, layers)
    return made


def _is_plain(layer: ConfigLayer) -> bool:
    """Whether pooling is over height and width and returns [images, channels]."""
    last = (None, "channels_last")
    return not layer.config.get("keepdims") and layer.config.get("data_format") in last


_READ = "only global pooling, dropout, batch normalization and dense layers with ReLU can be read"


def _activated(
    does: str, layer: ConfigLayer, made: Head, pending: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    """Ends a fully connected layer at its activation; returns the affine maps still pending."""
    if does not in ("relu", "softmax", "sigmoid"):
        raise Refused(f"has the activation {does!r} in the {layer}; {_READ}")
    if does == "relu":
        # Without pending maps, ReLU has no effect: features and outputs of ReLU are not negative.
        if pending:
            made.dense.append(_folded(pending, layer))
        return []
    _end(made, pending, [layer])
    if not made.dense:
        raise Refused(f"has {does} in the {layer} without a dense layer before it")
    made.activation = does
    return []


def _end(made: Head, pending: list[tuple[Any, Any]], layers: Sequence[ConfigLayer]) -> None:
    if pending and any(np.ndim(kernel) == 2 for kernel, _ in pending):
        made.dense.append(_folded(pending, layers[-1]))
    elif pending or made.dense:
        raise Refused(f"ends in the {layers[-1]}; expected a dense layer with softmax, sigmoid or "
                      f"no activation")  # fmt: skip


def _is_last(layer: ConfigLayer, pooled: bool) -> bool:
    """Whether batch normalization is over the last axis."""
    return layer.traits["axis"] in ((-1, 1, (1,)) if pooled else (-1,))


def _dense(layer: ConfigLayer, weights: Weights) -> tuple[Any, Any]:
    held = weights(layer)
    biased = layer.config.get("use_bias", True)
    if len(held) != 1 + biased or held[0].ndim != 2:
        raise Refused(f"has the {layer} with {len(held)} tensors, but use_bias={biased}")
    bias = held[1] if biased else np.zeros(held[0].shape[-1], np.float32)
    return held[0], bias


def _norm(layer: ConfigLayer, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Batch normalization as a factor and a summand per channel, float64 [channels]."""
    *rest, mean, variance = (np.asarray(x).astype(np.float64) for x in weights(layer))
    scale = 1 / np.sqrt(variance + layer.config.get("epsilon", 1e-3))
    if layer.traits["scale"]:
        scale = scale * rest.pop(0)
    beta = rest.pop(0) if layer.traits["center"] else 0
    return scale, beta - mean * scale


def _folded(pending: list[tuple[Any, Any]], layer: ConfigLayer) -> tuple[Any, Any]:
    """Folds several affine maps into one dense layer; a single one is returned without a read."""
    if len(pending) == 1 and np.ndim(pending[0][0]) == 2:
        return pending[0]
    kernel: Any = None
    bias: Any = 0.0
    for factor, summand in pending:
        factor, summand = (np.asarray(x).astype(np.float64) for x in (factor, summand))
        if kernel is None:
            kernel = factor
        elif factor.ndim == 1:
            kernel = kernel * factor
        elif kernel.ndim == 1:
            kernel = kernel[:, None] * factor
        elif kernel.shape[0] * factor.size > _MAX_PRODUCT:
            raise Refused(f"has dense layers without an activation up to the {layer} that are too "
                          f"large to fold into one")  # fmt: skip
        else:
            kernel = kernel @ factor
        bias = (bias * factor if factor.ndim == 1 else bias @ factor) + summand \
            if np.ndim(bias) else summand  # fmt: skip
    kernel = np.diag(kernel) if kernel.ndim == 1 else kernel
    return kernel.astype(np.float32), np.asarray(bias, np.float32)


def fold_scaling(
    found: dict[str, Any], kernel: str, mean: str, scale: np.ndarray, offset: np.ndarray
) -> None:
    """Folds a scaling of images into the first convolution and the next normalization, in place.

    This is exact because the first convolution has no padding.

    Args:
      found: tensors by name.
      kernel: the name of the convolution's kernel, `[height, width, 3, channels]`.
      mean: the name of the normalization's running mean.
      scale: of the images, [3].
      offset: of the images, [3].
    """
    if found[kernel].shape[2:3] != (3,) or found[mean].shape != found[kernel].shape[3:]:
        return  # the wrong shapes are reported later, by name
    before = np.asarray(found[kernel]).astype(np.float64)
    constant = (before * offset[:, None]).sum((0, 1, 2))
    found[kernel] = (before * scale[:, None]).astype(np.float32)
    found[mean] = (np.asarray(found[mean]).astype(np.float64) - constant).astype(np.float32)
