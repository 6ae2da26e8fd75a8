"""Each fast form against the plain XLA operation or numpy, values and gradients."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax

from xception_jax.models import ops

sizes = st.sampled_from((1, 2, 5, 6))


def plain_depthwise(x, kernel):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def value_and_gradients(function, x, kernel, cotangent):
    value, back = jax.vjp(function, x, kernel)
    return value, *back(cotangent)


@hypothesis.given(
    batch=st.integers(1, 3),
    height=sizes,
    width=sizes,
    channels=sizes,
    side=st.sampled_from((1, 3, 5)),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_depthwise_equals_grouped_convolution(batch, height, width, channels, side):
    rng = np.random.default_rng(batch * height + width)
    x, cotangent = rng.standard_normal((2, batch, height, width, channels), np.float32)
    kernel = rng.standard_normal((side, side, 1, channels), np.float32)
    ours = value_and_gradients(ops.depthwise, x, kernel, cotangent)
    plain = value_and_gradients(plain_depthwise, x, kernel, cotangent)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_depthwise_keeps_bfloat16_and_sums_gradients_in_float32():
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, 16, 9, 9, 4), np.float32)
    kernel = rng.standard_normal((3, 3, 1, 4), np.float32)
    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, cotangent)]
    ours = value_and_gradients(ops.depthwise, *low)
    exact = value_and_gradients(plain_depthwise, *(a.astype(jnp.float32) for a in low))
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.02, atol=0.06)
    # 1,296 products a tap: a bfloat16 sum would be off by far more than the last rounding.
    np.testing.assert_allclose(ours[2].astype(jnp.float32), exact[2], rtol=0.01, atol=0.3)


def test_depthwise_takes_each_platforms_form():
    x, kernel = jnp.zeros((1, 4, 4, 8)), jnp.zeros((3, 3, 1, 8))
    lowered = {
        platform: jax.jit(ops.depthwise)
        .trace(x, kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert "convolution" not in lowered["cpu"]
    assert "feature_group_count = 8" in lowered["tpu"]
    assert "feature_group_count = 8" in lowered["cuda"]


def test_pointwise_is_a_1x1_convolution():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 5), np.float32)
    kernel = rng.standard_normal((5, 50), np.float32)
    expected = np.einsum("bhwi,io->bhwo", x, kernel)
    assert expected.shape == (2, 8, 8, 50)
    np.testing.assert_allclose(ops.pointwise(x, kernel), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 3), (6, 7), (37, 74)])
def test_max_pool_by_hand(height, width):
    x = np.random.default_rng(0).standard_normal((2, height, width, 3), np.float32)
    out_height, out_width = -(-height // 2), -(-width // 2)
    # SAME pads what is missing, the odd pixel below and right.
    top = max((out_height - 1) * 2 + 3 - height, 0) // 2
    left = max((out_width - 1) * 2 + 3 - width, 0) // 2
    expected = np.empty((2, out_height, out_width, 3), np.float32)
    for i in range(out_height):
        for j in range(out_width):
            rows = slice(max(2 * i - top, 0), 2 * i - top + 3)
            columns = slice(max(2 * j - left, 0), 2 * j - left + 3)
            expected[:, i, j] = x[:, rows, columns].max((1, 2))
    np.testing.assert_array_equal(ops.max_pool(x), expected)
