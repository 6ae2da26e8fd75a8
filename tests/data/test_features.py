"""Batches of features: which rows they have, and a file of features that is used only if whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from xception_jax.data.batches import HostShard
from xception_jax.data.features import FeatureFile, FeatureReader, in_memory, size_of
from xception_jax.data.order import Sampling
from xception_jax.data.render.decode import Images
from xception_jax.errors import RunError

COUNT = 360  # of the test images of the digits


def reader_of(digits, rows: int, draws: int = 1, sampling: Sampling | None = None) -> FeatureReader:
    """A reader whose features are the numbers of their rows."""
    columns = {
        "features": np.arange(rows),
        "label": np.arange(rows, dtype=np.int32) % COUNT,
        "mask": np.ones(rows, np.float32),
    }
    return FeatureReader(
        digits["test"], Images(8), sampling=sampling or Sampling(), columns=columns, draws=draws
    )


def taken(reader: FeatureReader, steps: int, **options) -> list[dict]:
    batches = reader.training_batches(batch_size=40, seed=5, **options)
    return [next(batches) for _ in range(steps)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(balanced=True)])
def test_an_epoch_takes_its_draw_of_the_records_in_the_order_of_the_run(digits, sampling):
    reader = reader_of(digits, 3 * COUNT, 3, sampling)
    order = reader.order(5, 40)
    batches = taken(reader, 36)  # four epochs
    features = np.concatenate([batch["features"] for batch in batches])
    assert [row % COUNT for row in features] == [order[place] for place in range(4 * COUNT)]
    assert [*features // COUNT] == [draw for draw in (0, 1, 2, 0) for _ in range(COUNT)]
    assert all((batch["label"] == batch["features"] % COUNT).all() for batch in batches)


def test_it_begins_at_any_step_and_processes_share_a_batch(digits):
    reader = reader_of(digits, 2 * COUNT, 2)
    expected = taken(reader, 12)[11]
    shards = [taken(reader, 1, first_step=11, shard=HostShard(i, 2))[0] for i in range(2)]
    for name, column in expected.items():
        assert np.concatenate([shard[name] for shard in shards]).tolist() == column.tolist()


@pytest.mark.parametrize("batch_size", [50, 360, 1000])
def test_evaluation_has_every_record_once_and_then_blanks(digits, batch_size):
    batches = [*reader_of(digits, COUNT + 1).evaluation_batches(batch_size=batch_size)]
    assert {len(batch["features"]) for batch in batches} == {batch_size}
    features = np.concatenate([batch["features"] for batch in batches])
    assert features[:COUNT].tolist() == [*range(COUNT)]
    assert set(features[COUNT:]) <= {COUNT}


SHAPES = {
    "features": ((5, 2, 3), np.dtype(jnp.bfloat16)),
    "labels": ((5, 7), np.dtype(np.uint8)),
    "mask": ((5,), np.dtype(np.float32)),
}


@pytest.fixture
def written(tmp_path):
    """A file of features, and its columns."""
    file = FeatureFile(tmp_path / "features" / "train.bin", "key", SHAPES)
    assert file.read() == (None, "")
    columns = file.create()
    for column in columns.values():
        column[:] = np.random.default_rng(0).integers(0, 9, column.shape)
    file.finish()
    return file, {name: column.copy() for name, column in columns.items()}


def assert_whole(columns, expected) -> None:
    assert columns.keys() == expected.keys()
    for name, column in columns.items():
        assert column.dtype == expected[name].dtype
        np.testing.assert_array_equal(column, expected[name])


def test_a_file_is_read_as_it_was_written(written):
    file, expected = written
    columns, complaint = file.read()
    assert complaint == ""
    assert_whole(columns, expected)
    assert file.path.stat().st_size == size_of(SHAPES)
    alike = {name: (column.shape, column.dtype) for name, column in in_memory(SHAPES).items()}
    assert alike == SHAPES


def flip(file: FeatureFile) -> None:
    content = bytearray(file.path.read_bytes())
    content[70] ^= 1
    file.path.write_bytes(content)


def truncate(file: FeatureFile) -> None:
    file.path.write_bytes(file.path.read_bytes()[:-1])


def forget(file: FeatureFile) -> None:
    file.path.with_suffix(".json").unlink()


def garble(file: FeatureFile) -> None:
    about = file.path.with_suffix(".json")
    about.write_text(about.read_text().replace('"key": "key"', '"key": "kez"'))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "is damaged"), (truncate, "is damaged"), (garble, "is damaged"),
        (forget, "is incomplete"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_is_not_used_and_written_again(written, damage, complaint):
    file, expected = written
    damage(file)
    assert file.read() == (None, complaint)
    columns = file.create()
    assert file.read() == (None, "is incomplete"), "as a kill leaves it"
    for name, column in columns.items():
        column[:] = expected[name]
    file.finish()
    assert_whole(file.read()[0], expected)


def test_a_file_with_another_key_is_not_used(written):
    file, _ = written
    other = FeatureFile(file.path, "another", SHAPES)
    assert other.read() == (None, "is of other weights, data or settings")


def test_a_full_disk_is_one_line(small_disk):
    file = FeatureFile(small_disk / "features" / "train.bin", "key", {
        "features": ((1000, 1000), np.dtype(np.float32)),
    })  # fmt: skip
    with pytest.raises(RunError, match=r"take 3\.8 MiB in .*No space left.* lower frozen_draws$"):
        file.create()
    assert not file.path.exists()
