"""The layers that the models are built of. Images are `[batch, height, width, channels]`.

Parameters are float32; each layer computes in its `dtype` (float32, or bfloat16 on TPU and GPU).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from xception_jax.models import ops

# Keras' own Xception (keras/src/applications/xception.py) leaves its default; the paper is silent.
_kernel_init = nnx.initializers.glorot_uniform()


class Conv(nnx.Module):
    """A dense convolution without bias: every one here is followed by batch normalization."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        *,
        rngs: nnx.Rngs,
        stride: int = 1,
        padding: str = "SAME",
        dtype: DTypeLike = jnp.float32,
    ):
        shape = (kernel_size, kernel_size, channels_in, channels_out)
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
    """A 3x3 convolution of each channel with its own filter, stride 1, SAME, without bias.

    The kernel is `[3, 3, 1, channels]`.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (3, 3, 1, channels)))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.depthwise(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


class SeparableConv(nnx.Module):
    """A depthwise separable convolution: 3x3 over space, then 1x1 over channels.

    Nothing comes between the two: the paper finds (section 4.7, figure 10) that an activation
    there makes training slower and its end worse.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        self.depthwise = Depthwise(channels_in, rngs=rngs, dtype=dtype)
        self.pointwise = Pointwise(channels_in, channels_out, rngs=rngs, dtype=dtype)
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, relu: bool = False) -> jax.Array:
        """The convolution of `x`, or of `relu(x)`."""
        kernels = self.depthwise.kernel[...], self.pointwise.kernel[...]
        return ops.separable(x.astype(self.dtype), *kernels, relu=relu)


class BatchNorm(nnx.Module):
    """Batch normalization over virtual batches of a fixed number of examples.

    In training the batch is cut into runs of `virtual_batch` examples, and each run is normalized
    by its own mean and variance; the running statistics move towards the mean over the runs. So a
    step computes the same thing on any number of devices, and where a device's share holds whole
    virtual batches the statistics need no communication. `None`: one run, the whole global batch.

    The result has the dtype of `x`; statistics are float32. The variance is the biased one, as in
    Keras.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-3,
        momentum: float = 0.99,
        virtual_batch: int | None = None,
    ):
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.epsilon, self.momentum = epsilon, momentum
        self.virtual_batch = virtual_batch

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        runs = self._runs(x, train)
        return ops.affine(runs, *self._normalizer(runs, train)).reshape(x.shape)

    def max_pooled(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """`ops.max_pool(self(x))`, but normalizes only the quarter that pooling leaves.

        Normalization grows with `x` where the scale is positive, and then commutes with the
        maximum; where it is negative, it grows with `-x`. (Where the scale is 0 all of a window
        ties after normalization; here the gradient still goes to the maximum of `x`.)
        """
        sign = jnp.where(self.scale[...] < 0, -1.0, 1.0)
        x = x * sign.astype(x.dtype)
        factor, offset = self._normalizer(self._runs(x, train), train, sign)
        pooled = ops.max_pool(x)
        return ops.affine(self._runs(pooled, train), factor, offset).reshape(pooled.shape)

    def _runs(self, x: jax.Array, train: bool) -> jax.Array:
        """`[runs, examples, ..., channels]`; inference has one run."""
        length = self.virtual_batch if train and self.virtual_batch else x.shape[0]
        if x.shape[0] % length:
            raise ValueError(
                f"a batch of {x.shape[0]} does not divide into virtual batches of {length}"
            )
        return x.reshape(-1, length, *x.shape[1:])

    def _normalizer(
        self, runs: jax.Array, train: bool, sign: jax.Array | float = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """Factor and offset `[runs, channels]` that normalize; training moves the statistics.

        Args:
          runs: `sign * x`.
          train: by the statistics of each run, else by the running ones.
          sign: -1 or 1, for all or `[channels]`.
        """
        mean, var = sign * self.mean[...][None], self.var[...][None]
        if train:
            # The running mean is a good guess of the mean.
            mean, var = ops.moments(runs, jax.lax.stop_gradient(mean[0]))
            self.mean[...] = self._moved(self.mean[...], sign * mean)
            self.var[...] = self._moved(self.var[...], var)
        factor = sign * self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return factor, self.bias[...] - mean * factor

    def _moved(self, running: jax.Array, runs: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * runs.mean(0)


@dataclass(frozen=True)
class Layers:
    """Builds layers that share a stream of weights, a dtype and a kind of batch normalization."""

    rngs: nnx.Rngs
    dtype: DTypeLike
    bn_epsilon: float
    bn_momentum: float
    bn_virtual_batch: int | None

    def conv(self, channels_in: int, channels: int, *, stride: int = 1) -> Conv:
        """A dense 3x3 convolution, VALID."""
        return Conv(
            channels_in, channels, 3, stride=stride, padding="VALID", rngs=self.rngs,
            dtype=self.dtype,
        )  # fmt: skip

    def separable(self, channels_in: int, channels: int) -> SeparableConv:
        """A depthwise separable 3x3 convolution, SAME."""
        return SeparableConv(channels_in, channels, rngs=self.rngs, dtype=self.dtype)

    def projection(self, channels_in: int, channels: int) -> Pointwise:
        """A 1x1 convolution with stride 2."""
        return Pointwise(channels_in, channels, stride=2, rngs=self.rngs, dtype=self.dtype)

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
        )
