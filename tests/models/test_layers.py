"""Batch normalization against numpy by hand and Flax' own; the convolutions' paddings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from xception_jax.models import ops
from xception_jax.models.layers import BatchNorm, Conv, Depthwise, Pointwise, SeparableConv


def images(*shape, mean=0.0):
    return np.random.default_rng(0).standard_normal(shape, np.float32) + np.float32(mean)


def test_batch_norm_over_the_whole_batch_equals_flax():
    x = images(8, 5, 5, 3, mean=2.0)
    ours = BatchNorm(3)
    flax = nnx.BatchNorm(
        3, momentum=0.99, epsilon=1e-3, use_running_average=False, rngs=nnx.Rngs(0)
    )
    np.testing.assert_allclose(ours(x, train=True), flax(x), rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(ours.mean[...], flax.mean[...], rtol=1e-6)
    np.testing.assert_allclose(ours.var[...], flax.var[...], rtol=1e-6)
    np.testing.assert_allclose(
        ours(x), flax(x, use_running_average=True), atol=1e-6, err_msg="inference"
    )


def test_virtual_batches_are_normalized_each_by_itself():
    x = images(12, 4, 4, 3)
    layer = BatchNorm(3, virtual_batch=4, momentum=0.9)
    y = layer(x, train=True)
    runs = x.reshape(3, 4, 4, 4, 3).astype(np.float64)
    mean, var = runs.mean((1, 2, 3)), runs.var((1, 2, 3))
    expected = (runs - mean[:, None, None, None]) / np.sqrt(var[:, None, None, None] + 1e-3)
    np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)
    np.testing.assert_allclose(layer.mean[...], 0.1 * mean.mean(0), rtol=1e-4)
    np.testing.assert_allclose(layer.var[...], 0.9 + 0.1 * var.mean(0), rtol=1e-5)


def test_virtual_batches_must_divide_the_batch():
    with pytest.raises(ValueError, match="10 is not divisible into virtual batches of 4"):
        BatchNorm(3, virtual_batch=4)(images(10, 2, 2, 3), train=True)


def test_variance_keeps_its_precision_far_from_zero():
    """Once the running mean knows where the data is, 1e5 deviations away do no harm."""
    x = images(64, 4, 4, 1, mean=1e5)
    layer = BatchNorm(1)
    layer.mean[...] = jnp.full(1, 1e5 + 3.0)
    y = np.asarray(layer(x, train=True))
    assert abs(y.std() - 1) < 1e-2
    assert abs(y.mean()) < 1e-2


def test_statistics_are_float32_in_bfloat16():
    x = jnp.asarray(images(8, 4, 4, 3, mean=5.0), jnp.bfloat16)
    layer = BatchNorm(3)
    assert layer(x, train=True).dtype == jnp.bfloat16
    assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(layer.mean[...], 0.01 * exact.mean((0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("virtual_batch", [None, 2])
@pytest.mark.parametrize("train", [True, False])
def test_max_pooled_equals_pooling_afterwards_whatever_the_scales_sign(virtual_batch, train):
    x, cotangent = images(4, 7, 6, 3, mean=1.0), images(4, 4, 3, 3)

    def run(x, scale, *, pooled_first):
        layer = BatchNorm(3, virtual_batch=virtual_batch)
        layer.scale[...], layer.bias[...] = scale, jnp.array([0.5, -1.0, 2.0])
        layer.mean[...], layer.var[...] = jnp.array([0.9, -2.0, 0.0]), jnp.array([1.0, 2.0, 0.5])
        y = (
            layer.max_pooled(x, train=train)
            if pooled_first
            else ops.max_pool(layer(x, train=train))
        )
        return (y * cotangent).sum(), (y, layer.mean[...], layer.var[...])

    found, expected = (
        jax.jit(jax.grad(partial(run, pooled_first=first), argnums=(0, 1), has_aux=True))(
            x, jnp.array([-1.0, 2.0, -0.5])
        )
        for first in (True, False)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_batch_norm_gradient_equals_flax():
    x, weight = images(6, 3, 3, 4), images(6, 3, 3, 4)
    ours, flax = BatchNorm(4), nnx.BatchNorm(4, epsilon=1e-3, rngs=nnx.Rngs(0))
    gradients = [
        nnx.grad(lambda layer, x: (layer(x, **kwargs) * weight).sum(), argnums=(0, 1))(layer, x)  # noqa: B023
        for layer, kwargs in ((ours, {"train": True}), (flax, {}))
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda rngs: Conv(3, 32, 3, stride=2, padding="VALID", rngs=rngs), (1, 149, 149, 32)),
        (lambda rngs: Pointwise(3, 50, rngs=rngs), (1, 299, 299, 50)),
        (lambda rngs: Pointwise(3, 50, stride=2, rngs=rngs), (1, 150, 150, 50)),
        (lambda rngs: Depthwise(3, rngs=rngs), (1, 299, 299, 3)),
        (lambda rngs: SeparableConv(3, 8, rngs=rngs), (1, 299, 299, 8)),
    ],
)
def test_output_shapes(layer, shape):
    module = nnx.eval_shape(lambda: layer(nnx.Rngs(0)))
    out = nnx.eval_shape(lambda m: m(jnp.zeros((1, 299, 299, 3))), module)
    assert out.shape == shape


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_strided_projection_is_a_same_convolution(size):
    layer = Pointwise(3, 4, stride=2, rngs=nnx.Rngs(0))
    x = images(2, *size, 3)
    expected = jax.lax.conv_general_dilated(
        x,
        layer.kernel[...][None, None],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(layer(x), expected, atol=1e-6)


def test_separable_convolution_is_depthwise_then_pointwise_with_nothing_between():
    layer = SeparableConv(4, 6, rngs=nnx.Rngs(0))
    x = images(2, 5, 5, 4)
    # The product of the two kernels is one dense kernel: only so if nothing comes between.
    dense = layer.depthwise.kernel[...].swapaxes(2, 3) * layer.pointwise.kernel[...]
    expected = jax.lax.conv_general_dilated(
        x, dense, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
