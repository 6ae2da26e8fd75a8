"""Xception (arXiv:1610.02357v3, figure 5): 36 convolutions in 14 modules.

    entry flow    block1         two plain 3x3 convolutions, the first with stride 2
                  block2..4      two separable convolutions, max pooling; projected skip
    middle flow   block5..12     three separable convolutions; identity skip
    exit flow     block13        two separable convolutions, max pooling; projected skip
                  block14        two separable convolutions
    head          global average pooling, optional fully connected layers, dropout, classifier

The numbers of the blocks are the paper's and Keras' (keras/src/applications/xception.py).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.errors import UsageError
from xception_jax.models.layers import Layers


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

    A ReLU comes before them where `relu` is set, max pooling after them where `pool` is.
    """

    def __init__(
        self, channels_in: int, channels: int, *, relu: bool, pool: bool = False, layers: Layers
    ):
        self.conv = layers.separable(channels_in, channels)
        self.bn = layers.norm(channels)
        self.relu, self.pool = relu, pool

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.conv(x, relu=self.relu)
        return self.bn.max_pooled(x, train=train) if self.pool else self.bn(x, train=train)


class Skip(nnx.Module):
    """The projection around a block that halves the image: 1x1, stride 2, batch normalization."""

    def __init__(self, channels_in: int, channels: int, layers: Layers):
        self.conv = layers.projection(channels_in, channels)
        self.bn = layers.norm(channels)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return self.bn(self.conv(x), train=train)


