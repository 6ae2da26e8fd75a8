"""Aligned Xception as in DeepLab (arXiv:1802.02611, section 3), in timm's definition.

It differs from the Xception of arXiv:1610.02357 in two ways. Instead of max pooling, the last of
the three depthwise convolutions of a block has a stride. Batch normalization also follows the
depthwise convolutions.

The names and sizes are those of timm/models/xception_aligned.py: 41, 65 and 71 are the numbers of
convolutions. `p` means pre-activation: normalization and ReLU precede the separable convolutions
and also the skip.

Padding is PyTorch's: half of the window on each side, for any stride.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.models.layers import Conv, Layers
from xception_jax.models.network import Network, scaled
from xception_jax.models.published import Foreign
from xception_jax.models.registry import register

_PADDING = "SYMMETRIC"


class Stem(nnx.Module):
    """Two dense 3x3 convolutions, each with batch normalization and ReLU.

    With pre-activation, the second has neither, because the first block begins with them.
    """

    def __init__(
        self, channels: Sequence[int], stride: int, *, preactivation: bool, layers: Layers
    ):
        first, second = channels
        self.conv1 = layers.conv_norm(3, first, 3, stride=stride, padding=_PADDING)
        self.conv2 = (
            layers.conv(first, second, padding=_PADDING)
            if preactivation
            else layers.conv_norm(first, second, 3, padding=_PADDING)
        )

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.conv1(x, train=train)
        return self.conv2(x) if isinstance(self.conv2, Conv) else self.conv2(x, train=train)


class Unit(nnx.Module):
    """A separable convolution with batch normalization after each of its two parts.

    There is either one ReLU before it, or a ReLU after each normalization.
    """

    def __init__(
        self, channels_in: int, channels: int, *, stride: int, relu_first: bool, layers: Layers
    ):
        self.depthwise = layers.depthwise(channels_in, stride=stride, padding=_PADDING)
        self.depthwise_bn = layers.norm(channels_in)
        self.pointwise = layers.pointwise(channels_in, channels)
        self.pointwise_bn = layers.norm(channels)
        self.relu_first = relu_first

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.depthwise_bn(self.depthwise(x, relu=self.relu_first), train=train)
        x = self.pointwise(x if self.relu_first else nnx.relu(x))
        x = self.pointwise_bn(x, train=train)
        return x if self.relu_first else nnx.relu(x)


class Block(nnx.Module):
    """Three units, the last with the block's stride, and a residual connection around them.

    Args:
      channels_in: channels of the input.
      channels: output channels of each unit in turn.
      stride: of the last unit. The skip is projected if it is not 1 or the channels change.
      last: whether it is the last block: no residual connection, and ReLU after each convolution
        instead of before.
      layers: builds the layers.
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        stride: int = 1,
        last: bool = False,
        layers: Layers,
    ):
        strides = [1] * (len(channels) - 1) + [stride]
        widths = pairwise([channels_in, *channels])
        self.units = nnx.List(
            Unit(*width, stride=each, relu_first=not last, layers=layers)
            for width, each in zip(widths, strides, strict=True)
        )
        projected = not last and (stride != 1 or channels[-1] != channels_in)
        self.skip = (
            layers.conv_norm(channels_in, channels[-1], 1, stride=stride, relu=False)
            if projected
            else None
        )
        self.last = last

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = x
        for unit in self.units:
            y = unit(y, train=train)
        if self.last:
            return y
        return y + (x if self.skip is None else self.skip(x, train=train))


class PreactivationUnit(nnx.Module):
    """Normalization, ReLU and a separable convolution.

    The first unit of a block has only the convolution, because the block normalizes its input.
    """

    def __init__(
        self, channels_in: int, channels: int, *, stride: int, first: bool, layers: Layers
    ):
        self.bn = None if first else layers.norm(channels_in)
        self.depthwise = layers.depthwise(channels_in, stride=stride, padding=_PADDING)
        self.pointwise = layers.pointwise(channels_in, channels)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.bn is not None:
            x = self.bn(x, train=train)
        return self.pointwise(self.depthwise(x, relu=self.bn is not None))


