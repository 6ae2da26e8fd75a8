"""Each fast form against the plain XLA operation, values and gradients."""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax import lax

from xception_jax.models import ops
from xception_jax.models.ops import convolutions, normalization

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

sides = st.sampled_from((1, 2, 5, 6))
images = st.tuples(st.integers(1, 3), sides, sides, st.sampled_from((1, 3, 8)))
windows = st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from((1, 3, 5)))
strides = st.integers(1, 3)
# Every example compiles its own program; what LLVM makes of it fast is nothing of ours.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
few = settings(max_examples=20 if os.environ.get("AS_USERS") else 8, deadline=None)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def assert_equal_with_gradients(ours, plain, *arguments, seed=0):
    """Values and gradients within 1e-5 of the largest of each."""

    def both(function, cotangent, *arguments):
        value, back = jax.vjp(function, *arguments)
        return value, *back(cotangent)

    (cotangent,) = draw(seed, jax.eval_shape(plain, *arguments).shape)
    found = compiled(partial(both, ours))(cotangent, *arguments)
    expected = compiled(partial(both, plain))(cotangent, *arguments)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * (1 + np.abs(b).max()))


def plain_conv(x, kernel, *, stride=1, padding="SAME", groups=1):
    if padding == "SYMMETRIC":
        padding = [(side // 2, side // 2) for side in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS,
        feature_group_count=groups,
    )  # fmt: skip


@given(
    image=images,
    window=windows,
    stride=strides,
    relu=st.booleans(),
    padding=st.sampled_from(("SAME", "SYMMETRIC")),
)
@few
def test_depthwise_equals_grouped_convolution(image, window, stride, relu, padding):
    assume(padding == "SAME" or all(side % 2 for side in window))
    x, kernel = draw(0, image, (*window, 1, image[-1]))

    def plain(x, kernel):
        x = jax.nn.relu(x) if relu else x
        return plain_conv(x, kernel, stride=stride, padding=padding, groups=image[-1])

    ours = partial(ops.depthwise, stride=stride, relu=relu, padding=padding)
    assert_equal_with_gradients(ours, plain, x, kernel)


@given(
    image=st.tuples(st.integers(1, 3), st.integers(3, 7), st.integers(5, 8), st.integers(1, 3)),
    window=windows,
    stride=strides,
    padding=st.sampled_from(("SAME", "VALID", "SYMMETRIC")),
)
@few
def test_conv_equals_xla(image, window, stride, padding):
    assume(padding != "SYMMETRIC" or all(side % 2 for side in window))
    x, kernel = draw(0, image, (*window, image[-1], 4))
    options = {"stride": stride, "padding": padding}
    assert_equal_with_gradients(
        partial(ops.conv, **options), partial(plain_conv, **options), x, kernel
    )


@given(image=images, groups=st.integers(1, 3), sizes=st.tuples(*[st.integers(1, 3)] * 2))
@few
def test_grouped_equals_xla(image, groups, sizes):
    size_in, size_out = sizes
    x, kernel = draw(0, (*image[:3], groups * size_in), (3, 3, size_in, groups * size_out))
    assert_equal_with_gradients(
        partial(ops.grouped, groups=groups), partial(plain_conv, groups=groups), x, kernel
    )


@given(image=images, channels=st.sampled_from((1, 8)), stride=strides)
@few
def test_pointwise_equals_a_1x1_convolution(image, channels, stride):
    x, kernel = draw(0, image, (image[-1], channels))
    assert_equal_with_gradients(
        partial(ops.pointwise, stride=stride),
        lambda x, kernel: plain_conv(x, kernel[None, None], stride=stride),
        x,
        kernel,
    )


@pytest.mark.parametrize("relu", [False, True])
def test_the_tpus_separable_convolution_equals_two(relu):
    x, *kernels = draw(0, (2, 7, 6, 5), (3, 3, 1, 5), (5, 8))
    assert_equal_with_gradients(
        partial(convolutions._separable_dense, relu),
        partial(convolutions._separable_two, relu),
        x,
        *kernels,
    )


@given(
    image=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.just(3)),
    padding=st.sampled_from(("SAME", "SYMMETRIC", "VALID")),
)
@few
def test_max_pool_equals_reduce_window_with_ties(image, padding):
    assume(padding != "VALID" or min(image[1:3]) >= 3)
    x = np.random.default_rng(0).integers(-2, 2, image).astype(np.float32)
    pads = [(0, 0), (1, 1), (1, 1), (0, 0)] if padding == "SYMMETRIC" else padding

    def plain(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)

    assert_equal_with_gradients(partial(ops.max_pool, padding=padding), plain, x)


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("side", [1, 4])
def test_average_pool_equals_reduce_window(side, count_padding):
    (x,) = draw(0, (2, side, side + 1, 3))

    def plain(x):
        def total(x):
            return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")

        return total(x) / (9 if count_padding else total(jnp.ones_like(x)))

    assert_equal_with_gradients(partial(ops.average_pool, count_padding=count_padding), plain, x)


