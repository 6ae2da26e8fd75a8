"""Slices by their names."""

import pytest

from launch import slices as rented
from xception_jax.errors import UsageError
from xception_jax.planning.tpu import chips
from xception_jax.utils import slices


@pytest.mark.parametrize(
    ("name", "shape", "count", "devices"),
    [
        ("v5litepod-16", "v5e:4x4", 16, 16),
        ("v5e-256", "v5e:16x16", 256, 256),
        ("v6e-8", "v6e:2x4", 8, 8),
        ("V6E:4x4", "v6e:4x4", 16, 16),
        # The number counts TensorCores, two per chip; both are one device, except on TPU7x.
        ("v5p-8", "v5p:2x2x1", 4, 4),
        ("v4-8", "v4:2x2x1", 4, 4),
        ("v4-128", "v4:4x4x4", 64, 64),
        ("tpu7x-8", "tpu7x:2x2x1", 4, 8),
        ("v5p:4x4x12", "v5p:4x4x12", 192, 192),
        ("tpu7x-2", "tpu7x:1x1x1", 1, 2),
        ("tpu7x-16384", "tpu7x:16x16x32", 8192, 16384),
    ],
)
def test_common_names_and_shapes_name_the_same(name, shape, count, devices):
    found = chips.parse(name)
    assert (found.name, found.chips, found.devices) == (shape, count, devices)


def test_every_name_that_is_offered_is_taken():
    for name in slices.names():
        assert chips.parse(name).name in slices.names()


def test_plan_and_the_launchers_know_the_same_slices():
    for name in [*slices.names(), "v5p:4x4x12", "tpu7x:4x4x8"]:
        assert str(rented.parse(name)) == chips.parse(name).name
        assert rented.parse(name).hosts * rented.parse(name).chips_per_host == (
            chips.parse(name).chips
        )
    assert set(rented.GENERATIONS) == set(chips.CHIPS) == set(slices.KINDS)


def test_the_slice_that_devices_are_of():
    assert chips.like("TPU v5 lite", 16) == "v5e:4x4"
    assert chips.like("TPU7x", 8) == "tpu7x:2x2x1"
    assert chips.like("TPU v4", 6) == chips.like("NVIDIA H200", 8) == "SLICE"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("v5e:4x5", "did you mean 'v5e:4x8'"),
        ("v5litepod-17", "did you mean 'v5litepod-16'"),
        ("v5p-6", "did you mean 'v5p-8'"),
        ("v6:4x4", "did you mean 'v6e:4x4'"),
        ("v9", "it takes KIND:SHAPE such as v5e:4x4"),
        ("v5p:3x4x4", "v5p comes as 2x2x1"),
        ("v5p:8x4x4", "v5p comes as 2x2x1"),
    ],
)
def test_an_unknown_slice_is_told_the_nearest(name, hint):
    with pytest.raises(UsageError, match="no TPU slice") as error:
        chips.parse(name)
    assert hint in str(error.value)


def test_rates_of_a_device_are_its_share_of_the_chip():
    whole, half = chips.CHIPS["v5p"], chips.CHIPS["tpu7x"]
    assert whole.peak_rate == 459e12
    assert half.peak_rate == 2307e12 / 2
    assert half.memory_rate == 7380e9 / 2
    # 819 bytes take a nanosecond on v5e, 1.5 cycles.
    assert chips.CHIPS["v5e"].memory_cycles(819) == pytest.approx(1.5)


@pytest.mark.parametrize("kind", chips.CHIPS)
def test_the_clock_times_the_operations_of_a_cycle_is_the_peak(kind):
    chip = chips.CHIPS[kind]
    operations = {"v4": 2**18, "v5e": 2**17, "v5p": 2**18, "v6e": 2**19, "tpu7x": 2**19}[kind]
    assert chip.ghz * 1e9 * operations == pytest.approx(chip.peak_rate, rel=0.005)
