"""Inception modules, and the steps from them to the depthwise separable convolution.

Section 1.2 of arXiv:1610.02357v3 has these steps:

- `Simplified` (figure 2): towers of a pointwise and a spatial convolution.
- `grouped` (figure 3): the same as one pointwise convolution, followed by spatial convolutions over
  segments of its output.
- `extreme` (figure 4): one segment per channel.

The depthwise separable convolution only differs from the last in the order and in the activation
between the two. `layers.SeparableConv` covers all of these.

`naive` and `canonical` are the original modules: figure 2a of arXiv:1409.4842, and figure 1 of
arXiv:1610.02357v3, which is from Inception V3.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.models import ops
from xception_jax.models.layers import (
    ACTIVATIONS,
    Conv,
    Layers,
    Pointwise,
    SegmentedConv,
    SeparableConv,
    segment_sizes,
)


class MaxPool(nnx.Module):
    """3x3 max pooling: stride 2, VALID, or stride 1, SAME."""

    def __init__(self, stride: int = 2):
        self.stride = stride

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.stride == 1:
            pooled: jax.Array = nnx.max_pool(x, (3, 3), (1, 1), "SAME")
            return pooled
        return ops.max_pool(x, padding="VALID")


class AveragePool(nnx.Module):
    """3x3 average pooling, stride 1, SAME, see `ops.average_pool`."""

    def __init__(self, *, count_padding: bool = False):
        self.count_padding = count_padding

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return ops.average_pool(x, count_padding=self.count_padding)


class Chain(nnx.Module):
    """Layers in sequence, each called as `layer(x, train=train)`."""

    def __init__(self, layers: Sequence[nnx.Module]):
        self.layers = nnx.List(layers)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for layer in self.layers:
            x = layer(x, train=train)
        return x


class Branches(nnx.Module):
    """Parallel modules on the same input, concatenated over channels in the given order."""

    def __init__(self, **branches: nnx.Module):
        self.names = tuple(branches)
        for name, branch in branches.items():
            setattr(self, name, branch)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        outputs = [getattr(self, name)(x, train=train) for name in self.names]
        return jnp.concatenate(outputs, axis=-1)


def naive(channels_in: int, channels: Sequence[int], layers: Layers) -> Branches:
    """The naive module: `[batch, height, width, sum(channels) + channels_in]`.

    Args:
      channels_in: of the input.
      channels: of the 1x1, the 3x3 and the 5x5 convolution; the pooling keeps `channels_in`.
      layers: builds the layers, each convolution with batch normalization and ReLU.
    """
    c1, c3, c5 = channels
    return Branches(
        branch1x1=layers.conv_norm(channels_in, c1, 1),
        branch3x3=layers.conv_norm(channels_in, c3, 3),
        branch5x5=layers.conv_norm(channels_in, c5, 5),
        branch_pool=MaxPool(stride=1),
    )


def canonical(
    channels_in: int, channels: Sequence[int], reduced: Sequence[int], layers: Layers
) -> Branches:
    """The canonical module of Inception V3: `[batch, height, width, sum(channels)]`.

    Args:
      channels_in: of the input.
      channels: the output channels of four branches: the 1x1 convolution, the 3x3 convolution, the
        pair of 3x3 convolutions that replaces a 5x5 one, and the 1x1 convolution after the pooling.
      reduced: channels of the 1x1 convolutions before the 3x3 convolution and before the pair.
      layers: builds the layers, each convolution with batch normalization and ReLU.
    """
    c1, c3, c5, c_pool = channels
    r3, r5 = reduced
    conv = layers.conv_norm
    return Branches(
        branch1x1=conv(channels_in, c1, 1),
        branch3x3=Chain([conv(channels_in, r3, 1), conv(r3, c3, 3)]),
        branch3x3dbl=Chain([conv(channels_in, r5, 1), conv(r5, c5, 3), conv(c5, c5, 3)]),
        branch_pool=Chain([AveragePool(), conv(channels_in, c_pool, 1)]),
    )


class Simplified(nnx.Module):
    """Parallel towers of a 1x1 and a 3x3 convolution, concatenated over channels.

    `[batch, height, width, channels_in]` to `[batch, height, width, channels]`.

    Args:
      channels_in: of the input.
      channels: of the result, divided between the towers by `layers.segment_sizes`.
      towers: their number.
      activation: between the two convolutions, one of `layers.ACTIVATIONS`.
      rngs: the stream `params` creates the initial weights.
      dtype: compute dtype.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        towers: int,
        *,
        activation: str = "none",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        sizes = segment_sizes(channels, towers)
        self.pointwise = nnx.List(
            Pointwise(channels_in, size, rngs=rngs, dtype=dtype) for size in sizes
        )
        self.spatial = nnx.List(Conv(size, size, 3, rngs=rngs, dtype=dtype) for size in sizes)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        between = ACTIVATIONS[self.activation]
        towers = zip(self.pointwise, self.spatial, strict=True)
        return jnp.concatenate([conv(between(reduce(x))) for reduce, conv in towers], axis=-1)

    def regrouped(self) -> SeparableConv:
        """The strictly equivalent form with the same weights, see `grouped`."""
        sizes = [param.kernel.shape[-1] for param in self.spatial]
        channels_in, dtype = self.pointwise[0].kernel.shape[0], self.pointwise[0].dtype
        module = grouped(
            channels_in, sum(sizes), len(sizes), activation=self.activation,
            rngs=nnx.Rngs(0), dtype=dtype,
        )  # fmt: skip
        module.pointwise.kernel[...] = jnp.concatenate(
            [layer.kernel[...] for layer in self.pointwise], axis=-1
        )
        assert isinstance(module.depthwise, SegmentedConv)
        for part in module.depthwise.parts:
            kernels = (conv.kernel[...] for conv in self.spatial)
            same = [kernel for kernel in kernels if kernel.shape[2] == part.kernel.shape[2]]
            part.kernel[...] = jnp.concatenate(same, axis=-1)
        return module


def grouped(
    channels_in: int,
    channels: int,
    segments: int,
    *,
    activation: str = "none",
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
) -> SeparableConv:
    """One 1x1 convolution, then 3x3 convolutions over non-overlapping segments of its output.

    For the arguments see `Simplified`.
    """
    return SeparableConv(
        channels_in, channels, segments=segments, order="pointwise_first", activation=activation,
        rngs=rngs, dtype=dtype,
    )  # fmt: skip


def extreme(
    channels_in: int,
    channels: int,
    *,
    activation: str = "none",
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
) -> SeparableConv:
    """`grouped` with as many segments as channels."""
    return SeparableConv(
        channels_in, channels, order="pointwise_first", activation=activation,
        rngs=rngs, dtype=dtype,
    )  # fmt: skip
