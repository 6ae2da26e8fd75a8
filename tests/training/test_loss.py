"""The loss by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xception_jax.training.loss import Loss

WEIGHTS = tuple(0.5 + 0.25 * c for c in range(10))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_by_hand(smoothing, weights):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 10)), rng.integers(0, 10, 6)
    targets = np.full((6, 10), smoothing / 10)
    targets[np.arange(6), labels] += 1 - smoothing
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(targets * (weights or np.ones(10)) * log_softmax).sum(1)
    loss = Loss("softmax", smoothing, weights)
    found = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    one_hot = np.eye(10, dtype=np.uint8)[labels]
    soft = loss(jnp.asarray(logits, jnp.float32), jnp.asarray(one_hot))
    np.testing.assert_allclose(soft, expected, rtol=1e-5, err_msg="the same as a distribution")


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_by_hand(smoothing, weights):
    """Summed over the classes; with weights on both terms, as PyTorch's `weight`."""
    rng = np.random.default_rng(0)
    logits, multi_hot = 3 * rng.standard_normal((6, 10)), rng.random((6, 10)) < 0.3
    probability = 1 / (1 + np.exp(-logits))
    targets = multi_hot * (1 - smoothing) + smoothing / 10
    terms = targets * np.log(probability) + (1 - targets) * np.log(1 - probability)
    expected = -(terms * (weights or np.ones(10))).sum(1)
    loss = Loss("sigmoid", smoothing, weights)
    logits = jnp.asarray(logits, jnp.float32)
    np.testing.assert_allclose(loss(logits, jnp.asarray(multi_hot)), expected, rtol=1e-5)
    labels = jnp.arange(6)
    one_hot = jax.nn.one_hot(labels, 10)
    np.testing.assert_array_equal(loss(logits, labels), loss(logits, one_hot))
