"""Inception V3 (arXiv:1512.00567), the baseline of arXiv:1610.02357, without auxiliary head.

The sizes are those of keras/src/applications/inception_v3.py. timm/models/inception_v3.py differs
in two ways, which are overrides here: its batch normalization has a scale, and its average pooling
counts padding.

    stem          five convolutions, max pooling after the third and the fifth
    mixed0..2     35x35 for images of 299: 1x1, 5x5, two 3x3, average pooling
    mixed3        halves the image
    mixed4..7     17x17: 1x1, 7x7 as 1x7 and 7x1, the same twice, average pooling
    mixed8        halves the image
    mixed9..10    8x8: the 3x3 as 1x3 and 3x1 in parallel
    head          global average pooling, optional fully connected layers, dropout, classifier

Batch normalization and ReLU follow every convolution.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from flax import nnx
from jax.typing import DTypeLike

from xception_jax.config.fields import Field
from xception_jax.models.inception_modules import AveragePool, Branches, Chain, MaxPool
from xception_jax.models.layers import ConvNorm, Layers
from xception_jax.models.network import Network, scaled
from xception_jax.models.published import Foreign
from xception_jax.models.registry import register

# Channels and window of a convolution, SAME; with a stride, VALID.
Step = tuple[int, Any] | tuple[int, Any, int]

# A module and its number of output channels.
Sized = tuple[nnx.Module, int]


@dataclass(frozen=True)
class _Builder:
    """Builds convolutions and modules with numbers of channels scaled by `width`."""

    layers: Layers
    width: float
    count_padding: bool

    def conv(self, channels_in: int, step: Step) -> ConvNorm:
        channels, window, *stride = step
        options: dict[str, Any] = {"stride": stride[0], "padding": "VALID"} if stride else {}
        return self.layers.conv_norm(channels_in, self.scaled(channels), window, **options)

    def convs(self, channels_in: int, *steps: Step) -> list[ConvNorm]:
        """Convolutions in sequence."""
        widths = [channels_in, *(self.scaled(step[0]) for step in steps)]
        return [self.conv(before, step) for before, step in zip(widths, steps, strict=False)]

    def tower(self, channels_in: int, *steps: Step) -> Chain:
        return Chain(self.convs(channels_in, *steps))

    def pooled(self, channels_in: int, channels: int) -> Chain:
        """Average pooling and a 1x1 convolution."""
        pool = AveragePool(count_padding=self.count_padding)
        return Chain([pool, self.conv(channels_in, (channels, 1))])

    def split(self, channels_in: int, *steps: Step) -> Chain:
        """Convolutions in sequence, then 1x3 and 3x1 in parallel."""
        convs, channels = self.convs(channels_in, *steps), self.scaled(steps[-1][0])
        both = Branches(
            a=self.conv(channels, (384, (1, 3))),
            b=self.conv(channels, (384, (3, 1))),
        )
        return Chain([*convs, both])

    def scaled(self, *channels: int) -> int:
        """The sum of the scaled numbers of channels."""
        return sum(scaled(each, self.width) for each in channels)


def _stem(build: _Builder, stride: int) -> Sized:
    first = build.convs(3, (32, 3, stride), (32, 3, 1), (64, 3))
    second = build.convs(build.scaled(64), (80, 1), (192, 3, 1))
    return Chain([*first, MaxPool(), *second, MaxPool()]), build.scaled(192)


def _mixed_35(build: _Builder, channels: int, pooled: int) -> Sized:
    branches = Branches(
        branch1x1=build.conv(channels, (64, 1)),
        branch5x5=build.tower(channels, (48, 1), (64, 5)),
        branch3x3dbl=build.tower(channels, (64, 1), (96, 3), (96, 3)),
        branch_pool=build.pooled(channels, pooled),
    )
    return branches, build.scaled(64, 64, 96, pooled)


def _reduction_35(build: _Builder, channels: int) -> Sized:
    branches = Branches(
        branch3x3=build.conv(channels, (384, 3, 2)),
        branch3x3dbl=build.tower(channels, (64, 1), (96, 3), (96, 3, 2)),
        branch_pool=MaxPool(),
    )
    return branches, build.scaled(384, 96) + channels


def _mixed_17(build: _Builder, channels: int, reduced: int) -> Sized:
    row, column = (1, 7), (7, 1)
    branches = Branches(
        branch1x1=build.conv(channels, (192, 1)),
        branch7x7=build.tower(channels, (reduced, 1), (reduced, row), (192, column)),
        branch7x7dbl=build.tower(
            channels, (reduced, 1), (reduced, column), (reduced, row), (reduced, column), (192, row)
        ),
        branch_pool=build.pooled(channels, 192),
    )
    return branches, build.scaled(192, 192, 192, 192)


def _reduction_17(build: _Builder, channels: int) -> Sized:
    branches = Branches(
        branch3x3=build.tower(channels, (192, 1), (320, 3, 2)),
        branch7x7x3=build.tower(channels, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
        branch_pool=MaxPool(),
    )
    return branches, build.scaled(320, 192) + channels


def _mixed_8(build: _Builder, channels: int) -> Sized:
    branches = Branches(
        branch1x1=build.conv(channels, (320, 1)),
        branch3x3=build.split(channels, (384, 1)),
        branch3x3dbl=build.split(channels, (448, 1), (384, 3)),
        branch_pool=build.pooled(channels, 192),
    )
    return branches, build.scaled(320, 384, 384, 384, 384, 192)


_MIXED: list[Callable[[_Builder, int], Sized]] = [
    *(partial(_mixed_35, pooled=pooled) for pooled in (32, 64, 64)),
    _reduction_35,
    *(partial(_mixed_17, reduced=reduced) for reduced in (128, 160, 160, 192)),
    _reduction_17,
    _mixed_8,
    _mixed_8,
]


@register(
    "inception_v3",
    size=(23_817_352, 5_713_216_096, 75),
    published=[
        ("arXiv:1610.02357, table 1", 78.2, 94.1),
        ("keras InceptionV3", 77.9, 93.7),
        ("timm inception_v3.tf_in1k", 77.866, 93.644),
        ("timm inception_v3.tf_adv_in1k", 77.598, 93.726),
        ("timm inception_v3.tv_in1k", 77.472, 93.468),
        ("timm inception_v3.gluon_in1k", 78.806, 94.372),
    ],
    options={
        "bn_scale": Field(
            None, "Inception V3: batch normalization has a scale, as in timm; None: False", bool
        ),
        "count_padding": Field(
            None, "Inception V3: average pooling counts padding, as in timm; None: False", bool
        ),
    },
    keras=Foreign("InceptionV3", {"bn_epsilon": 1e-3, "bn_scale": False, "count_padding": False}),
    timm=Foreign(
        "inception_v3", {"bn_epsilon": 1e-3, "bn_scale": True, "count_padding": True}, crop=0.875
    ),
)
class InceptionV3(Network):
    """Inception V3; without overrides Keras' network: 23,817,352 parameters at 1000 classes.

    Args:
      num_classes: the size of the logits; None builds no head, and the model returns the pooled
        features `[batch, channels]`.
      rngs: the stream `params` creates the initial weights.
      dtype: compute dtype.
      stem_stride: stride of the first convolution.
      bn_scale: whether batch normalization has a scale, as in timm.
      count_padding: whether average pooling counts padding, as in timm; see `ops.average_pool`.
      dropout: dropout rate before the classifier; 0.5 as for Xception, for an equal comparison
        (arXiv:1610.02357v3, section 4.3).
      **shared: the options of `Network`. The defaults of batch normalization are Keras'.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        stem_stride: int = 2,
        bn_scale: bool = False,
        count_padding: bool = False,
        dropout: float = 0.5,
        **shared: Any,
    ):
        super().__init__(dtype, dropout=dropout, **shared)
        layers = self.make_layers(rngs, bn_scale=bn_scale)
        build = _Builder(layers, self.width, count_padding)
        self.stem, channels = _stem(build, stem_stride)
        mixed = []
        for make in _MIXED:
            module, channels = make(build, channels)
            mixed.append(module)
        self.mixed = nnx.List(mixed)
        self.head = self.make_head(channels, num_classes, layers)
        # The features then have one pixel, after four more halvings without padding.
        self.min_image_size = 36 * stem_stride + 3

    def blocks(self) -> Iterator[tuple[str, nnx.Module]]:
        """Keras' modules in order: `("stem", module), ("mixed0", module), ...`."""
        yield "stem", self.stem
        for i, module in enumerate(self.mixed):
            yield f"mixed{i}", module
