"""On-device augmentation against numpy by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from xception_jax.data import augment
from xception_jax.training import sharding

IMAGES = np.random.default_rng(0).integers(1, 255, (64, 6, 6, 3), np.uint8)


def test_normalize_is_the_papers_range():
    pixels = jnp.asarray([[0, 255]], jnp.uint8)
    np.testing.assert_allclose(augment.normalize(pixels), [[-1, 1]])


def test_flip_mirrors_about_half_and_leaves_the_rest():
    flipped = np.asarray(augment.augment(jax.random.key(0), IMAGES, flip=True, shift=0))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all((1, 2, 3))
    same = (flipped == IMAGES).all((1, 2, 3))
    assert (mirrored ^ same).all()
    assert 20 < mirrored.sum() < 44


def test_shift_moves_by_at_most_its_pixels_and_brings_in_black():
    shifted = np.asarray(augment.augment(jax.random.key(0), IMAGES, flip=False, shift=2))
    padded = np.pad(IMAGES, ((0, 0), (2, 2), (2, 2), (0, 0)))
    moves = set()
    for i in range(len(IMAGES)):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if np.array_equal(padded[i, row : row + 6, column : column + 6], shifted[i])
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) > 15, "all directions occur"


def test_nothing_depends_on_the_devices():
    mesh = sharding.make_mesh(8)
    jitted = jax.jit(
        lambda key, x: augment.augment(key, x, flip=True, shift=1),
        in_shardings=(None, sharding.by_example(mesh)),
    )
    alone = augment.augment(jax.random.key(1), IMAGES, flip=True, shift=1)
    np.testing.assert_array_equal(jitted(jax.random.key(1), IMAGES), alone)
