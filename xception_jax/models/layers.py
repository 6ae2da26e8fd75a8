"""The layers of the models. Images are `[batch, height, width, channels]`.

Parameters are float32; each layer computes in its `dtype` (float32, or bfloat16 on TPU and GPU).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.models import ops

# Keras' default, as in its Xception (keras/src/applications/xception.py). The paper has none.
_kernel_init = nnx.initializers.glorot_uniform()


class Conv(nnx.Module):
    """A dense convolution without bias, because batch normalization follows.

    The kernel is `[rows, columns, channels_in, channels_out]`, square if `kernel_size` is a number.
    For `padding` see `ops.conv`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int | tuple[int, int],
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: str = "SAME",
        dtype: DTypeLike = jnp.float32,
    ):
        window = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        shape = (*window, channels_in, channels_out)
        self.kernel = nnx.Param(_kernel_init(rngs.params(), shape))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return ops.conv(x, kernel, stride=self.stride, padding=self.padding)


class Pointwise(nnx.Module):
    """A 1x1 convolution without bias, kernel `[channels_in, channels_out]`; SAME when strided."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (channels_in, channels_out)))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return ops.pointwise(x, kernel, stride=self.stride)


class Depthwise(nnx.Module):
    """A 3x3 convolution of each channel with its own filter, without bias.

    The kernel is `[3, 3, 1, channels]`; for `padding` see `ops.conv`.
    """

    def __init__(
        self,
        channels: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: str = "SAME",
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (3, 3, 1, channels)))
        self.stride, self.padding, self.dtype = stride, padding, dtype

    def __call__(self, x: jax.Array, *, relu: bool = False) -> jax.Array:
        """The convolution of `x`, or of `relu(x)`."""
        return ops.depthwise(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), stride=self.stride,
            relu=relu, padding=self.padding,
        )  # fmt: skip


def segment_sizes(channels: int, segments: int) -> list[int]:
    """The number of channels of each segment: as equal as possible, the larger ones first.

    There are at most as many segments as channels.
    """
    size, larger = divmod(channels, min(segments, channels))
    return [size + 1] * larger + [size] * (min(segments, channels) - larger)


class GroupedConv(nnx.Module):
    """A separate 3x3 convolution of each of `groups` groups of `size` channels, without bias.

    Stride 1, SAME; each group keeps its number of channels. The kernel is
    `[3, 3, size, groups * size]`.
    """

    def __init__(self, size: int, groups: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (3, 3, size, groups * size)))
        self.groups, self.dtype = groups, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.grouped(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.groups)


class SegmentedConv(nnx.Module):
    """A separate 3x3 convolution of each segment of the channels, stride 1, SAME, without bias.

    Segments do not overlap and keep their number of channels, see `segment_sizes`. With one segment
    it is a regular convolution, with one per channel a depthwise convolution.
    """

    def __init__(
        self, channels: int, segments: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        counts = Counter(segment_sizes(channels, segments))
        self.parts = nnx.List(
            Depthwise(count, rngs=rngs, dtype=dtype)
            if size == 1
            else GroupedConv(size, count, rngs=rngs, dtype=dtype)
            for size, count in counts.items()
        )
        self.ends = tuple(itertools.accumulate(size * count for size, count in counts.items()))

    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = jnp.split(x, self.ends[:-1], axis=-1)
        outputs = [part(y) for part, y in zip(self.parts, inputs, strict=True)]
        return jnp.concatenate(outputs, axis=-1)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": lambda x: x,
    "relu": nnx.relu,
    "elu": nnx.elu,
}
ORDERS = ("spatial_first", "pointwise_first")


class SeparableConv(nnx.Module):
    """A separable convolution: 3x3 over space, 1x1 over channels.

    The default is the depthwise separable convolution. The options cover the Inception hypothesis
    (arXiv:1610.02357v3, section 1.2): from a regular and a pointwise convolution, through Inception
    modules, to the depthwise separable convolution.

    Args:
      channels_in: of the input.
      channels_out: of the result.
      rngs: the stream `params` creates the initial weights.
      segments: the number of channel segments with a separate 3x3 convolution, see
        `SegmentedConv`; None: one per channel.
      order: one of `ORDERS`. In Inception the pointwise convolution is first.
      activation: between the two, one of `ACTIVATIONS`. In the paper (section 4.7, figure 10) an
        activation there makes training slower and the result worse.
      dtype: compute dtype.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        rngs: nnx.Rngs,
        segments: int | None = None,
        order: str = "spatial_first",
        activation: str = "none",
        dtype: DTypeLike = jnp.float32,
    ):
        channels = channels_in if order == "spatial_first" else channels_out
        self.depthwise: Depthwise | SegmentedConv = (
            Depthwise(channels, rngs=rngs, dtype=dtype)
            if segments is None
            else SegmentedConv(channels, segments, rngs=rngs, dtype=dtype)
        )
        self.pointwise = Pointwise(channels_in, channels_out, rngs=rngs, dtype=dtype)
        self.order, self.activation, self.dtype = order, activation, dtype

    def __call__(self, x: jax.Array, *, relu: bool = False) -> jax.Array:
        """The convolution of `x`, or of `relu(x)`."""
        plain = self.order == "spatial_first" and self.activation == "none"
        if plain and isinstance(self.depthwise, Depthwise):
            kernels = self.depthwise.kernel[...], self.pointwise.kernel[...]
            return ops.separable(x.astype(self.dtype), *kernels, relu=relu)
        steps: list[Callable[[jax.Array], jax.Array]] = [self.depthwise, self.pointwise]
        first, second = steps if self.order == "spatial_first" else reversed(steps)
        x = nnx.relu(x) if relu else x
        return second(ACTIVATIONS[self.activation](first(x)))


