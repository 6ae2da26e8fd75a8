"""Parts of a training split: stratified, disjoint, and the same wherever and whenever."""

import collections
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from tests.data.readers.test_folder_layouts import write
from xception_jax import config as config_lib
from xception_jax.data import parts, splits
from xception_jax.data.labels import labels_of
from xception_jax.data.readers import folder
from xception_jax.errors import UsageError
from xception_jax.training import preflight

TREE = (
    "train/cat/{1-20}.jpg train/dog/{1-33}.jpg train/emu/{1-2}.jpg train/yak/1.jpg test/cat/1.jpg"
)


def config_of(dataset, **changes):
    config = config_lib.default()
    config.data.dataset = str(dataset)
    config.data.update(changes)
    return config


def files(source):
    return set(folder.names_of(source))


@pytest.fixture
def tree(tmp_path):
    return f"folder:{write(tmp_path / 'pets', TREE)}"


def test_what_is_held_out_is_a_share_of_each_class_and_not_trained_on(tree):
    config = config_of(tree, val_share=0.2, eval_split="held_out")
    train = splits.open_training(config)
    held = splits.open_evaluation(config)[""]
    assert not files(train) & files(held)
    assert files(train) | files(held) == files(splits.open_split(config, "train"))
    assert len(splits.open_split(config, "test")) == 1, "the real test set, which stays"
    counts = np.bincount(labels_of(held), minlength=4)
    assert counts.tolist() == [4, 7, 1, 0], "one of two, and none of one"
    assert train.class_names == held.class_names
    assert "44 images are left for training; held_out has 12" in train.summary
    names = {train.name, held.name, splits.open_split(config, "train").name}
    assert len(names) == 3
    assert Path(held[0].name).is_file()
    assert held[0].name == held.describe(0)


def test_a_part_depends_on_names_and_seed_alone(tree, tmp_path):
    config = config_of(tree, val_share=0.2)
    held = files(splits.open_split(config, "held_out"))
    moved = config_of(f"folder:{write(tmp_path / 'else' / 'dogs', TREE)}", val_share=0.2)
    assert files(splits.open_split(moved, "held_out")) == held
    other = config_of(tree, val_share=0.2, split_seed=1)
    assert files(splits.open_split(other, "held_out")) != held
    more = f"{TREE} train/cat/21.jpg"
    added = config_of(f"folder:{write(tmp_path / 'more' / 'dogs', more)}", val_share=0.2)
    now = files(splits.open_split(added, "held_out"))
    assert len(now ^ held) <= 2, "one file more moves at most one other, of its class"


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_folds_divide_the_images_and_inside_of_them_a_part_is_held_out(tree, share):
    config = config_of(tree, folds=5, val_share=share)
    seen: collections.Counter[str] = collections.Counter()
    for fold in range(5):
        config.data.fold = fold
        left_out = files(splits.open_split(config, "fold"))
        train = files(splits.open_training(config))
        held = files(splits.open_split(config, "held_out")) if share else set()
        assert not train & left_out
        assert not train & held
        assert not left_out & held
        assert train | held | left_out == files(splits.open_split(config, "train"))
        seen.update(left_out)
    assert set(seen.values()) == {1}
    assert len(seen) == 56


def test_folds_have_the_shares_that_sklearn_gives_them():
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    ours = parts.folds(labels, ("a", "b", "c"), 5, seed=0)
    theirs = StratifiedKFold(5).split(labels, labels)
    for fold, (_, test) in enumerate(theirs):
        counts = np.bincount(labels[ours == fold], minlength=3)
        assert np.abs(counts - np.bincount(labels[test], minlength=3)).max() <= 1
    sizes = np.bincount(parts.folds(np.arange(300) // 2, [str(i) for i in range(150)], 5, 0))
    assert sizes.min() > 40, "small classes begin at different folds"


def test_other_data_sets_are_divided_too(digits):
    config = config_of("optical_digits", val_share=0.25, folds=3, fold=1)
    whole = digits["train"]
    found = parts.divide(config, whole)
    assert sum(map(len, found.values())) == len(whole)
    assert [*found] == ["", "fold", "held_out"]
    for part in found.values():
        shares = np.bincount(labels_of(part), minlength=10) / np.bincount(labels_of(whole))
        assert np.ptp(shares) < 0.02, "of each class"
        copy = pickle.loads(pickle.dumps(part))  # for worker processes
        assert copy[0] == part[0]
    assert len({whole.name, *(part.name for part in found.values())}) == 4
    taken = [part.records.indices for part in found.values()]
    assert sorted(np.concatenate(taken)) == [*range(len(whole))]
    again = parts.divide(config, whole)["fold"].records.indices
    np.testing.assert_array_equal(again, found["fold"].records.indices)
    config.data.split_seed = 1
    assert (parts.divide(config, whole)["fold"].records.indices != again).any()
    several = replace(whole, multilabel=True)
    assert sum(map(len, parts.divide(config, several).values())) == len(whole)


def test_a_folder_of_classes_alone_is_divided_completely(tmp_path):
    data = write(tmp_path / "pets", "cat/{1-20}.jpg dog/{1-20}.jpg")
    config = config_of(f"folder:{data}", train_split="train+test", val_share=0.2)
    assert len(splits.open_training(config)) == 32
    assert len(splits.open_split(config, "held_out")) == 8


@pytest.mark.parametrize("changes", [{"folds": 1}, {"folds": 3, "fold": 3}])
def test_a_fold_that_is_not_there_is_refused(changes):
    config = config_lib.default()
    config.data.update(changes)
    with pytest.raises(UsageError, match=r"config.data.fold is .* folds takes 0 or at least 2"):
        preflight.check_without_data(config, 1)


def test_too_few_images_are_refused(tmp_path):
    data = write(tmp_path / "pets", "train/cat/1.jpg train/dog/1.jpg")
    config = config_of(f"folder:{data}", val_share=0.2, eval_split="held_out")
    with pytest.raises(
        UsageError, match=r"\[held out 0.2\] is empty: 2 images of 2 classes are too"
    ):
        splits.open_split(config, "held_out")
    config = config_of(f"folder:{data}", folds=9, eval_split="held_out")
    whole = splits.open_split(config, "train")
    config.data.fold = min({*range(9)} - {*parts.folds(labels_of(whole), whole.class_names, 9, 0)})
    with pytest.raises(UsageError, match=r"lower config\.data\.folds"):
        splits.open_training(config)
