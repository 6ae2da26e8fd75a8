"""What stands around a Keras backbone, in the terms of our models: scaling before, a head after.

Our models take images of [-1, 1] and have a head of global pooling, fully connected layers with
ReLU, and a classifier. All that is affine (rescaling, batch normalization, dense layers without an
activation) is folded, in float64, into the next layer that has weights. What remains is refused by
the name of its layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xception_jax.weights.files import Refused
from xception_jax.weights.keras.config import Placed, activation

# Gives a layer's tensors, in Keras' order.
Weights = Callable[[Placed], Sequence[Any]]

# Of a model that is not trained, these pass on what they get; `RandomCrop` crops then too.
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
# Matrix products of more multiplications than this are not folded.
_MAX_PRODUCT = 2e10


@dataclass
class Head:
    """A head that our models can express.

    Attributes:
      dense: kernel `[units_in, units]` and bias `[units]` of each layer; ReLU between them. Empty
        without a classifier.
      activation: `softmax` or `sigmoid` of the last one, None where nothing is said.
      pooling: `average` or `max`.
      notes: what was folded.
    """

    dense: list[tuple[Any, Any]] = field(default_factory=list)
    activation: str | None = None
    pooling: str = "average"
    notes: list[str] = field(default_factory=list)


def scaling(before: Sequence[Placed], weights: Weights) -> tuple[np.ndarray, np.ndarray] | None:
    """`(scale, offset)` float64 [3] from images of [-1, 1] to the backbone's input; None: as it is.

    The model's input is taken for pixels of 0 to 255, or of 0 to 1 if these become [-1, 1].

    Raises:
      Refused: a layer does more than to scale, or to what the input is scaled tells nothing of it.
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
        raise Refused(f"scales images by {before[-1]} and what is before it, from 0 and 255 to "
                      f"{low.round(3).tolist()} and {high.round(3).tolist()}: nothing tells which "
                      f"images it takes")  # fmt: skip
    return scale * 127.5, scale * 127.5 + offset


def _is_linear(layer: Placed) -> bool:
    return layer.kind == "Activation" and activation(layer.config) == "linear"


def _affine(layer: Placed, weights: Weights) -> tuple[Any, Any]:
    """What a layer multiplies the images with, and then adds, each a number or of shape [3]."""
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
    raise Refused(f"has the {layer} before the backbone; of such, those that scale images are read")


def _channels(value: Any, layer: Placed) -> np.ndarray:
    if isinstance(value, dict):  # an array in Keras 3
        value = value["config"]["value"]
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or array.size != np.shape(np.atleast_1d(array))[-1]:
        raise Refused(f"has the {layer} with an array of {list(array.shape)}; one number, or one "
                      f"for each of three channels, is read")  # fmt: skip
    return array.reshape(-1)


def head(layers: Sequence[Placed], weights: Weights) -> Head:
    """The head of a model.

    Args:
      layers: after the backbone, in order.
      weights: of those layers.

    Raises:
      Refused: our models cannot express it; the message names the layer.
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
            # Average pooling and a factor and sum for each channel can change places.
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


def _is_plain(layer: Placed) -> bool:
    """Whether pooling is over height and width, and makes [images, channels]."""
    last = (None, "channels_last")
    return not layer.config.get("keepdims") and layer.config.get("data_format") in last


_READ = "global pooling, dropout, batch normalization and dense layers with ReLU are read"


def _activated(
    does: str, layer: Placed, made: Head, pending: list[tuple[Any, Any]]
) -> list[tuple[Any, Any]]:
    """Ends a fully connected layer; what is pending after it."""
    if does not in ("relu", "softmax", "sigmoid"):
        raise Refused(f"has the activation {does!r} in the {layer}; {_READ}")
    if does == "relu":
        # What is pooled is not negative, nor is what has been through a ReLU.
        if pending:
            made.dense.append(_folded(pending, layer))
        return []
    _end(made, pending, [layer])
    if not made.dense:
        raise Refused(f"has {does} in the {layer} without a dense layer before it")
    made.activation = does
    return []


def _end(made: Head, pending: list[tuple[Any, Any]], layers: Sequence[Placed]) -> None:
    if pending and any(np.ndim(kernel) == 2 for kernel, _ in pending):
        made.dense.append(_folded(pending, layers[-1]))
    elif pending or made.dense:
        raise Refused(f"ends in the {layers[-1]}; a dense layer with softmax, sigmoid or no "
                      f"activation is read")  # fmt: skip


def _is_last(layer: Placed, pooled: bool) -> bool:
    """Whether batch normalization is over the last axis."""
    return layer.traits["axis"] in ((-1, 1, (1,)) if pooled else (-1,))


def _dense(layer: Placed, weights: Weights) -> tuple[Any, Any]:
    held = weights(layer)
    biased = layer.config.get("use_bias", True)
    if len(held) != 1 + biased or held[0].ndim != 2:
        raise Refused(f"has the {layer} of {len(held)} tensors; it has use_bias={biased}")
    bias = held[1] if biased else np.zeros(held[0].shape[-1], np.float32)
    return held[0], bias


def _norm(layer: Placed, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Batch normalization as factors and summands, float64 [channels]."""
    *rest, mean, variance = (np.asarray(x).astype(np.float64) for x in weights(layer))
    scale = 1 / np.sqrt(variance + layer.config.get("epsilon", 1e-3))
    if layer.traits["scale"]:
        scale = scale * rest.pop(0)
    beta = rest.pop(0) if layer.traits["center"] else 0
    return scale, beta - mean * scale


def _folded(pending: list[tuple[Any, Any]], layer: Placed) -> tuple[Any, Any]:
    """One dense layer of several affine maps; a single one stays as it is, unread."""
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
            raise Refused(f"has dense layers without an activation up to the {layer}, too large "
                          f"to be made one")  # fmt: skip
        else:
            kernel = kernel @ factor
        bias = (bias * factor if factor.ndim == 1 else bias @ factor) + summand \
            if np.ndim(bias) else summand  # fmt: skip
    kernel = np.diag(kernel) if kernel.ndim == 1 else kernel
    return kernel.astype(np.float32), np.asarray(bias, np.float32)


def fold_scaling(
    found: dict[str, Any], kernel: str, mean: str, scale: np.ndarray, offset: np.ndarray
) -> None:
    """Changes the first convolution, which has no padding, and the normalization after it in place.

    Args:
      found: tensors by name.
      kernel, mean: of the convolution, `[height, width, 3, channels]`, and the running mean.
      scale, offset: of the images, [3].
    """
    if found[kernel].shape[2:3] != (3,) or found[mean].shape != found[kernel].shape[3:]:
        return  # the shapes will be refused by name
    before = np.asarray(found[kernel]).astype(np.float64)
    constant = (before * offset[:, None]).sum((0, 1, 2))
    found[kernel] = (before * scale[:, None]).astype(np.float32)
    found[mean] = (np.asarray(found[mean]).astype(np.float64) - constant).astype(np.float32)
