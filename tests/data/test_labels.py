"""The labels of a whole split, and several sets as one."""

import dataclasses

import numpy as np
import pytest

from tests import tiny_datasets
from tests.data.test_batches import numbered
from xception_jax.data import readers
from xception_jax.data.labels import labels_of
from xception_jax.data.readers import joined
from xception_jax.data.source import Source
from xception_jax.errors import UsageError


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_datasets.prepare(tmp_path / "data", "tiny_photos", examples={"train": 9})
    return readers.open_split("tiny_photos", "train", str(tmp_path / "data"))


class Unread:
    """Records that must not be read."""

    def __len__(self) -> int:
        return 9


def test_labels_are_read_once_and_kept(photos, tmp_path):
    expected = [photos[record].label for record in range(9)]
    assert labels_of(photos).tolist() == expected
    kept = dataclasses.replace(photos, records=Unread())
    assert labels_of(kept).tolist() == expected
    part = readers.open_split("tiny_photos", "train[:4]", str(tmp_path / "data"))
    assert labels_of(part).tolist() == expected[:4], "another split has labels of its own"
    files = list((tmp_path / "cache/xception_jax/labels").iterdir())
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[:50])  # cut short, as by a full disk
    assert labels_of(photos).tolist() == expected
    about = tmp_path / "data/tiny_photos/1.0.0/dataset_info.json"
    about.write_text(about.read_text() + " ")
    with pytest.raises(TypeError):
        labels_of(kept)  # other data: to be read again


class Damaged:
    """Records of which some are damaged, until their file is replaced."""

    def __init__(self, records, gone):
        self.records, self.gone = records, gone

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, record: int):
        if record in self.gone:
            raise ValueError("its checksum does not fit")
        return self.records[record]


def test_what_could_not_be_read_is_looked_for_again_and_nothing_else(photos):
    expected = [photos[record].label for record in range(9)]
    bad = dataclasses.replace(photos, records=Damaged(photos.records, {2, 5}))
    without = [-1 if record in (2, 5) else label for record, label in enumerate(expected)]
    assert labels_of(bad).tolist() == without
    assert labels_of(bad).tolist() == without
    others = dataclasses.replace(photos, records=Damaged(photos.records, set(range(9)) - {2, 5}))
    assert labels_of(others).tolist() == expected
    kept = dataclasses.replace(photos, records=Unread())
    assert labels_of(kept).tolist() == expected


def test_a_first_class_that_was_found_later_is_kept_too(photos):
    expected = [photos[record].label for record in range(9)]
    first = {record for record, label in enumerate(expected) if label == 0}
    labels_of(dataclasses.replace(photos, records=Damaged(photos.records, first)))
    assert labels_of(photos).tolist() == expected
    assert labels_of(dataclasses.replace(photos, records=Unread())).tolist() == expected


def test_labels_that_cannot_be_used_are_minus_one(photos):
    wrong = dataclasses.replace(photos, class_names=photos.class_names[:2])
    labels = np.array([photos[record].label for record in range(9)])
    np.testing.assert_array_equal(labels_of(wrong), np.where(labels < 2, labels, -1))


def test_several_sets_as_one(photos):
    twice = joined.join([photos, photos])
    assert twice.name == "tiny_photos/1.0.0:train + tiny_photos/1.0.0:train"
    assert len(twice) == 18
    for record in range(18):
        assert twice[record] == photos[record % 9]
    np.testing.assert_array_equal(labels_of(twice), np.tile(labels_of(photos), 2))


def test_sets_that_cannot_be_one(photos):
    with pytest.raises(UsageError, match="have different classes: only one of them has '4'"):
        joined.join([photos, numbered(5)])
    several = dataclasses.replace(photos, name="scenes", multilabel=True)
    for parts in ([photos, several], [several, photos]):
        with pytest.raises(UsageError, match="scenes has several labels per image, but tiny_"):
            joined.join(parts)