class Block(nnx.Module):
    """Separable convolutions with a residual connection around them.

    Args:
      channels_in: channels of the input.
      channels: output channels of each separable convolution in turn.
      downsample: end with a 3x3/2 max pooling, and project the skip; else the skip is the identity.
      first_relu: a ReLU before the first convolution (block 2 alone has none).
      layers: builds them.
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        downsample: bool,
        first_relu: bool = True,
        layers: Layers,
    ):
        self.units = nnx.List(
            Unit(
                before,
                after,
                relu=first_relu or i > 0,
                pool=downsample and i == len(channels) - 1,
                layers=layers,
            )
            for i, (before, after) in enumerate(pairwise([channels_in, *channels]))
        )
        self.skip = Skip(channels_in, channels[-1], layers) if downsample else None

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = x
        for unit in self.units:
            y = unit(y, train=train)
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


class Head(nnx.Module):
    """Pooled features to logits: fully connected layers with ReLU, dropout, logistic regression."""

    def __init__(
        self,
        channels_in: int,
        num_classes: int,
        *,
        fc_units: Sequence[int],
        dropout: float,
        layers: Layers,
    ):
        widths = [channels_in, *fc_units]
        self.fc = nnx.List(layers.linear(before, after) for before, after in pairwise(widths))
        self.dropout = nnx.Dropout(dropout)
        # In float32 whatever the compute dtype, for the sake of the loss.
        self.classifier = nnx.Linear(widths[-1], num_classes, rngs=layers.rngs)

    def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        for layer in self.fc:
            x = nnx.relu(layer(x))
        x = self.dropout(x.astype(jnp.float32), deterministic=not train, rngs=rngs)
        return self.classifier(x)


def _apply(block: nnx.Module, x: jax.Array, *, train: bool) -> jax.Array:
    return block(x, train=train)


def _remat(block: nnx.Module, x: jax.Array, *, train: bool) -> jax.Array:
    return nnx.remat(lambda block, x: _apply(block, x, train=train))(block, x)


def _scan(apply: Callable, blocks: Sequence[nnx.Module], x: jax.Array) -> jax.Array:
    """Applies blocks of one structure in turn, by a loop over their stacked weights."""
    structure = nnx.graphdef(blocks[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, blocks))

    def body(x: jax.Array, weights: nnx.State):
        block = nnx.merge(structure, weights)
        return apply(block, x), nnx.state(block, nnx.BatchStat)

    x, batch_stats = jax.lax.scan(body, x, stacked)
    for i, block in enumerate(blocks):
        nnx.update(block, jax.tree.map(lambda leaf, i=i: leaf[i], batch_stats))
    return x


class Xception(nnx.Module):
    """Xception. Without overrides, the paper's network: 22,855,952 parameters at 1000 classes.

    Args:
      num_classes: size of the logits; None leaves the head out, and the model returns the pooled
        features `[batch, channels]`.
      rngs: the stream `params` makes the initial weights.
      dtype: compute dtype; parameters, batch statistics and logits are float32 all the same.
      width: factor on every number of channels; products are rounded to a multiple of 8.
      middle_blocks: blocks of the middle flow.
      stem_stride: stride of the first convolution; 1 for images of a few dozen pixels.
      fc_units: sizes of fully connected layers before the classifier ((4096, 4096) on JFT).
      dropout: share of the features dropped before the classifier (0.5 on ImageNet).
      bn_epsilon, bn_momentum: Keras' values; the paper does not state them.
      bn_virtual_batch: see `layers.BatchNorm`.
      remat: compute the inside of each block again for its gradient instead of keeping it: less
        memory, more time.
      scan_middle: compile one block of the middle flow and loop over it: compiles faster, takes
        more memory.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
        width: float = 1.0,
        middle_blocks: int = 8,
        stem_stride: int = 2,
        fc_units: Sequence[int] = (),
        dropout: float = 0.5,
        bn_epsilon: float = 1e-3,
        bn_momentum: float = 0.99,
        bn_virtual_batch: int | None = None,
        remat: bool = False,
        scan_middle: bool = False,
    ):
        dtype = dtype or jnp.float32
        layers = Layers(rngs, dtype, bn_epsilon, bn_momentum, bn_virtual_batch)
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            max(8, round(channels * width / 8) * 8)
            for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.stem = Stem((c32, c64), stem_stride, layers)
        self.entry_flow = nnx.List(
            [
                Block(c64, (c128, c128), downsample=True, first_relu=False, layers=layers),
                Block(c128, (c256, c256), downsample=True, layers=layers),
                Block(c256, (c728, c728), downsample=True, layers=layers),
            ]
        )
        self.middle_flow = nnx.List(
            Block(c728, (c728, c728, c728), downsample=False, layers=layers)
            for _ in range(middle_blocks)
        )
        self.exit_flow = nnx.List(
            [
                Block(c728, (c728, c1024), downsample=True, layers=layers),
                Tail(c1024, (c1536, c2048), layers),
            ]
        )
        self.head = (
            Head(c2048, num_classes, fc_units=fc_units, dropout=dropout, layers=layers)
            if num_classes is not None
            else None
        )
        self.dtype, self.remat, self.scan_middle = dtype, remat, scan_middle
        # What the stem needs to leave one pixel. Keras asks for 71, where 3x3 features are left.
        self.min_image_size = 2 * stem_stride + 3

    def blocks(self) -> Iterator[tuple[str, nnx.Module]]:
        """The paper's modules in order, as `("block1", module), ("block2", module), ...`."""
        flow = [self.stem, *self.entry_flow, *self.middle_flow, *self.exit_flow]
        yield from ((f"block{i}", block) for i, block in enumerate(flow, start=1))

    def features(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """The last feature map, `[batch, height / 32, width / 32, channels]` in `dtype`."""
        if min(images.shape[1:3]) < self.min_image_size:
            raise UsageError(
                f"images of {images.shape[1]}x{images.shape[2]} pixels are below this model's "
                f"least side of {self.min_image_size}"
            )
        x = images.astype(self.dtype)
        apply = partial(_remat if self.remat else _apply, train=train)
        middle = list(self.middle_flow) if self.scan_middle else []
        for name, block in self.blocks():
            # Traces and compiled programs name the paper's modules.
            if middle and block is middle[0]:
                with jax.named_scope("middle_flow"):
                    x = _scan(apply, middle, x)
            elif block not in middle:
                with jax.named_scope(name):
                    x = apply(block, x)
        return x

    def __call__(
        self, images: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Logits, float32 `[batch, num_classes]`.

        Args:
          images: `[batch, height, width, 3]`, scaled to [-1, 1].
          train: normalize by the statistics of the batch, move the running ones, and drop out.
          rngs: the stream `dropout`, needed in training where `dropout` is above 0.
        """
        pooled = self.features(images, train=train).mean((1, 2), dtype=jnp.float32)
        return pooled if self.head is None else self.head(pooled, train=train, rngs=rngs)
