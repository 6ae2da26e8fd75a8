"""Mixup and CutMix against numpy with the weights that were drawn."""

import jax
import numpy as np
import pytest
import scipy.stats

from xception_jax.augment import mixing

RNG = np.random.default_rng(0)
PAIRS, HEIGHT, WIDTH = 200, 9, 12
IMAGES = RNG.integers(0, 256, (2 * PAIRS, HEIGHT, WIDTH, 3), np.uint8)
TARGETS = RNG.integers(0, 2, (2 * PAIRS, 5)).astype(np.float32)  # multi-hot
KEYS = jax.random.split(jax.random.key(0), 2 * PAIRS)


@pytest.fixture(scope="module", params=[(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)], ids=str)
def mixed(request):
    """The alphas, the weights that were drawn, and what was made with them."""
    mixup, cutmix = request.param

    @jax.jit
    def run(keys, images, targets):
        draw = jax.vmap(lambda key: mixing.weights(key, HEIGHT, WIDTH, mixup, cutmix))
        return draw(keys[::2]), mixing.mix(keys, images, targets, mixup=mixup, cutmix=cutmix)

    weights, made = jax.device_get(run(KEYS, IMAGES, TARGETS))
    return request.param, weights, made


def test_both_of_a_pair_have_the_same_weights(mixed):
    _, (pixels, share), (images, targets) = mixed
    for k in range(PAIRS):
        for own, other in ((2 * k, 2 * k + 1), (2 * k + 1, 2 * k)):
            weight = pixels[k][..., None].astype(np.float64)
            image = weight * IMAGES[own] + (1 - weight) * IMAGES[other]
            # To within the rounding, and that of float32 where it decides which way.
            np.testing.assert_allclose(images[own], image, atol=0.5 + 1e-4)
            target = share[k] * TARGETS[own] + (1 - share[k]) * TARGETS[other]
            np.testing.assert_allclose(targets[own], target, atol=1e-6)


def test_targets_are_mixed_as_the_pixels_are(mixed):
    _, (pixels, share), _ = mixed
    np.testing.assert_allclose(share, pixels.mean((1, 2)), atol=1e-6)


def test_cutmix_exchanges_rectangles_and_mixup_everything(mixed):
    (mixup, cutmix), (pixels, _), (images, _) = mixed
    even = np.ptp(pixels, (1, 2)) == 0
    if not cutmix:
        assert even.all()
        return
    sharp = np.isin(pixels, (0, 1)).all((1, 2))
    assert (sharp | even).all()
    assert sharp.all() == (not mixup)
    assert 60 < sharp.sum() < 140 or not mixup, "half of the pairs each"
    for k in np.flatnonzero(sharp):
        inside = pixels[k] == 0
        rows, columns = inside.any(1), inside.any(0)
        np.testing.assert_array_equal(inside, np.outer(rows, columns))
        for line in (rows, columns):
            assert np.count_nonzero(np.diff(np.r_[0, line, 0])) <= 2, "in one piece"
        np.testing.assert_array_equal(images[2 * k][inside], IMAGES[2 * k + 1][inside])
        np.testing.assert_array_equal(images[2 * k][~inside], IMAGES[2 * k][~inside])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 100.0])
def test_shares_are_beta_distributed(alpha):
    uniform = np.linspace(0, 1, 10_001, dtype=np.float32)[:-1]
    shares = np.asarray(mixing.beta(uniform, alpha), np.float64)
    for share in (1e-3, 0.1, 0.3, 0.48, 0.52, 0.9, 1 - 1e-3):
        expected = scipy.stats.beta(alpha, alpha).cdf(share)
        assert np.mean(shares < share) == pytest.approx(expected, abs=1e-3)


def test_a_rectangle_has_the_area_drawn_unless_it_is_cut_off():
    # In the middle of the image nothing reaches beyond the edge.
    pixels = mixing._outside(np.float32([0.5, 0.5]), np.float32(0.75), 8, 12)
    assert np.asarray(pixels).mean() == 0.75
    corner = mixing._outside(np.float32([0.0, 0.0]), np.float32(0.75), 8, 12)
    assert np.asarray(corner).mean() == 1 - 0.25 / 4


def test_an_odd_batch_is_refused():
    with pytest.raises(ValueError, match="a batch of 3 has an example without a partner"):
        mixing.mix(KEYS[:3], IMAGES[:3], TARGETS[:3], mixup=1.0, cutmix=0.0)
