"""The commands that measure digests and images, on little."""

import jax
import jax.numpy as jnp

from benchmarks import digest, images


def test_a_digest_reads_each_array_once():
    leaf = jax.ShapeDtypeStruct((64, 3, 100), jnp.float32)
    size = 4 * 64 * 3 * 100
    moved = {name: digest.bytes_moved(made, [leaf]) for name, made in digest.PROGRAMS.items()}
    assert size <= moved["digest 2"] < 1.01 * size < moved["digest 1"]
    assert len(jax.tree.leaves(digest.shapes_of_state(0.1))) > 400


def test_what_an_image_takes_is_measured_and_counted():
    row = images.costs("BMP", 2)
    assert 0 < float(row["bytes_a_pixel"]) < float(row["counted"]) == 6.3
    assert (row["format"], row["most_megapixels"]) == ("BMP", "134")
    assert float(row["cpu_ns_a_pixel"]) > 0
