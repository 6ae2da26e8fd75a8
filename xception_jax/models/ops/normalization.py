"""The mean and the variance of a batch, and the affine function that normalizes by them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def _moments_two_passes(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The plain mean and variance. On CPU each sum is a pass of its own anyway."""
    axes = tuple(range(1, x.ndim - 1))
    x = x.astype(jnp.float32)
    mean = x.mean(axes)
    return mean, jnp.square(x - _over(mean, x)).mean(axes)


def _moments_one_pass(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums at once, fused into the convolution that makes `x`.

    E[x^2] - E[x]^2 loses all precision where the mean is far above the deviation, so a guess of
    the mean is taken off first.
    """
    axes = tuple(range(1, x.ndim - 1))
    centred = x.astype(jnp.float32) - guess
    mean = centred.mean(axes)
    var = jnp.square(centred).mean(axes) - jnp.square(mean)
    return mean + guess, jnp.maximum(var, 0)


@jax.custom_vjp
def moments(x: jax.Array, guess: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean and the (biased) variance of each run of examples, in float32.

    Their gradient is one multiply-add over `x`, which XLA fuses with that of `affine`.

    Args:
      x: `[runs, examples, ..., channels]`.
      guess: float32 `[channels]`, near the mean, for precision's sake; it has no gradient.

    Returns:
      Two arrays `[runs, channels]`.
    """
    found: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        x, guess, cpu=_moments_two_passes, default=_moments_one_pass
    )
    return found


def _moments_forward(x: jax.Array, guess: jax.Array) -> tuple[Any, Any]:
    mean, var = moments(x, guess)
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
    """`[runs, channels]` with axes of 1 in between, to be broadcast over `x`."""
    return of_runs.reshape(of_runs.shape[0], *(1,) * (x.ndim - 2), of_runs.shape[-1])


def affine(x: jax.Array, factor: jax.Array, offset: jax.Array) -> jax.Array:
    """`x * factor + offset` in float32, returned in the dtype of `x`.

    Args:
      x: `[runs, examples, ..., channels]`.
      factor, offset: float32 `[runs, channels]`, or 1 for `runs`.
    """
    return (x.astype(jnp.float32) * _over(factor, x) + _over(offset, x)).astype(x.dtype)
