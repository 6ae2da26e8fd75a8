"""TPU slices by name and by shape."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import slices
from xception_jax.errors import UsageError
from xception_jax.utils import slices as tables


@pytest.mark.parametrize(
    ("name", "topology", "chips", "hosts", "machine", "accelerator_type"),
    [  # as the pages of docs.cloud.google.com/tpu/docs on each version have them
        ("v4-8", "2x2x1", 4, 1, "ct4p-hightpu-4t", "v4-8"),
        ("v4-32", "2x2x4", 16, 4, "ct4p-hightpu-4t", "v4-32"),
        ("v4-128", "4x4x4", 64, 16, "ct4p-hightpu-4t", "v4-128"),
        ("v4-512", "4x8x8", 256, 64, "ct4p-hightpu-4t", "v4-512"),
        ("v5litepod-1", "1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5e-8", "2x4", 8, 1, "ct5lp-hightpu-8t", "v5litepod-8"),
        ("v5litepod-16", "4x4", 16, 4, "ct5lp-hightpu-4t", "v5litepod-16"),
        ("v5e:16x16", "16x16", 256, 64, "ct5lp-hightpu-4t", "v5litepod-256"),
        ("v5p-8", "2x2x1", 4, 1, "ct5p-hightpu-4t", "v5p-8"),
        ("v5p-1024", "8x8x8", 512, 128, "ct5p-hightpu-4t", "v5p-1024"),
        ("v6e-4", "2x2", 4, 1, "ct6e-standard-4t", "v6e-4"),
        ("v6e-256", "16x16", 256, 64, "ct6e-standard-4t", "v6e-256"),
        ("tpu7x-8", "2x2x1", 4, 1, "tpu7x-standard-4t", "tpu7x-8"),
        ("tpu7x:1x1x1", "1x1x1", 1, 1, "tpu7x-standard-1t", "tpu7x-2"),
        ("tpu7x:4x4x8", "4x4x8", 128, 32, "tpu7x-standard-4t", "tpu7x-256"),
    ],
)
def test_slices_by_name(name, topology, chips, hosts, machine, accelerator_type):
    found = slices.parse(name)
    assert (found.topology, found.chips, found.hosts) == (topology, chips, hosts)
    assert (found.machine_type, found.accelerator_type) == (machine, accelerator_type)
    assert found.is_default_shape


@given(st.sampled_from(sorted(slices.GENERATIONS)), st.lists(st.integers(0, 40), max_size=4))
def test_every_shape_is_refused_or_makes_whole_hosts(generation, sides):
    name = f"{generation}:{'x'.join(map(str, sides))}"
    try:
        found = slices.parse(name)
    except UsageError:
        return
    assert str(found) == name
    assert found.hosts * found.chips_per_host == found.chips <= tables.KINDS[generation].largest
    named = slices.parse(found.accelerator_type) if found.is_default_shape else None
    assert named in (None, found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7-8", "no TPU slice 'v7-8'; did you mean"),
        ("v5lite-16", "did you mean 'v5litepod-"),
        ("v5e-12", "v5e- counts chips: 1, 4, 8, 16"),
        ("v4-7", "did you mean 'v4-8'? v4- counts cores, two a chip: 8, 16"),
        ("v5e:4x2", "no TPU slice 'v5e:4x2'; did you mean 'v5e:2x4'?"),
        ("v5p:4x4x2", "no TPU slice 'v5p:4x4x2'; did you mean 'v5p:2x4x4'?"),
    ],
)
def test_slices_that_are_not_there(name, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        slices.parse(name)
