"""A folder of images: what is found, how it is cut, and what is said of what will not do."""

import os
from collections.abc import Iterable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests import pictures
from xception_jax import config as config_lib
from xception_jax.data import readers
from xception_jax.data.readers import folder
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError, UsageError
from xception_jax.training import preflight

JPEG = pictures.encode(pictures.PICTURE, "JPEG")


def fill(root: Path, names: Iterable[str]) -> Path:
    """Writes a JPEG to each of the names; one that ends in / becomes an empty folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEG)
    return root


def opened(root: Path, split: str = "train", **options) -> Source:
    return readers.open_split(f"folder:{root}", split, **options)


def found(source: Source) -> dict[str, str]:
    """The class of each file."""
    return {
        os.path.relpath(source[i].name, source.records.root): source.class_names[source[i].label]
        for i in range(len(source))
    }


def test_splits_are_folders(tmp_path):
    train = ["train/cat/1.jpg", "train/cat/deep/er/2.PNG", "train/dog/1.JPEG", "train/dog/x.y.tif"]
    fill(tmp_path, [*train, "val/dog/7.webp", "val/cat/1.jpg", "train/cat/.hidden.jpg"])
    fill(tmp_path, ["train/.cache/1.jpg", "train/labels.csv", "train/dog/notes.txt"])
    source = opened(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert found(source) == {name: name.split("/")[1] for name in train}
    assert source[0].encoded == JPEG
    assert found(opened(tmp_path, "val")) == {"val/dog/7.webp": "dog", "val/cat/1.jpg": "cat"}
    assert len(opened(tmp_path, "train[:50%]+val")) == 4
    assert source.name.startswith(f"folder:{tmp_path}@")
    assert source.name.endswith(":train")
    assert source.summary == (
        f"'train' of {tmp_path}: 4 images, 2 classes of 2 (cat) to 2 (cat); left out as not an "
        f"image of a class: 2 files: {tmp_path}/train/dog/notes.txt, {tmp_path}/train/labels.csv; "
        f"left out as hidden or system files: 2: {tmp_path}/train/.cache, "
        f"{tmp_path}/train/cat/.hidden.jpg"
    )


def test_a_folder_of_classes_is_cut_evenly(tmp_path):
    names = [f"{kind}/{i}.jpg" for kind, n in (("a", 10), ("b", 25), ("c", 2)) for i in range(n)]
    fill(tmp_path, names)
    train, test = found(opened(tmp_path)), found(opened(tmp_path, "test"))
    assert sorted([*train, *test]) == sorted(names)
    counts = {kind: list(test.values()).count(kind) for kind in "abc"}
    assert counts == {"a": 2, "b": 5, "c": 1}
    assert len(found(opened(tmp_path, "test", test_share=0.5))) == 5 + 13 + 1
    assert found(opened(tmp_path, "test", split_seed=1)).keys() != test.keys()


@hypothesis.given(
    files=st.dictionaries(
        st.sampled_from("abc"), st.sets(st.text("xyz01", min_size=1), min_size=2), min_size=2
    ),
    added=st.text("xyz01", min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
@hypothesis.settings(max_examples=20, deadline=None)
def test_an_added_file_moves_at_most_one_other_of_its_class(tmp_path_factory, files, added, seed):
    before, after = (tmp_path_factory.mktemp(name) for name in ("before", "after"))
    names = [f"{kind}/{name}.jpg" for kind, group in files.items() for name in group]
    fill(before, names)
    fill(after, [*names, f"{names[0][0]}/{added}.jpg"])
    old, new = (
        {name: split for split in ("train", "test") for name in found(
            opened(root, split, split_seed=seed))}
        for root in (before, after)
    )  # fmt: skip
    moved = [name for name in old if new[name] != old[name]]
    assert len(moved) <= 1
    assert all(name[0] == names[0][0] for name in moved)


def test_the_order_is_that_of_the_names_alone(tmp_path):
    """Pinned, as runs have begun with it; written in two orders, since disks list in theirs."""
    names = [f"train/{kind}/{i}.jpg" for kind in "ab" for i in range(6)]
    first, second = fill(tmp_path / "1", names), fill(tmp_path / "2", reversed(names))
    orders = [[name[6:-4] for name in opened(root).records.names] for root in (first, second)]
    assert orders[0] == orders[1]
    assert " ".join(orders[0]) == "b/4 b/5 b/2 b/0 b/3 b/1 a/1 a/5 a/4 a/3 a/0 a/2"
    assert opened(first).name.split("@")[1] == opened(second).name.split("@")[1]
    fill(tmp_path / "3", [*names[:-1], "train/b/6.jpg"])
    other = opened(tmp_path / "3").name.split("@")[1]
    assert other != opened(first).name.split("@")[1], "as many files, but another one"


def test_a_part_holds_about_its_share_of_every_class(tmp_path):
    fill(tmp_path, [f"train/{kind}/{i}.jpg" for kind in "abcd" for i in range(50)])
    part = opened(tmp_path, "train[:20%]")
    counts = np.bincount([part[i].label for i in range(len(part))], minlength=4)
    assert counts.sum() == 40
    assert counts.min() >= 4


def test_links_are_followed_and_loops_are_no_trap(tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", ["1.jpg", "in/2.jpg"])
    root = fill(tmp_path / "root", ["train/a/0.jpg", "train/b/0.jpg"])
    (root / "train/a/linked").symlink_to(elsewhere)
    (root / "train/b/loop").symlink_to(root / "train/b")
    (root / "train/b/gone.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "train/b/pipe.jpg")
    source = opened(root)
    assert sorted(found(source)) == [
        "train/a/0.jpg", "train/a/linked/1.jpg", "train/a/linked/in/2.jpg", "train/b/0.jpg",
    ]  # fmt: skip
    assert "gone.jpg" in source.summary
    assert "pipe.jpg" in source.summary


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, [f"{kind}/{i}.jpg" for kind in ("car", "ship", "train") for i in range(4)])
    assert opened(tmp_path).class_names == ("car", "ship", "train")


def test_a_relative_path_starts_at_the_data_dir(tmp_path):
    fill(tmp_path / "pets", ["train/cat/1.jpg", "train/dog/1.jpg"])
    source = readers.open_split("folder:pets", "train", str(tmp_path))
    assert source.name.startswith("folder:pets@"), "the same for any folder of the data"
    assert len(source) == 2


def test_a_name_that_is_no_utf8_is_read_and_can_be_printed(tmp_path):
    fill(tmp_path, ["train/a/1.jpg", "train/b/1.jpg"])
    os.rename(os.fsencode(tmp_path / "train/a/1.jpg"), os.fsencode(tmp_path) + b"/train/a/\xff.jpg")
    examples = [opened(tmp_path)[i] for i in range(2)]
    assert {example.name.encode() for example in examples} == {
        f"{tmp_path}/train/a/\\xff.jpg".encode(), f"{tmp_path}/train/b/1.jpg".encode(),
    }  # fmt: skip


def test_a_file_that_is_gone_or_enormous_is_an_error_of_its_example(tmp_path):
    fill(tmp_path, ["train/a/1.jpg", "train/b/1.jpg"])
    source = opened(tmp_path)
    (tmp_path / "train/a/1.jpg").unlink()
    os.truncate(tmp_path / "train/b/1.jpg", 2**31)  # takes no space
    said = {}
    for i in range(2):
        with pytest.raises(ExampleError) as caught:
            source[i]
        said[source.class_names[source.records.labels[i]]] = str(caught.value)
    assert said["a"] == f"{tmp_path}/train/a/1.jpg cannot be read: No such file or directory"
    assert "cannot be read: it has 2,147,483,648 bytes, more than 1,073,741,824" in said["b"]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (None, "train", "folder:{root} cannot be read: '{root}': No such file or directory; it ta"),
        ([], "train", "{root} holds no folder with an image in it; found: {root}/ (empty); it"),
        (["1.jpg"], "train", "{root} holds no folder with an image in it"),
        (["train/1.jpg", "test/1.jpg"], "train", "{root}/train holds no folder with an image in"),
        (["train/a/", "train/b/"], "train", "{root}/train holds no folder with an image in it"),
        (
            ["train/a/1.jpg", "train/b/"],
            "train",
            "class 'b' is empty: there is no image in {root}/tra",
        ),
        (
            ["a/1.jpg", "a/2.jpg", "b/1.txt"],
            "train",
            "class 'b' is empty: there is no image in {root}",
        ),
        (["train/a/1.jpg"], "train", "{root}/train holds one class, 'a'; two are needed"),
        (["a/1.jpg", "b/1.jpg"], "test", "every class of {root} has one image, so none can be"),
        (["a/1.jpg", "b/1.jpg"], "val", "{root} has no split 'val'; it has: test, train"),
        (
            ["train/a/1.jpg", "test/a/1.jpg"],
            "val",
            "{root} has no split 'val'; it has: test, train",
        ),
        (["Train/a/1.jpg", "Val/a/1.jpg"], "train", "{root}/Train holds one class, 'a'; two are"),
        (["train/a/1.jpg", "train/b/1.jpg"], "train[:0]", "'train[:0]' of {root} is empty"),
        (["train/a/1.jpg", "train/b/1.jpg"], "train[1", "{root} has no split 'train[1': "),
        (["train/a/1.jpg", "train/b/1.jpg"], "train[7:]", "{root} has no split 'train[7:]': Req"),
    ],
)
def test_what_will_not_do(tmp_path, names, split, message):
    root = tmp_path / "root"
    if names is not None:
        root.mkdir()
        fill(root, names)
    with pytest.raises(UsageError) as caught:
        opened(root, split)
    assert str(caught.value).startswith(message.format(root=root))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_together_is_refused_before_a_run(tmp_path):
    config = config_lib.default()
    fill(tmp_path / "1", ["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg"])
    config.data.dataset = f"folder:{tmp_path / '1'}"
    with pytest.raises(UsageError, match="has a class that 'train' lacks: 'c'; found: "):
        preflight.validate(config)
    fill(tmp_path / "2", ["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg"])
    config.data.dataset = f"folder:{tmp_path / '2'}"
    preflight.validate(config)
    (tmp_path / "2/test/a/1.jpg").write_text("no image")
    with pytest.raises(UsageError, match=r"test cannot be read: .*/test/a/1\.jpg cannot be dec"):
        preflight.validate(config)
    config.data.max_skipped = 0.5
    preflight.validate(config)


def test_a_folder_is_listed_once_in_a_process(tmp_path):
    """Else a file that comes or goes between two openings would make one run of two orders."""
    fill(tmp_path, [f"train/{kind}/{i}.jpg" for kind in "ab" for i in range(3)])
    before = opened(tmp_path)
    (tmp_path / "train/a/0.jpg").unlink()
    assert opened(tmp_path).name == before.name
    assert folder.open_split(str(tmp_path), "train").name == before.name
