"""What is known of data that is not there."""

import pytest

from xception_jax.errors import UsageError
from xception_jax.planning import data as data_lib
from xception_jax.training.build import DataSpec


def test_of_imagenet_all_is_known_without_it(small_config):
    small_config.data.dataset, small_config.data.eval_split = "imagenet2012", "validation"
    assert data_lib.find_spec(small_config) == DataSpec(1000, False, 1_281_167, 50_000)
    small_config.data.train_split = "train[:10%]"
    assert data_lib.find_spec(small_config).examples == 128_117
    small_config.data.train_split = "trian"
    with pytest.raises(UsageError, match="no split 'trian'; it has: train, validation"):
        data_lib.find_spec(small_config)


def test_what_is_there_is_counted_and_what_is_said_counts(small_config):
    assert data_lib.find_spec(small_config) == DataSpec(10, False, 1437, 360)
    assert data_lib.find_spec(small_config, examples=5, eval_examples=6) == DataSpec(
        10, False, 5, 6
    )


def test_the_sizes_of_a_known_set_count_beside_a_number_of_classes(small_config):
    assert data_lib.find_spec(small_config, classes=10, examples=5) == DataSpec(10, False, 5, 360)
    assert data_lib.find_spec(small_config, classes=11, examples=5) == DataSpec(11, False, 5, None)


def test_sets_that_are_mixed_count_together(small_config):
    small_config.data.mix = ("optical_digits",)
    small_config.data.mix_splits = ("test",)
    assert data_lib.find_spec(small_config) == DataSpec(10, False, 1437 + 360, 360)


def test_of_a_set_of_unknown_size_the_classes_are_known(small_config):
    small_config.data.dataset = "cifar10"
    assert data_lib.find_spec(small_config) == DataSpec(10, False, None, None)


def test_of_an_unknown_set_it_asks_for_the_numbers(small_config):
    small_config.data.dataset = "no_such_set"
    with pytest.raises(UsageError, match=r"no data set 'no_such_set'.*--classes"):
        data_lib.find_spec(small_config)
    assert data_lib.find_spec(small_config, classes=7, examples=9) == DataSpec(7, False, 9, None)