class BatchNorm(nnx.Module):
    """Batch normalization over virtual batches of a fixed number of examples.

    In training the batch is split into runs of `virtual_batch` examples, and each run is normalized
    by its own mean and variance. The running statistics move towards the mean over the runs. So a
    step computes the same on any number of devices. If a device has only complete virtual batches,
    the statistics need no communication. `None` makes one run of the global batch.

    The result has the dtype of `x`; statistics are float32. The variance is the biased one, as in
    Keras. Without `scale`, normalized values are only shifted, not scaled.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        virtual_batch: int | None = None,
        scale: bool = True,
    ):
        self.scale = nnx.Param(jnp.ones(channels)) if scale else None
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.epsilon, self.momentum = epsilon, momentum
        self.virtual_batch = virtual_batch

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        runs = self._runs(x, train)
        return ops.affine(runs, *self._normalizer(runs, train)).reshape(x.shape)

    def max_pooled(self, x: jax.Array, *, train: bool = False, padding: str = "SAME") -> jax.Array:
        """`ops.max_pool(self(x))`, but pools first and so normalizes only a quarter of the values.

        If the scale is positive, normalization is increasing and commutes with the maximum. If it
        is negative, the same holds for `-x`. (If it is 0, all values of a window are equal after
        normalization; here the gradient still goes to the maximum of `x`.)
        """
        sign = jnp.where(self._scale() < 0, -1.0, 1.0)
        x = x * sign.astype(x.dtype)
        factor, offset = self._normalizer(self._runs(x, train), train, sign)
        pooled = ops.max_pool(x, padding=padding)
        return ops.affine(self._runs(pooled, train), factor, offset).reshape(pooled.shape)

    def _runs(self, x: jax.Array, train: bool) -> jax.Array:
        """`[runs, examples, ..., channels]`; inference has one example a run, `x` as it is."""
        if not train:
            return x
        length = self.virtual_batch or x.shape[0]
        if x.shape[0] % length:
            raise ValueError(
                f"a batch of {x.shape[0]} is not divisible into virtual batches of {length}"
            )
        return x.reshape(-1, length, *x.shape[1:])

    def _normalizer(
        self, runs: jax.Array, train: bool, sign: jax.Array | float = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """Factor and offset `[runs, channels]` of the normalization; training updates statistics.

        Args:
          runs: `sign * x`.
          train: whether to use the statistics of each run; if not, the running ones.
          sign: -1 or 1, for all or `[channels]`.
        """
        scale, mean, var = self._scale(), sign * self.mean[...][None], self.var[...][None]
        if train:
            # The running mean is close to the mean.
            mean, var = ops.moments(runs, jax.lax.stop_gradient(mean[0]))
            for running, seen in ((self.mean, sign * mean), (self.var, var)):
                running[...] = self.momentum * running[...] + (1 - self.momentum) * seen.mean(0)
        factor = sign * scale * jax.lax.rsqrt(var + self.epsilon)
        return factor, self.bias[...] - mean * factor

    def _scale(self) -> jax.Array:
        return jnp.ones_like(self.bias[...]) if self.scale is None else self.scale[...]


class ConvNorm(nnx.Module):
    """A dense convolution, batch normalization and, with `relu`, ReLU."""

    def __init__(self, conv: Conv | Pointwise, bn: BatchNorm, *, relu: bool = True):
        self.conv, self.bn, self.relu = conv, bn, relu

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = self.bn(self.conv(x), train=train)
        return nnx.relu(x) if self.relu else x


@dataclass(frozen=True)
class Layers:
    """Builds layers with the same random stream, dtype and kind of batch normalization.

    `separable_options` are the `segments`, `order` and `activation` of `SeparableConv`.
    """

    rngs: nnx.Rngs
    dtype: DTypeLike
    bn_epsilon: float
    bn_momentum: float
    bn_virtual_batch: int | None
    bn_scale: bool = True
    separable_options: Mapping[str, Any] = field(default_factory=dict)

    def conv(
        self,
        channels_in: int,
        channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        stride: int = 1,
        padding: str = "VALID",
    ) -> Conv:
        """A dense convolution."""
        return Conv(
            channels_in, channels, kernel_size, stride=stride, padding=padding, rngs=self.rngs,
            dtype=self.dtype,
        )  # fmt: skip

    def depthwise(self, channels: int, *, stride: int = 1, padding: str = "SAME") -> Depthwise:
        """A depthwise 3x3 convolution."""
        return Depthwise(channels, stride=stride, padding=padding, rngs=self.rngs, dtype=self.dtype)

    def pointwise(self, channels_in: int, channels: int, *, stride: int = 1) -> Pointwise:
        """A 1x1 convolution."""
        return Pointwise(channels_in, channels, stride=stride, rngs=self.rngs, dtype=self.dtype)

    def separable(self, channels_in: int, channels: int) -> SeparableConv:
        """A separable convolution with `separable_options`; SAME."""
        return SeparableConv(
            channels_in, channels, rngs=self.rngs, dtype=self.dtype, **self.separable_options
        )

    def conv_norm(
        self,
        channels_in: int,
        channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: str = "SAME",
        relu: bool = True,
    ) -> ConvNorm:
        """A dense convolution (also 1x1) with batch normalization and ReLU."""
        conv = (
            self.pointwise(channels_in, channels, stride=stride)
            if kernel_size == 1
            else self.conv(channels_in, channels, kernel_size, stride=stride, padding=padding)
        )
        return ConvNorm(conv, self.norm(channels), relu=relu)

    def linear(self, units_in: int, units: int) -> nnx.Linear:
        """A fully connected layer with bias."""
        return nnx.Linear(units_in, units, rngs=self.rngs, dtype=self.dtype)

    def norm(self, channels: int) -> BatchNorm:
        """Batch normalization."""
        return BatchNorm(
            channels,
            epsilon=self.bn_epsilon,
            momentum=self.bn_momentum,
            virtual_batch=self.bn_virtual_batch,
            scale=self.bn_scale,
        )
