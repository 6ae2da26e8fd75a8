"""No flipped bit goes unnoticed, and sharding changes nothing."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from xception_jax.training import sharding
from xception_jax.training.digest import digests

WORDS = np.random.default_rng(0).standard_normal((8, 5, 3), np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=30, deadline=None)
def test_every_flipped_bit_shows(dtype, data):
    array = np.asarray(jnp.asarray(WORDS * 40).astype(dtype))
    raw = array.copy().view(np.uint8)
    byte = data.draw(st.integers(0, raw.size - 1))
    raw.reshape(-1)[byte] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    damaged = raw.view(array.dtype).reshape(array.shape)
    assert digests({"a": jnp.asarray(array)})[0] != digests({"a": jnp.asarray(damaged)})[0]


def test_exchanged_elements_show():
    exchanged = WORDS.copy()
    exchanged[0, 0, 0], exchanged[7, 4, 2] = WORDS[7, 4, 2], WORDS[0, 0, 0]
    assert digests(jnp.asarray(WORDS))[0] != digests(jnp.asarray(exchanged))[0]


def test_by_hand():
    """The sum of the words, each times an odd number that grows with its position."""
    weights = 2 * np.arange(WORDS.size, dtype=np.uint64) + 1
    expected = int((WORDS.view(np.uint32).reshape(-1) * weights).sum() % 2**32)
    assert digests({"a": {"b": jnp.asarray(WORDS)}})[0] == {"a.b": expected}


def test_sharding_changes_nothing():
    cut = jax.device_put(WORDS, sharding.by_example(sharding.make_mesh(8)))
    assert digests({"a": cut}) == digests({"a": jnp.asarray(WORDS)})


def test_names_what_is_not_finite():
    tree = {"good": jnp.ones(3), "bad": jnp.asarray([1.0, jnp.inf]), "count": jnp.arange(3)}
    assert digests(tree)[1] == ["bad"]
