"""The Inception hypothesis: the strict equivalence, the ends of the spectrum, worked shapes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from xception_jax import models
from xception_jax.errors import UsageError
from xception_jax.models import counts, inception_modules, ops
from xception_jax.models.layers import (
    ACTIVATIONS,
    Layers,
    SegmentedConv,
    SeparableConv,
    segment_sizes,
)

# To be built once only, unoptimized programs are quicker.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def layers() -> Layers:
    return Layers(nnx.Rngs(0), jnp.float32, 1e-3, 0.99, None)


def images(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def plain_conv(x, kernel, groups=1):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


@given(channels=st.integers(1, 300), segments=st.integers(1, 400))
def test_segments_share_the_channels_evenly(channels, segments):
    sizes = segment_sizes(channels, segments)
    assert sum(sizes) == channels
    assert len(sizes) == min(segments, channels)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(
    channels_in=st.integers(1, 4), channels=st.integers(1, 7), towers=st.integers(1, 8),
    activation=st.sampled_from(sorted(ACTIVATIONS)), seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(max_examples=5, deadline=None)  # every example compiles its own program
def test_the_grouped_form_is_strictly_equivalent(channels_in, channels, towers, activation, seed):
    def both(x):
        simplified = inception_modules.Simplified(
            channels_in, channels, towers, activation=activation, rngs=nnx.Rngs(seed)
        )
        regrouped = simplified.regrouped()
        assert counts.parameters(regrouped) == counts.parameters(simplified)
        return simplified(x), regrouped(x)

    expected, found = compiled(both)(images(2, 5, 4, channels_in))
    assert found.shape == (2, 5, 4, channels)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_segments_by_hand():
    """Seven channels in three segments of 3, 2 and 2; each sees its own channels only."""
    x = images(1, 4, 5, 7)
    conv = SegmentedConv(7, 3, rngs=nnx.Rngs(0))
    first, rest = (np.asarray(part.kernel[...]) for part in conv.parts)
    kernels = [first, rest[..., :2], rest[..., 2:]]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected, start = np.zeros_like(x), 0
    for kernel in kernels:
        end = start + kernel.shape[2]
        for row, column in np.ndindex(4, 5):
            seen = padded[0, row : row + 3, column : column + 3, start:end]
            expected[0, row, column, start:end] = np.einsum("ijc,ijco->o", seen, kernel)
        start = end
    np.testing.assert_allclose(conv(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("order", "activation"),
    [("spatial_first", "elu"), ("pointwise_first", "none")],
)
def test_one_segment_is_a_regular_convolution_and_as_many_as_channels_a_depthwise_one(
    order, activation
):
    def both(x, segments):
        module = SeparableConv(
            6, 6, segments=segments, order=order, activation=activation, rngs=nnx.Rngs(0)
        )
        [kernel] = jax.tree.leaves(nnx.state(module.depthwise))
        groups = 6 // kernel.shape[2]
        steps = [
            lambda x: plain_conv(x, kernel, groups),
            lambda x: x @ module.pointwise.kernel[...],
        ]
        first, second = steps if order == "spatial_first" else reversed(steps)
        plain = second(ACTIVATIONS[activation](first(jnp.maximum(x, 0))))
        return groups, module(x, relu=True), plain

    x = images(2, 5, 4, 6)
    for segments, expected_groups in ((1, 1), (None, 6), (100, 6)):
        groups, found, expected = compiled(partial(both, segments=segments))(x)
        assert groups == expected_groups
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (lambda: inception_modules.naive(8, (4, 6, 2), layers()), 4 + 6 + 2 + 8),
        (lambda: inception_modules.canonical(8, (4, 6, 3, 2), (5, 3), layers()), 15),
        (lambda: inception_modules.Simplified(8, 12, 3, rngs=nnx.Rngs(0)), 12),
        (lambda: inception_modules.grouped(8, 12, 4, rngs=nnx.Rngs(0)), 12),
        (lambda: inception_modules.extreme(8, 12, rngs=nnx.Rngs(0)), 12),
    ],
    ids=["naive", "canonical", "simplified", "grouped", "extreme"],
)
def test_modules_keep_the_image_and_concatenate_channels(module, channels):
    shape = nnx.eval_shape(lambda: module()(jnp.zeros((2, 7, 5, 8)))).shape
    assert shape == (2, 7, 5, channels)


def test_the_canonical_module_has_two_3x3_for_a_5x5():
    module = nnx.eval_shape(lambda: inception_modules.canonical(8, (4, 6, 3, 2), (5, 3), layers()))
    sizes = {8 * 4, 8 * 5, 9 * 5 * 6, 8 * 3, 9 * 3 * 3, 8 * 2}
    kernels = [p.size for path, p in nnx.to_flat_state(nnx.state(module)) if path[-1] == "kernel"]
    assert sorted(kernels) == sorted([*sizes, 9 * 3 * 3])


def test_worked_shapes():
    """5x5x5 by depthwise 3x3, VALID: 3x3x5; 50 pointwise filters on 8x8x5; ten 5x5 on 10x10x100."""
    depthwise = jax.eval_shape(
        lambda x, k: ops.depthwise(x, k, padding="VALID"), jnp.zeros((1, 5, 5, 5)),
        jnp.zeros((3, 3, 1, 5)),
    )  # fmt: skip
    assert depthwise.shape == (1, 3, 3, 5)
    pointwise = nnx.eval_shape(lambda: layers().pointwise(5, 50)(jnp.zeros((1, 8, 8, 5))))
    assert pointwise.shape == (1, 8, 8, 50)
    dense = nnx.eval_shape(lambda: layers().conv(100, 10, 5))
    assert dense.kernel.shape == (5, 5, 100, 10)
    ten = nnx.eval_shape(lambda conv, x: conv(x), dense, jnp.zeros((1, 10, 10, 100)))
    assert ten.shape == (1, 6, 6, 10)


def parameters(**overrides) -> int:
    model = nnx.eval_shape(
        lambda: models.create("xception", num_classes=10, rngs=nnx.Rngs(0), **overrides)
    )
    return counts.parameters(model)


def test_every_point_of_the_spectrum_is_an_xception():
    small = {"width": 0.25, "middle_blocks": 0}
    points = [parameters(segments=n, **small) for n in (1, 3, 10_000)]
    assert points == sorted(points, reverse=True)
    assert len(set(points)) == len(points)
    assert points[-1] == parameters(**small)
    assert parameters(order="pointwise_first", **small) > parameters(**small)  # wider 3x3
    # Figure 9's network lacks the four projections and their batch normalization.
    skips = [(16, 32), (32, 64), (64, 184), (184, 256)]
    lost = sum(before * after + 2 * after for before, after in skips)
    assert parameters(residual=False, **small) == parameters(**small) - lost


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"order": "spatial_frist"}, "order is 'spatial_frist'; did you mean 'spatial_first'?"),
        ({"intermediate_activation": "elo"}, "did you mean 'elu'"),
        ({"pool_padding": "valid"}, "It takes: same, symmetric"),
    ],
)
def test_unknown_choices_are_refused(override, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        parameters(**override)
