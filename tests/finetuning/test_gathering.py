"""What the splits of the data are used for: a test set neither trains nor selects."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.finetuning.pictures import CHANGES, write_images
from xception_jax import config as config_lib
from xception_jax.config import registry
from xception_jax.config.registry import Registry
from xception_jax.data import readers, splits
from xception_jax.data.source import Source
from xception_jax.errors import UsageError
from xception_jax.finetuning import decisions, gathering


@pytest.mark.parametrize(
    ("tree", "train", "select", "test"),
    [
        (("train", "val", "test"), "train", "val", "test"),
        (("Training", "Validation"), "Training", "Validation", ""),
        (("train", "test"), "train", "held_out", "test"),
        (("train",), "train", "held_out", ""),
        (("",), "train+test", "held_out", ""),
    ],
)
def test_every_layout_has_a_part_that_selects(tree, train, select, test, tmp_path, digits):
    for name in tree:
        write_images(tmp_path / "data" / name, digits, "test", 4)
    config = config_lib.default()
    config.data.dataset = f"folder:{tmp_path / 'data'}"
    found = gathering.find_splits(config, {})
    assert (found.fields["data.train_split"], found.fields["data.eval_split"]) == (train, select)
    assert found.test == test
    config.update_from_flattened_dict(dict(found.fields))
    held = splits.open_split(config, select)
    assert len(splits.open_training(config)) == 12 - (len(held) if select == "held_out" else 0)
    assert len(held) == (3 if select == "held_out" else 12)


def test_a_data_set_of_tfds_selects_by_a_part_and_keeps_its_test_set():
    config = config_lib.default()
    found = gathering.find_splits(config, {})
    assert found.fields["data.eval_split"] == "held_out"
    assert found.test == "test"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"data.train_split": "train+test"}, "data.train_split or data.mix"),
        ({"data.train_split": "train[:50%]+Testing[50%:]"}, "data.train_split or data.mix"),
        ({"data.mix": ("folder:{data}",), "data.mix_splits": ("test",)}, "data.train_split or"),
        ({"data.mix": ("folder:{link}",), "data.mix_splits": ("test",)}, "data.train_split or"),
        ({"eval.also": ("test",), "eval.best": "test/top1"}, "eval.also"),
        ({"eval.also": ("real=folder:{link}@test",)}, "eval.also"),
        ({"data.eval_split": "train[:20%]", "eval.also": ("more=test[:3]",)}, "eval.also"),
    ],
)
@pytest.mark.parametrize("folds", [0, 3])
def test_pictures_of_the_test_set_neither_train_nor_select(changes, field, folds, data, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(data)
    changes = {
        name: tuple(text.format(data=data, link=link) for text in value)
        if isinstance(value, tuple) else value
        for name, value in changes.items()
    }  # fmt: skip
    with pytest.raises(
        UsageError, match=rf"^config\.{field} .*has pictures of the test set 'test'"
    ):
        decisions.decide(f"folder:{data}", "unused.keras", folds, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"data.train_split": "train+test[:10%]"},
        {"data.mix": ("optical_digits:1.0.0",), "data.mix_splits": ("test",)},
        {"eval.also": ("test",)},
    ],
)
def test_of_a_data_set_of_tfds_too(changes):
    with pytest.raises(UsageError, match="has pictures of the test set 'test'"):
        decisions.decide("optical_digits", "unused.keras", 0, changes)


def test_other_sets_may_train_and_be_evaluated(data, digits, tmp_path, weights):
    more = write_images(tmp_path / "more" / "test", digits, "train", 4).parent
    write_images(more / "train", digits, "train", 4)
    changes = {
        **CHANGES, "data.mix": (f"folder:{more}",), "data.mix_splits": ("test",),
        "eval.also": (f"more=folder:{more}@test", "part=train[:10%]"),
    }  # fmt: skip
    made = decisions.decide(f"folder:{data}", str(weights), 0, changes)
    assert made.test == "test"


class Parts(Sequence):
    """The splits of a reader from outside of the package; the test set of one cannot be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        raise AssertionError("no image is needed")

    @staticmethod
    def open(name: str, split: str, options: readers.Options) -> Source:
        if split == "test" and name == "closed":
            raise PermissionError(13, "Permission denied", split)
        known = {"train", "test"} if name == "both" else {"train"}
        return {
            one: Source(f"{name}:{one}", ("a", "b"), Parts(), "image", "label") for one in known
        }[split]


@pytest.fixture
def reader(monkeypatch) -> None:
    known = Registry[readers.OpenSplit]("data source")
    known.add("parts:", Parts.open, "tests:Parts")
    monkeypatch.setattr(readers, "_READERS", known)
    monkeypatch.setattr(registry, "_OUTSIDE", {})


@pytest.mark.usefixtures("reader")
def test_a_test_set_that_cannot_be_read_is_not_a_missing_one():
    config = config_lib.default()
    config.data.dataset = "parts:whole"
    assert gathering.find_splits(config, {}).test == ""
    config.data.dataset = "parts:closed"
    with pytest.raises(PermissionError):
        gathering.find_splits(config, {})


@pytest.mark.usefixtures("reader")
def test_of_data_that_another_reader_opens_too():
    config = config_lib.default()
    config.data.dataset, config.data.eval_split = "parts:both", "train"
    assert gathering.find_splits(config, {}).test == "test"
    assert gathering.check_test(config, "test") == 4
    config.eval.also = ("test",)
    with pytest.raises(UsageError, match=r"config\.eval\.also has pictures of the test set"):
        gathering.check_test(config, "test")


def test_the_folder_of_a_run_has_the_name_of_the_data():
    assert gathering.default_workdir("folder:photos/pets/") == Path("runs/pets")
    assert gathering.default_workdir("folder:pets/labels.csv") == Path("runs/labels")
    assert gathering.default_workdir("optical_digits") == Path("runs/optical_digits")
