"""The mean and the variance of a batch, and the affine function for normalization."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _moments_two_passes(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The plain mean and variance. On CPU each sum is a separate pass anyway."""
    axes = tuple(range(1, x.ndim - 1))
    x = x.astype(jnp.float32)
    mean = x.mean(axes)
    return mean, jnp.square(x - _over(mean, x)).mean(axes)


def _moments_one_pass(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums in one pass, which XLA fuses into the convolution that computes `x`.

    E[x^2] - E[x]^2 loses all precision if the mean is much larger than the deviation. So an
    approximate mean is subtracted first.
    """
    axes = tuple(range(1, x.ndim - 1))
    centred = x.astype(jnp.float32) - shift
    mean = centred.mean(axes)
    var = jnp.square(centred).mean(axes) - jnp.square(mean)
    return mean + shift, jnp.maximum(var, 0)


@jax.custom_vjp
def moments(x: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the (biased) variance of each run of examples, in float32.

    The gradient is one multiply-add over `x`, which XLA fuses with the gradient of `affine`.

    Args:
      x: `[runs, examples, ..., channels]`.
      shift: float32 `[channels]`, an approximate mean, for precision; it has no gradient.

    Returns:
      Two arrays `[runs, channels]`.
    """
    found: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        x, shift, cpu=_moments_two_passes, default=_moments_one_pass
    )
    return found


def _moments_forward(x: jax.Array, shift: jax.Array) -> tuple[Any, Any]:
    mean, var = moments(x, shift)
    return (mean, var), (x, mean)


def _moments_backward(residuals: Any, cotangents: Any) -> tuple[jax.Array, jax.Array]:
    x, mean = residuals
    of_mean, of_var = cotangents
    count = x.size // mean.size
    slope = 2 * of_var / count
    offset = of_mean / count - slope * mean
    gradient = x.astype(jnp.float32) * _over(slope, x) + _over(offset, x)
    return gradient.astype(x.dtype), jnp.zeros_like(mean[0])


moments.defvjp(_moments_forward, _moments_backward)


def _over(of_runs: jax.Array, x: jax.Array) -> jax.Array:
    """`[runs, channels]` with axes of size 1 in between, to broadcast over `x`."""
    return of_runs.reshape(of_runs.shape[0], *(1,) * (x.ndim - 2), of_runs.shape[-1])


def affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`x * factor + offset` in float32, returned in the dtype of `x`.

    Args:
      x: `[runs, examples, ..., channels]`.
      factor: float32 `[runs, channels]` or `[1, channels]`.
      offset: of the same shape.
    """
    return (x.astype(jnp.float32) * _over(factor, x) + _over(offset, x)).astype(x.dtype)
