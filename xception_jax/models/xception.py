"""Xception (arXiv:1610.02357v3, figure 5): 36 convolutions in 14 modules.

    entry flow    block1         two plain 3x3 convolutions, the first with stride 2
                  block2..4      two separable convolutions, max pooling; projected skip
    middle flow   block5..12     three separable convolutions; identity skip
    exit flow     block13        two separable convolutions, max pooling; projected skip
                  block14        two separable convolutions
    head          global average pooling, optional fully connected layers, dropout, classifier

The numbers of the blocks are the paper's and Keras' (keras/src/applications/xception.py).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.config.fields import Field
from xception_jax.errors import UsageError, nearest
from xception_jax.models.layers import ACTIVATIONS, ORDERS, Layers
from xception_jax.models.network import Network, scaled
from xception_jax.models.published import Foreign
from xception_jax.models.registry import register


class Stem(nnx.Module):
    """Block 1: two plain 3x3 convolutions, VALID, each with batch normalization and ReLU."""

    def __init__(self, channels: Sequence[int], stride: int, layers: Layers):
        first, second = channels
        self.conv1, self.bn1 = layers.conv(3, first, stride=stride), layers.norm(first)
        self.conv2, self.bn2 = layers.conv(first, second), layers.norm(second)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x), train=train))
        return nnx.relu(self.bn2(self.conv2(x), train=train))


class Unit(nnx.Module):
    """A separable convolution and its batch normalization.

    With `relu`, a ReLU precedes them. If `pool` is set, max pooling with this padding follows.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        relu: bool,
        pool: str | None = None,
        layers: Layers,
    ):
        self.conv = layers.separable(channels_in, channels)
        self.bn = layers.norm(channels)
        self.relu, self.pool = relu, pool

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.conv(x, relu=self.relu)
        if self.pool is None:
            return self.bn(x, train=train)
        return self.bn.max_pooled(x, train=train, padding=self.pool)