class PreactivationBlock(nnx.Module):
    """Normalization and ReLU, then three units and a residual connection around them.

    For the arguments see `Block`; the last block ends with a ReLU.
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        stride: int = 1,
        last: bool = False,
        layers: Layers,
    ):
        self.bn = layers.norm(channels_in)
        strides = [1] * (len(channels) - 1) + [stride]
        widths = pairwise([channels_in, *channels])
        self.units = nnx.List(
            PreactivationUnit(*width, stride=each, first=i == 0, layers=layers)
            for i, (width, each) in enumerate(zip(widths, strides, strict=True))
        )
        projected = not last and (stride != 1 or channels[-1] != channels_in)
        self.skip = (
            layers.pointwise(channels_in, channels[-1], stride=stride) if projected else None
        )
        self.last = last

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = x = nnx.relu(self.bn(x, train=train))
        for unit in self.units:
            y = unit(y, train=train)
        if self.last:
            return nnx.relu(y)
        return y + (x if self.skip is None else self.skip(x))


@register(
    "xception41",
    size=(26_969_560, 9_204_134_312, 1),
    published=[("timm xception41.tf_in1k", 78.550, 94.282)],
    timm=Foreign("xception41", {"bn_epsilon": 1e-3}, crop=0.903, classifier="head.fc"),
)
@register(
    "xception65",
    size=(39_916_312, 13_852_682_216, 1),
    published=[
        ("timm xception65.tf_in1k", 79.558, 94.656),
        ("timm xception65.ra3_in1k", 83.186, 96.596),
    ],
    # The crop of timm's default weights `ra3_in1k`; `tf_in1k` has 0.903.
    timm=Foreign("xception65", {"bn_epsilon": 1e-3}, crop=0.94, classifier="head.fc"),
    middle_blocks=16,
)
@register(
    "xception71",
    size=(42_338_736, 17_946_553_928, 1),
    published=[("timm xception71.tf_in1k", 79.920, 94.908)],
    timm=Foreign("xception71", {"bn_epsilon": 1e-3}, crop=0.903, classifier="head.fc"),
    entry_blocks=((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)),
    middle_blocks=16,
)
@register(
    "xception41p",
    size=(26_907_752, 9_204_134_312, 1),
    published=[("timm xception41p.ra3_in1k", 81.978, 95.784)],
    timm=Foreign("xception41p", {"bn_epsilon": 1e-5}, crop=0.94, classifier="head.fc"),
    preactivation=True,
    bn_epsilon=1e-5,
)
@register(
    "xception65p",
    size=(39_819_560, 13_852_682_216, 1),
    published=[("timm xception65p.ra3_in1k", 83.160, 96.506)],
    timm=Foreign("xception65p", {"bn_epsilon": 1e-3}, crop=0.94, classifier="head.fc"),
    middle_blocks=16,
    preactivation=True,
)
class AlignedXception(Network):
    """Aligned Xception; without overrides `xception41`: 26,969,560 parameters at 1000 classes.

    Args:
      num_classes: the size of the logits; None builds no head, and the model returns the pooled
        features `[batch, channels]`.
      rngs: the stream `params` creates the initial weights.
      dtype: compute dtype.
      entry_blocks: channels and stride of each block in the entry flow.
      middle_blocks: the number of blocks in the middle flow.
      preactivation: whether to use pre-activation, as in 41p and 65p.
      stem_stride: stride of the first convolution; 1 for images of a few dozen pixels.
      scan_middle: see `Network`.
      bn_momentum: the default is timm's.
      **shared: the options of `Network`. Their defaults are timm's, except that timm's 41p has a
        `bn_epsilon` of 1e-5.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        entry_blocks: Sequence[tuple[int, int]] = ((128, 2), (256, 2), (728, 2)),
        middle_blocks: int = 8,
        preactivation: bool = False,
        stem_stride: int = 2,
        scan_middle: bool = False,
        bn_momentum: float = 0.9,
        **shared: Any,
    ):
        super().__init__(dtype, bn_momentum=bn_momentum, **shared)
        self.scan_middle = scan_middle
        layers = self.make_layers(rngs)
        block = PreactivationBlock if preactivation else Block
        c32, channels, c728, c1024, c1536, c2048 = (
            scaled(channels, self.width) for channels in (32, 64, 728, 1024, 1536, 2048)
        )
        self.stem = Stem((c32, channels), stem_stride, preactivation=preactivation, layers=layers)
        entry = []
        for after, stride in entry_blocks:
            after = scaled(after, self.width)
            entry.append(block(channels, (after,) * 3, stride=stride, layers=layers))
            channels = after
        self.entry_flow = nnx.List(entry)
        self.middle_flow = nnx.List(
            block(channels, (channels,) * 3, layers=layers) for _ in range(middle_blocks)
        )
        self.exit_flow = nnx.List(
            [
                block(channels, (c728, c1024, c1024), stride=2, layers=layers),
                block(c1024, (c1536, c1536, c2048), last=True, layers=layers),
            ]
        )
        self.head = self.make_head(c2048, num_classes, layers)
        self.min_image_size = 1

    def blocks(self) -> Iterator[tuple[str, nnx.Module]]:
        """The modules in timm's order, as `("stem", module), ("blocks.0", module), ...`."""
        yield "stem", self.stem
        flow = [*self.entry_flow, *self.middle_flow, *self.exit_flow]
        for i, block in enumerate(flow):
            yield f"blocks.{i}", block