@pytest.mark.parametrize(
    "form", [normalization._moments_one_pass, normalization._moments_two_passes]
)
@given(
    runs=st.integers(1, 3), image=st.tuples(st.integers(1, 3), sides, sides, st.integers(1, 4)),
    mean=st.sampled_from((0.0, 3.0, -30.0)),
)  # fmt: skip
@few
def test_both_forms_of_moments_equal_numpy(form, runs, image, mean):
    (x,) = draw(0, (runs, *image))
    x += np.float32(mean)
    found = form(x, jnp.full(image[-1], mean + 0.5, jnp.float32))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found[0], exact.mean((1, 2, 3)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], exact.var((1, 2, 3)), rtol=1e-4, atol=2e-6)


def test_the_gradient_of_moments_and_affine():
    x, scale, bias = draw(0, (2, 3, 5, 4, 6), (6,), (6,))

    def normalized(moments):
        def form(x, scale, bias):
            mean, var = moments(x)
            factor = scale * lax.rsqrt(var + 1e-3)
            return ops.affine(x, factor, bias - mean * factor)

        return form

    def plain(x):
        mean = x.mean((1, 2, 3))
        return mean, jnp.square(x - mean[:, None, None, None]).mean((1, 2, 3))

    ours = normalized(lambda x: ops.moments(x, jnp.zeros(6)))
    assert_equal_with_gradients(ours, normalized(plain), x, scale, bias)


@pytest.mark.parametrize(
    ("operation", "kernel"),
    [
        (partial(ops.depthwise, relu=True), (3, 3, 1, 4)),
        (ops.conv, (3, 3, 4, 4)),
        (ops.pointwise, (4, 4)),
    ],
    ids=["depthwise", "conv", "pointwise"],
)
def test_bfloat16_is_kept_and_sums_are_float32(operation, kernel):
    x, kernel, g = draw(0, (16, 9, 9, 4), kernel, (16, 9, 9, 4))
    low = [jnp.asarray(a, jnp.bfloat16) for a in (x, kernel, g)]
    value, back = jax.vjp(operation, *low[:2])
    found = value, *back(low[2])
    value, back = jax.vjp(operation, *(a.astype(jnp.float32) for a in low[:2]))
    exact = value, *back(low[2].astype(jnp.float32))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.02, atol=0.06)
    # 1,296 products: a bfloat16 sum would be off by far more than the last rounding.
    np.testing.assert_allclose(found[2].astype(jnp.float32), exact[2], rtol=0.01, atol=0.3)


def lowered(function, *shapes, platform):
    arguments = [jnp.zeros(shape) for shape in shapes]
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_accelerators_get_xlas_own(platform):
    def gradient(operation):
        return jax.grad(lambda *a: operation(*a).sum(), argnums=(0, 1))

    image = (1, 9, 9, 128)
    depthwise = lowered(gradient(ops.depthwise), image, (3, 3, 1, 128), platform=platform)
    assert "feature_group_count = 128" in depthwise
    assert "while" not in depthwise
    pointwise = lowered(
        gradient(partial(ops.pointwise, stride=2)), image, (128, 8), platform=platform
    )
    assert "convolution" in pointwise
    assert "dot_general" not in pointwise
    conv = lowered(gradient(ops.conv), image, (3, 3, 128, 8), platform=platform)
    assert "while" not in conv
    pool = lowered(jax.grad(lambda x: ops.max_pool(x).sum()), image, platform=platform)
    assert "select_and_scatter" in pool


def test_narrow_separable_convolutions_are_dense_on_tpu_alone():
    shapes = (1, 9, 9, 64), (3, 3, 1, 64), (64, 128)
    texts = {p: lowered(ops.separable, *shapes, platform=p) for p in ("tpu", "cuda", "cpu")}
    assert "feature_group_count = 64" not in texts["tpu"]
    assert "feature_group_count = 64" in texts["cuda"]
    assert "convolution" not in texts["cpu"]
    wide = (1, 9, 9, 128), (3, 3, 1, 128), (128, 128)
    assert "feature_group_count = 128" in lowered(ops.separable, *wide, platform="tpu")
