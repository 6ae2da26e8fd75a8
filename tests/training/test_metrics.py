"""The loss and the ranks by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from xception_jax.training import metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(smoothing):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 10)), rng.integers(0, 10, 6)
    targets = np.full((6, 10), smoothing / 10)
    targets[np.arange(6), labels] += 1 - smoothing
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(targets * log_softmax).sum(1)
    found = metrics.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 5])
def test_in_top_agrees_with_sorting(k):
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 6, (200, 20)).astype(np.float32)  # many ties
    labels = rng.integers(0, 20, 200)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (best == labels[:, None]).any(1)
    found = metrics.in_top(k, jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_array_equal(found, expected)


def test_a_model_that_diverged_is_never_right():
    logits = jnp.asarray([[jnp.nan] * 3, [0.0, jnp.nan, 1.0], [1.0, jnp.inf, 0.0]])
    found = metrics.in_top(5, logits, jnp.asarray([0, 2, 1]))
    np.testing.assert_array_equal(found, [0, 0, 0])


def test_few_classes_are_all_in_the_top_five():
    logits = jnp.asarray([[0.3, 0.1, 0.2]])
    np.testing.assert_array_equal(metrics.in_top(5, logits, jnp.asarray([1])), [1])
