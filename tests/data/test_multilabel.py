"""Data sets whose images have several labels, from disk to the batch."""

import numpy as np
import pytest

from tests import tiny_datasets
from xception_jax.data import readers
from xception_jax.data.batches import Reader
from xception_jax.data.order import Sampling
from xception_jax.data.readers import joined
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import RunError, UsageError

COUNT = 21


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multilabel")
    tiny_datasets.prepare_multilabel(folder, "tiny_scenes", examples={"train": COUNT})
    tiny_datasets.prepare_multilabel(folder, "tiny_tags", examples={"train": COUNT}, objects=False)
    return str(folder)


def truth(source):
    """What was drawn, in the order in which TFDS has stored it."""
    drawn = tiny_datasets.kinds("train", COUNT)
    numbers = [int(record["id"].decode().removeprefix("train-")) for record in source.records]
    assert sorted(numbers) == list(range(COUNT))
    return drawn[numbers]


@pytest.mark.parametrize(
    ("dataset", "label"),
    [("tiny_scenes", "tags"), ("tiny_scenes", "objects/label"), ("tiny_tags", None)],
)
def test_labels_are_what_the_pictures_show(data_dir, dataset, label):
    """Of objects: seen twice counts once, and a person who found it absent overrules a machine."""
    source = readers.open_split(dataset, "train", data_dir, label=label)
    assert source.multilabel
    assert len(source.class_names) == tiny_datasets.KINDS
    found = np.stack([source[i].label for i in range(COUNT)])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, truth(source))
    assert not found.any(axis=1).all(), "a picture without any is among them"


def test_evaluation_takes_each_once_and_fills_up_with_nothing(data_dir):
    source = readers.open_split("tiny_scenes", "train", data_dir, label="objects/label")
    batches = list(Reader(source, Images(8)).evaluation_batches(batch_size=8))
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert {name: (array.dtype, array.shape) for name, array in whole.items()} == {
        "image": (np.uint8, (24, 8, 8, 3)),
        "labels": (np.uint8, (24, tiny_datasets.KINDS)),
        "mask": (np.float32, (24,)),
    }
    np.testing.assert_array_equal(whole["labels"][:COUNT], truth(source))
    np.testing.assert_array_equal(whole["mask"], np.arange(24) < COUNT)
    assert not whole["labels"][COUNT:].any()


def test_several_sets_are_mixed_label_by_label(data_dir):
    parts = [readers.open_split("tiny_scenes", "train", data_dir, label="objects/label"),
             readers.open_split("tiny_tags", "train", data_dir)]  # fmt: skip
    both = joined.join(parts)
    labels = np.stack([both[i].label for i in range(len(both))])
    np.testing.assert_array_equal(labels, np.concatenate([truth(part) for part in parts]))
    reader = Reader(both, Images(8), sampling=Sampling(weights=(2.0, 1.0)))
    batch = next(reader.training_batches(batch_size=6 * COUNT, seed=0))
    assert batch["labels"].sum() == pytest.approx(
        4 * labels[:COUNT].sum() + 2 * labels[COUNT:].sum()
    )


def test_a_training_batch_brings_the_labels_of_its_images(data_dir):
    source = readers.open_split("tiny_scenes", "train", data_dir, label="tags")
    batch = next(Reader(source, Images(16)).training_batches(batch_size=COUNT, seed=3))
    red, green, blue = 0, 1, 2
    for image, labels in zip(batch["image"], batch["labels"], strict=True):
        halves = [image[:, :8], image[:, 8:]]
        shown = [half[..., c].mean() > 100 for half in halves for c in (red, green, blue)]
        np.testing.assert_array_equal(labels, shown)


def test_a_nested_label_that_is_no_sequence_is_one_label():
    records = [{"image": b"", "class": {"fine": 2}}]
    source = Source("nested", ("a", "b", "c"), records, "image", "class/fine")
    assert source[0].label == 2


@pytest.mark.parametrize(
    ("dataset", "label", "message"),
    [
        ("tiny_scenes", None, "tiny_scenes has labels in objects/label, objects/source, tags; name "
         "one of them in config.data.label"),
        ("tiny_scenes", "objects/labels", "tiny_scenes has no labels in 'objects/labels'; did you "
         "mean 'objects/label'? config.data.label takes: objects/label, objects/source, tags"),
        ("tiny_tags", "objects", "tiny_tags has no labels in 'objects'; config.data.label takes: "
         "tags"),
        ("optical_digits", "photo", "optical_digits has no labels in 'photo'; config.data.label "
         "takes: label"),
    ],
)  # fmt: skip
def test_labels_that_are_not_clear(data_dir, dataset, label, message):
    folder = None if dataset == "optical_digits" else data_dir
    with pytest.raises(UsageError) as caught:
        readers.open_split(dataset, "train", folder, label=label)
    assert str(caught.value) == message


def test_one_label_out_of_range_among_several_is_found():
    records = [{"image": b"", "tags": [0, 7, 1]}]
    source = Source("bad", ("a", "b", "c"), records, "image", "tags", multilabel=True)
    with pytest.raises(RunError, match=r"example 0 of bad has label 7, outside 0\.\.\.2"):
        source[0]
