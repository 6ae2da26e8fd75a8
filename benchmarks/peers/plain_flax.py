"""Xception (arXiv:1610.02357v3, figure 5) in plain Flax NNX, a straightforward first version.

Independent of the package: the reference for its speed, and in the tests for its numbers.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class SeparableConv(nnx.Module):
    """A depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, channels_in: int, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(
            channels_in, channels_in, (3, 3), feature_group_count=channels_in, use_bias=False,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.pointwise = nnx.Conv(
            channels_in, channels, (1, 1), use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pointwise(self.depthwise(x))


def batch_norm(channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Batch normalization with Keras' settings."""
    return nnx.BatchNorm(channels, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)


class Stem(nnx.Module):
    """Two plain convolutions."""

    def __init__(self, channels: Sequence[int], stride: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        first, second = channels
        options: dict[str, Any] = {"padding": "VALID", "use_bias": False, "dtype": dtype}
        self.conv1 = nnx.Conv(3, first, (3, 3), strides=stride, rngs=rngs, **options)
        self.bn1 = batch_norm(first, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, (3, 3), rngs=rngs, **options)
        self.bn2 = batch_norm(second, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nnx.relu(self.bn1(self.conv1(x), use_running_average=not train))
        return nnx.relu(self.bn2(self.conv2(x), use_running_average=not train))


class Unit(nnx.Module):
    """A separable convolution and its batch normalization."""

    def __init__(self, channels_in: int, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = SeparableConv(channels_in, channels, dtype=dtype, rngs=rngs)
        self.bn = batch_norm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.bn(self.conv(x), use_running_average=not train)


class Skip(nnx.Module):
    """A 1x1 convolution with stride 2 and its batch normalization."""

    def __init__(self, channels_in: int, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels_in, channels, (1, 1), strides=2, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.bn = batch_norm(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.bn(self.conv(x), use_running_average=not train)


class Block(nnx.Module):
    """Separable convolutions, each after a ReLU, and a skip."""

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        *,
        downsample: bool,
        first_relu: bool = True,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.units = nnx.List(
            Unit(before, after, dtype=dtype, rngs=rngs)
            for before, after in pairwise([channels_in, *channels])
        )
        self.first_relu = first_relu
        self.skip = Skip(channels_in, channels[-1], dtype=dtype, rngs=rngs) if downsample else None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        y = x
        for i, unit in enumerate(self.units):
            y = unit(nnx.relu(y) if i > 0 or self.first_relu else y, train=train)
        if self.skip is None:
            return y + x
        return nnx.max_pool(y, (3, 3), (2, 2), "SAME") + self.skip(x, train=train)


class Tail(nnx.Module):
    """Separable convolutions, each before a ReLU."""

    def __init__(
        self, channels_in: int, channels: Sequence[int], *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.units = nnx.List(
            Unit(before, after, dtype=dtype, rngs=rngs)
            for before, after in pairwise([channels_in, *channels])
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for unit in self.units:
            x = nnx.relu(unit(x, train=train))
        return x


class Xception(nnx.Module):
    """Logits `[batch, num_classes]` of images `[batch, height, width, 3]`, scaled to [-1, 1].

    Args:
      num_classes: size of the logits.
      rngs: the stream `params` initializes the weights; training uses the stream `dropout`.
      width, middle_blocks, stem_stride, dropout, dtype: see `xception_jax.models.xception`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        rngs: nnx.Rngs,
        width: float = 1.0,
        middle_blocks: int = 8,
        stem_stride: int = 2,
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
    ):
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            max(8, round(channels * width / 8) * 8)
            for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        common: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.stem = Stem((c32, c64), stem_stride, **common)
        self.entry_flow = nnx.List(
            [
                Block(c64, (c128, c128), downsample=True, first_relu=False, **common),
                Block(c128, (c256, c256), downsample=True, **common),
                Block(c256, (c728, c728), downsample=True, **common),
            ]
        )
        self.middle_flow = nnx.List(
            Block(c728, (c728, c728, c728), downsample=False, **common)
            for _ in range(middle_blocks)
        )
        self.exit_flow = nnx.List(
            [
                Block(c728, (c728, c1024), downsample=True, **common),
                Tail(c1024, (c1536, c2048), **common),
            ]
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = nnx.Linear(c2048, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.stem(images, train=train)
        for block in [*self.entry_flow, *self.middle_flow, *self.exit_flow]:
            x = block(x, train=train)
        x = x.mean((1, 2), dtype=jnp.float32)
        return self.classifier(self.dropout(x, deterministic=not train))


def copy_weights(params: Any, batch_stats: Any, **changes: Any) -> Xception:
    """A plain model with the weights of the package's model.

    Args:
      params, batch_stats: nested dicts of `xception_jax`.
      **changes: the arguments of the package's model, without `num_classes` and `rngs`.
    """
    num_classes = params["head"]["classifier"]["bias"].shape[0]
    model = Xception(num_classes, rngs=nnx.Rngs(0), **changes)
    for kind, tree in ((nnx.Param, params), (nnx.BatchStat, batch_stats)):
        state = nnx.state(model, kind)
        nnx.replace_by_pure_dict(state, from_ours(tree, nnx.to_pure_dict(state)))
        nnx.update(model, state)
    return model


def from_ours(tree: Any, plain: Any) -> Any:
    """Converts a nested dict of parameters, gradients or statistics to the plain form.

    Args:
      tree: the package's nested dict.
      plain: a nested dict of the plain model, for its shapes.
    """
    # The plain model has no module `head`, and its 1x1 kernels have four axes.
    tree = {**{k: v for k, v in tree.items() if k != "head"}, **tree.get("head", {})}
    tree = {name: tree[name] for name in plain}
    return jax.tree.map(lambda like, leaf: jnp.array(leaf).reshape(like.shape), plain, tree)