class Block(nnx.Module):
    """Separable convolutions with a residual connection around them.

    Args:
      channels_in: channels of the input.
      channels: output channels of each separable convolution in turn.
      downsample: whether to end with a 3x3 max pooling of stride 2 and project the skip; otherwise
        the skip is the identity.
      first_relu: whether a ReLU precedes the first convolution (not in block 2).
      residual: whether there is a residual connection.
      pool_padding: of the max pooling, see `ops.conv`.
      layers: builds the layers.
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        downsample: bool,
        first_relu: bool = True,
        residual: bool = True,
        pool_padding: str = "SAME",
        layers: Layers,
    ):
        self.units = nnx.List(
            Unit(
                before,
                after,
                relu=first_relu or i > 0,
                pool=pool_padding if downsample and i == len(channels) - 1 else None,
                layers=layers,
            )
            for i, (before, after) in enumerate(pairwise([channels_in, *channels]))
        )
        self.skip = (
            layers.conv_norm(channels_in, channels[-1], 1, stride=2, relu=False)
            if downsample and residual
            else None
        )
        self.residual = residual

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = x
        for unit in self.units:
            y = unit(y, train=train)
        if not self.residual:
            return y
        return y + (x if self.skip is None else self.skip(x, train=train))


class Tail(nnx.Module):
    """Block 14: separable convolutions, each with batch normalization and ReLU; no residual."""

    def __init__(self, channels_in: int, channels: Sequence[int], layers: Layers):
        self.units = nnx.List(
            Unit(before, after, relu=False, layers=layers)
            for before, after in pairwise([channels_in, *channels])
        )

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for unit in self.units:
            x = nnx.relu(unit(x, train=train))
        return x


def _check_choice(override: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        hint = nearest(value, choices) or ";"
        raise UsageError(f"{override} is {value!r}{hint} It takes: {', '.join(choices)}")


_OPTIONS = {
    "segments": Field(
        None,
        "Xception: number of channel segments, each with its own 3x3 convolution, in separable "
        "convolutions; None: one segment per channel",
        int,
        low=1,
    ),
    "order": Field(
        None,
        "Xception: order of the 3x3 and the 1x1 convolution in separable convolutions; None: "
        "spatial_first",
        str,
        choices=("spatial_first", "pointwise_first"),
    ),
    "intermediate_activation": Field(
        None,
        "Xception: activation between these two; None: none",
        str,
        choices=("none", "relu", "elu"),
    ),
    "residual": Field(None, "Xception: residual connections around the blocks; None: True", bool),
    "pool_padding": Field(
        None,
        "Xception: padding of max pooling; same: as in TensorFlow; symmetric: as in PyTorch; None: "
        "the model's default",
        str,
        choices=("same", "symmetric"),
    ),
}
_KERAS = Foreign("Xception", {"bn_epsilon": 1e-3, "pool_padding": "same"})
# The differences of timm's port (timm/models/xception.py).
_TIMM = Foreign("legacy_xception", {"bn_epsilon": 1e-5, "pool_padding": "symmetric"}, crop=0.8975)


@register(
    "legacy_xception",
    size=(22_855_952, 8_357_403_496, 7),
    published=[("timm legacy_xception.tf_in1k", 79.058, 94.396)],
    options=_OPTIONS,
    keras=_KERAS,
    timm=_TIMM,
    bn_epsilon=1e-5,
    pool_padding="symmetric",
)
@register(
    "xception",
    size=(22_855_952, 8_357_403_496, 7),
    published=[("arXiv:1610.02357, table 1", 79.0, 94.5), ("keras Xception", 79.0, 94.5)],
    options=_OPTIONS,
    keras=_KERAS,
    timm=_TIMM,
)
class Xception(Network):
    """Xception. Without overrides, the paper's network: 22,855,952 parameters at 1000 classes.

    Args:
      num_classes: the size of the logits; None builds no head, and the model returns the pooled
        features `[batch, channels]`.
      rngs: the stream `params` creates the initial weights.
      dtype: compute dtype.
      middle_blocks: the number of blocks in the middle flow.
      stem_stride: stride of the first convolution; 1 for images of a few dozen pixels.
      segments: of every separable convolution, see `layers.SeparableConv`; None: depthwise.
      order: of every separable convolution.
      intermediate_activation: of every separable convolution.
      residual: whether blocks have residual connections; figure 9 of the paper compares both.
      pool_padding: `same`, or `symmetric` as timm's `legacy_xception` (timm/models/xception.py).
      scan_middle: see `Network`.
      dropout: dropout rate before the classifier; the paper has 0.5 on ImageNet.
      **shared: the options of `Network`. The paper has `fc_units` of (4096, 4096) on JFT. It does
        not state the settings of batch normalization; the defaults are Keras'.

    Raises:
      UsageError: `order`, `intermediate_activation` or `pool_padding` is unknown.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        middle_blocks: int = 8,
        stem_stride: int = 2,
        segments: int | None = None,
        order: str = "spatial_first",
        intermediate_activation: str = "none",
        residual: bool = True,
        pool_padding: str = "same",
        scan_middle: bool = False,
        dropout: float = 0.5,
        **shared: Any,
    ):
        super().__init__(dtype, dropout=dropout, **shared)
        self.scan_middle = scan_middle
        _check_choice("order", order, ORDERS)
        _check_choice("intermediate_activation", intermediate_activation, list(ACTIVATIONS))
        _check_choice("pool_padding", pool_padding, ("same", "symmetric"))
        options = {"segments": segments, "order": order, "activation": intermediate_activation}
        layers = self.make_layers(rngs, separable_options=options)
        self._build(middle_blocks, stem_stride, residual, pool_padding.upper(), layers)
        self.head = self.make_head(scaled(2048, self.width), num_classes, layers)
        # The stem's output then has one pixel. Keras requires 71, which gives features of 3x3.
        self.min_image_size = 2 * stem_stride + 3

    def _build(
        self,
        middle_blocks: int,
        stem_stride: int,
        residual: bool,
        pool_padding: str,
        layers: Layers,
    ) -> None:
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            scaled(channels, self.width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        block = partial(Block, residual=residual, pool_padding=pool_padding, layers=layers)
        self.stem = Stem((c32, c64), stem_stride, layers)
        self.entry_flow = nnx.List(
            [
                block(c64, (c128, c128), downsample=True, first_relu=False),
                block(c128, (c256, c256), downsample=True),
                block(c256, (c728, c728), downsample=True),
            ]
        )
        self.middle_flow = nnx.List(
            block(c728, (c728, c728, c728), downsample=False) for _ in range(middle_blocks)
        )
        self.exit_flow = nnx.List(
            [
                block(c728, (c728, c1024), downsample=True),
                Tail(c1024, (c1536, c2048), layers),
            ]
        )

    def blocks(self) -> Iterator[tuple[str, nnx.Module]]:
        """The paper's modules in order, as `("block1", module), ("block2", module), ...`."""
        flow = [self.stem, *self.entry_flow, *self.middle_flow, *self.exit_flow]
        for i, block in enumerate(flow, start=1):
            yield f"block{i}", block
