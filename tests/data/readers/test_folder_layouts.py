"""Folders as people have them: taken as a person would expect, or refused with what was found."""

import os
import unicodedata
from pathlib import Path

import pytest

from tests import pictures
from xception_jax import config as config_lib
from xception_jax.data import splits
from xception_jax.data.readers import folder, joined
from xception_jax.data.source import Source
from xception_jax.errors import UsageError

JPEG = pictures.encode(pictures.PICTURE.resize((4, 4)), "JPEG")
E_NFC, E_NFD = (unicodedata.normalize(form, "hérisson") for form in ("NFC", "NFD"))


def write(root: Path, names: str, texts: dict[str, str] | None = None) -> Path:
    """Writes a JPEG to each name, `{1-3}` being three; what ends in / becomes an empty folder."""
    for name in names.split():
        start, _, rest = name.partition("{")
        numbers, _, end = rest.partition("}")
        first, _, last = numbers.partition("-")
        several = [f"{start}{i}{end}" for i in range(int(first), int(last) + 1)] if rest else [name]
        for each in several:
            path = root / each
            (path if each.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not each.endswith("/"):
                path.write_bytes(JPEG)
    for name, text in (texts or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return root


def opened(dataset: str, split: str, **fields) -> Source:
    """A split as a run of the default config opens it."""
    config = config_lib.default()
    config.data.dataset = f"folder:{dataset}"
    for name, value in fields.items():
        config.data[name] = value
    return splits.open_split(config, split)


def found(source: Source) -> dict[str, str]:
    """The class of each file, by its name from the folder on."""
    classes = source.class_names
    return {
        name: classes[label]
        for name, label in zip(source.records.names, source.records.labels, strict=True)
    }


# Each: the files; the classes that training and evaluation find, with the number of their images;
# the folders that they lie in; what is said.
TAKEN = {
    "train and test": (
        "train/cat/{1-3}.jpg train/dog/{1-2}.jpg test/cat/4.jpg test/dog/5.jpg",
        {"cat": 3, "dog": 2}, {"cat": 1, "dog": 1}, ("train/", "test/"), "",
    ),
    "training and testing, capitals": (
        "Training/cat/1.jpg Training/dog/1.jpg TESTING/cat/2.jpg TESTING/dog/2.jpg",
        {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1}, ("Training/", "TESTING/"),
        "'test' is 'TESTING' here",
    ),
    "train and val": (
        "train/cat/1.jpg train/dog/1.jpg val/cat/2.jpg val/dog/2.jpg",
        {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1}, ("train/", "val/"), "'test' is 'val' here",
    ),
    "train and valid beside other folders": (
        "Train/cat/1.jpg Train/dog/1.jpg valid/cat/2.jpg valid/dog/2.jpg docs/ sample/x/1.jpg",
        {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1}, ("Train/", "valid/"), "'test' is 'valid' here",
    ),
    "train, validation and test": (
        "train/cat/1.jpg train/dog/1.jpg validation/cat/2.jpg validation/dog/2.jpg "
        "test/cat/{3-4}.jpg test/dog/3.jpg",
        {"cat": 1, "dog": 1}, {"cat": 2, "dog": 1}, ("train/", "test/"), "",
    ),
    "train alone": (
        "train/cat/{1-5}.jpg train/dog/{1-10}.jpg README.md/",
        {"cat": 4, "dog": 8}, {"cat": 1, "dog": 2}, ("train/", "train/"),
        "'test' is the part of 'train' that is held out",
    ),
    "train alone, beside a folder of annotations": (
        "train/cat/{1-5}.jpg train/dog/{1-10}.jpg",
        {"cat": 4, "dog": 8}, {"cat": 1, "dog": 2}, ("train/", "train/"),
        "'test' is the part of 'train' that is held out", {"xmls/a/1.xml": "<a/>"},
    ),
    "train, and a test without labels": (
        "train/cat/{1-5}.jpg train/dog/{1-5}.jpg test/{1-9}.jpg",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("train/", "train/"),
        "'test' is the part of 'train' that is held out",
    ),
    "train, val, and a test without labels": (
        "train/cat/1.jpg train/dog/1.jpg val/cat/2.jpg val/dog/2.jpg test/{1-9}.jpg",
        {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1}, ("train/", "val/"), "'test' is 'val' here",
    ),
    "classes": (
        "cat/{1-5}.jpg dog/{1-10}.jpg", {"cat": 4, "dog": 8}, {"cat": 1, "dog": 2}, ("", ""), "",
    ),
    "a class called train": (
        "car/{1-5}.jpg ship/{1-5}.jpg train/{1-5}.jpg",
        {"car": 4, "ship": 4, "train": 4}, {"car": 1, "ship": 1, "train": 1}, ("", ""), "",
    ),
    "a rare class in no validation": (
        "train/cat/{1-3}.jpg train/dog/{1-3}.jpg train/yak/1.jpg val/cat/4.jpg val/dog/4.jpg",
        {"cat": 3, "dog": 3, "yak": 1}, {"cat": 1, "dog": 1}, ("train/", "val/"),
        "classes of the training part without an image: 1: yak",
    ),
    "one class alone in validation, an empty folder": (
        "train/cat/{1-3}.jpg train/dog/{1-3}.jpg val/dog/4.jpg val/cat/",
        {"cat": 3, "dog": 3}, {"dog": 1}, ("train/", "val/"),
        "classes of the training part without an image: 1: cat",
    ),
    "a class of one image": (
        "cat/{1-5}.jpg dog/{1-5}.jpg yak/1.jpg",
        {"cat": 4, "dog": 4, "yak": 1}, {"cat": 1, "dog": 1}, ("", ""),
        "classes of one image, which 'train' has: 1: yak",
    ),
    "one class in two forms of Unicode": (
        f"{E_NFC}/{{1-5}}.jpg {E_NFD}/{{6-10}}.jpg dog/{{1-5}}.jpg",
        {E_NFC: 8, "dog": 4}, {E_NFC: 2, "dog": 1}, ("", ""),
        f"2 folders named {E_NFC!r} in other Unicode forms: one class",
    ),
    "another form of Unicode in validation": (
        f"train/{E_NFD}/1.jpg train/dog/1.jpg val/{E_NFC}/2.jpg val/dog/2.jpg",
        {E_NFD: 1, "dog": 1}, {E_NFD: 1, "dog": 1}, ("train/", "val/"), "",
    ),
    "what systems leave": (
        "cat/{1-5}.jpg cat/@eaDir/1.jpg/thumb.jpg dog/{1-5}.jpg dog/._1.jpg dog/Thumbs.db "
        "__MACOSX/cat/._1.jpg .ipynb_checkpoints/1.jpg cat/.ipynb_checkpoints/1-checkpoint.jpg "
        "@eaDir/x.jpg $RECYCLE.BIN/1.jpg",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("", ""),
        "left out as hidden or system files: 8: ",
    ),
    "a system's folder beside splits": (
        "train/cat/1.jpg train/dog/1.jpg test/cat/1.jpg test/dog/1.jpg train/@eaDir/x.jpg "
        "__MACOSX/train/._cat",
        {"cat": 1, "dog": 1}, {"cat": 1, "dog": 1}, ("train/", "test/"), "train/@eaDir",
    ),
    "seldom endings and none": (
        "cat/1.jfif cat/2.JPE cat/3.jif cat/4 cat/5.2019 dog/{1-5}.jpg_large dog/6.bak dog/7.txt",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("", ""),
        "left out as not an image of a class: 2 files: ",
    ),
    "labels.csv beside images": (
        "{1-5}.jpg a{1-10}.jpg",
        {"cat": 4, "dog": 8}, {"cat": 1, "dog": 2}, ("", ""), "15 rows, columns 'file', 'label'",
        {"labels.csv": "file,label\n" + "".join(f"{i}.jpg,cat\n" for i in range(1, 6))
         + "".join(f"a{i}.jpg,dog\n" for i in range(1, 11))},
    ),
    "Kaggle's dog breeds: names without an ending, a test without labels": (
        "train/a{1-5}.jpg train/b{1-5}.jpg test/c{1-9}.jpg",
        {"boxer": 4, "pug": 4}, {"boxer": 1, "pug": 1}, ("train/", "train/"),
        "images that are not in the table, left out: 9, for example test/c1.jpg",
        {"labels.csv": "id,breed\n" + "".join(f"a{i},boxer\nb{i},pug\n" for i in range(1, 6)),
         "sample_submission.csv": "id,boxer,pug\n"},
    ),
    "labels.csv, images in one folder, no header": (
        "images/a{1-5}.jpg images/b{1-5}.jpg",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("images/", "images/"), "10 rows, no header",
        {"Labels.csv": "".join(f"a{i}.jpg,cat\nimages/b{i}.jpg,dog\n" for i in range(1, 6))},
    ),
    "Kaggle's cassava: train_images, test_images, the same names in both": (
        "train_images/{1-10}.jpg test_images/{1-3}.jpg",
        {"0": 4, "1": 4}, {"0": 1, "1": 1}, ("train_images/", "train_images/"), "10 rows",
        {"labels.csv": "image_id,label\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(1, 11))},
    ),
    "a table named by its path": (
        "images/a{1-5}.jpg images/b{1-5}.jpg more/c.jpg",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("images/", "images/"), "10 rows",
        {"train.csv": "label,image\n" + "".join(f"cat,a{i}.jpg\ndog,b{i}.jpg\n"
                                                for i in range(1, 6))}, "train.csv",
    ),
    "a table beside its folder": (
        "pets/a{1-5}.jpg pets/b{1-5}.jpg other/a1.jpg",
        {"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, ("pets/", "pets/"), "10 rows",
        {"pets.csv": "image,label\n" + "".join(f"a{i},cat\nb{i},dog\n" for i in range(1, 6))},
        "pets.csv",
    ),
    "a table with splits": (
        "a{1-3}.jpg b{1-3}.jpg",
        {"cat": 2, "dog": 2}, {"cat": 1, "dog": 1}, ("", ""), "columns 'path', 'class', 'split'",
        {"labels.csv": "path,class,split\n" + "".join(
            f"a{i}.jpg,cat,{s}\nb{i}.jpg,dog,{s}\n" for i, s in enumerate(
                ("Train", "train", "valid"), 1))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", TAKEN.values(), ids=TAKEN.keys())
def test_taken_as_a_person_would_expect(tmp_path, layout):
    names, training, evaluated, folders, told, *more = layout
    texts, path = more[0] if more else {}, more[1] if more[1:] else ""
    root = write(tmp_path, names, texts)
    parts = [opened(root / path, split) for split in ("train", "test")]
    assert parts[0].class_names == parts[1].class_names == tuple(sorted(training))
    files = [found(part) for part in parts]
    assert not files[0].keys() & files[1].keys()
    for part, counts, start in zip(files, (training, evaluated), folders, strict=True):
        assert {name: [*part.values()].count(name) for name in part.values()} == counts
        assert all(name.startswith(start) for name in part)
        assert all((root / name).read_bytes() == JPEG for name in part)
        hidden = ("@eaDir", "__MACOSX", "._", ".ipynb", "$RECYCLE", "Thumbs")
        assert not any(mark in name for name in part for mark in hidden)
        tables = {name: text for name, text in texts.items() if name.endswith(".csv")}
        assert not tables or part.items() <= labels_by_hand(tables).items() or "split" in told
    assert told in parts[1].summary or told in parts[0].summary


@pytest.mark.parametrize("asked", ["validation", "val"])
def test_what_is_held_out_has_the_role_that_evaluation_asks_for(tmp_path, asked):
    root = write(tmp_path, "train/cat/{1-5}.jpg train/dog/{1-10}.jpg")
    training, held = (opened(root, name, eval_split=asked) for name in ("train", asked))
    assert (len(training), len(held)) == (12, 3)
    assert not found(training).keys() & found(held).keys()
    assert found(opened(root, "test", eval_split=asked)) == found(held)
    assert "'validation' is the part of 'train' that is held out" in held.summary
    with pytest.raises(UsageError, match="no split 'train\\+validation'; it has: test, train"):
        opened(root, "train+validation")  # its `test` would be trained on


def test_nothing_is_held_out_for_a_name_that_holds_the_letters_of_test(tmp_path):
    root = write(tmp_path, "train/cat/{1-5}.jpg train/dog/{1-10}.jpg")
    assert len(opened(root, "train", eval_split="latest")) == 15


def test_nothing_is_held_out_of_a_set_that_is_mixed_in(tmp_path):
    own = write(tmp_path / "own", "train/cat/{1-5}.jpg train/dog/{1-10}.jpg")
    more = write(tmp_path / "more", "train/cat/{1-5}.jpg train/dog/{1-5}.jpg")
    config = config_lib.default()
    config.data.dataset, config.data.mix = f"folder:{own}", (f"folder:{more}",)
    assert len(splits.open_training(config)) == 12 + 10


def labels_by_hand(texts: dict[str, str]) -> dict[str, str]:
    """The label of each file that the tables above can mean, read without any rules."""
    known = {}
    for name, text in texts.items():
        for row in text.splitlines():
            one, other, *_ = row.split(",")
            file, label = (other, one) if one in ("cat", "dog") else (one, other)
            stem = os.path.splitext(os.path.basename(file))[0]
            for start in ("", "train/", "images/", "train_images/", "pets/"):
                known[f"{start}{stem}.jpg"] = label
        assert name.lower().endswith(".csv")
    return known


# Each: the files; how the complaint begins, and the hint; `{root}` stands for the folder.
REFUSED = {
    "nothing": ("", "{root} holds no folder with an image in it", "(empty)"),
    "images alone": ("{1-3}.jpg", "{root} holds no folder with an image in it", "(3 images)"),
    "images and a table of another name": (
        "{1-3}.jpg", "{root} holds no folder with an image in it",
        "did you mean folder:{root}/train.csv?", {"train.csv": "1,cat\n", "test.csv": "2,\n"},
    ),
    "one level too deep": (
        "pets/train/cat/1.jpg pets/train/dog/1.jpg pets/test/cat/1.jpg pets/test/dog/1.jpg",
        "{root}/pets holds the splits", "did you mean folder:{root}/pets?",
    ),
    "one level too deep, beside what a zip of macOS holds": (
        "pets/cat/1.jpg pets/dog/1.jpg __MACOSX/pets/._cat",
        "{root} holds one class, 'pets'", "did you mean folder:{root}/pets?",
    ),
    "two levels too deep": (
        "data/pets/Train/cat/1.jpg data/pets/Train/dog/1.jpg",
        "{root} holds one class, 'data'", "did you mean folder:{root}/data/pets?",
    ),
    "one level too deep, beside another folder": (
        "pets/train/cat/1.jpg pets/val/cat/1.jpg docs/figure.jpg",
        "{root}/pets holds the splits", "did you mean folder:{root}/pets?",
    ),
    "splits inside each class": (
        "cat/train/1.jpg cat/test/2.jpg dog/train/1.jpg dog/test/2.jpg",
        "{root} holds splits inside each class", "train/cat, not cat/train",
    ),
    "Kaggle's seg_train and seg_test": (
        "seg_train/seg_train/sea/1.jpg seg_test/seg_test/sea/1.jpg seg_pred/seg_pred/1.jpg",
        "{root} holds seg_pred, seg_test, seg_train, which look like splits", "name them train and",
    ),
    "Kaggle's train_images with a table": (
        "train_images/{1-3}.jpg test_images/1.jpg",
        "{root} holds test_images, train_images, which look like splits",
        "did you mean folder:{root}/train.csv?", {"train.csv": "image_id,label\n1.jpg,0\n"},
    ),
    "splits without classes": (
        "train/{1-3}.jpg test/{1-2}.jpg", "{root}/train holds no folder with an image in it",
        "(test/ (2 images), train/ (3 images))",
    ),
    "an empty class": (
        "cat/{1-3}.jpg dog/1.txt", "class 'dog' is empty: there is no image in {root}/dog",
        "(cat/ (3 images), dog/ (1.txt))",
    ),
    "one class": ("train/cat/1.jpg", "{root}/train holds one class, 'cat'", "cat/ (1 image)"),
    "a class that training lacks": (
        "train/cat/1.jpg train/dog/1.jpg val/cat/1.jpg val/yak/1.jpg",
        "'val' of {root} has a class that 'train' lacks: 'yak'", "yak/ (1 image)",
    ),
    "two parts to evaluate on, and no test": (
        "train/cat/1.jpg train/dog/1.jpg val/cat/1.jpg val/dog/1.jpg dev/cat/1.jpg dev/dog/1.jpg",
        "{root} has no split 'test', and it may be dev or val", "eval_split",
    ),
    "single images": (
        "cat/1.jpg dog/1.jpg", "every class of {root} has one image", "dog/ (1 image)",
    ),
    "no training part": (
        "val/cat/1.jpg val/dog/1.jpg test/cat/1.jpg", "{root} has no split 'train'; it has: test,",
        "val/ (cat/ (1 image), dog/ (1 image))",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_the_tree_that_was_found(tmp_path, layout):
    names, begins, hint, *texts = layout
    root = write(tmp_path / "root", names, *texts)
    root.mkdir(exist_ok=True)
    with pytest.raises(UsageError) as caught:
        [opened(root, split) for split in ("train", "test")]
    message = str(caught.value)
    assert message.startswith(begins.format(root=root))
    assert hint.format(root=root) in message
    assert "\n" not in message
    if "may be" not in begins:
        assert f"; found: {root}" in message
        assert "; it takes PATH/train/CLASS/*.jpg" in message


def test_the_tree_is_bounded_and_printable(tmp_path):
    for i in range(40):
        (tmp_path / f"deep{i:02}" / "er" / "and" / "deeper" / "still").mkdir(parents=True)
        (tmp_path / f"note{i}.txt").touch()
    (tmp_path / "a\x1b[31m").mkdir()
    (tmp_path / "b\nc").mkdir()
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, "train")
    message = str(caught.value)
    assert "a\\x1b[31m/ (empty)" in message
    assert "b\\nc/ (empty)" in message
    assert "38 more folders" in message
    assert "38 more files" in message
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "hint"),
    [("pet", "did you mean 'pets'?"), ("PETS", "did you mean 'pets'?"), ("zoo", "holds: pets")],
)
def test_a_folder_that_is_not_there_names_the_nearest(tmp_path, name, hint):
    (tmp_path / "pets").mkdir()
    with pytest.raises(UsageError, match="No such file or directory") as caught:
        opened(tmp_path / name, "train")
    assert hint in str(caught.value)


def test_a_file_that_is_no_table_is_told(tmp_path):
    write(tmp_path, "pets.zip")
    with pytest.raises(UsageError, match=r"pets\.zip is a file, but not a \.csv; unpack it"):
        opened(tmp_path / "pets.zip", "train")


def test_only_names_without_an_ending_are_opened(tmp_path, monkeypatch):
    """A million files must not be read to be listed."""
    write(tmp_path, "cat/{1-5}.jpg cat/6.txt cat/7 cat/8.jfif dog/{1-5}.png dog/6 dog/notes~")
    (tmp_path / "cat/7").write_text("Paragraphs of a text")
    (tmp_path / "dog/6").write_text("BMW and P5 are no pictures")
    os.mkfifo(tmp_path / "dog/pipe")
    looked = []
    begins = folder.folder_layout.folder_files.begins
    monkeypatch.setattr(
        folder.folder_layout.folder_files,
        "begins",
        lambda path: looked.append(os.path.basename(path)) or begins(path),
    )
    names = found(opened(tmp_path, "train")).keys() | found(opened(tmp_path, "test")).keys()
    assert sorted(looked) == ["6", "7"], "and each once, for both splits"
    assert len(names) == 11
    assert not names & {"cat/7", "dog/6", "dog/pipe"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_each_format_is_known_by_its_content(tmp_path, kind):
    (tmp_path / "image").write_bytes(pictures.encode(pictures.PICTURE, kind))
    assert folder.folder_layout.folder_files.begins(str(tmp_path / "image"))


def test_runs_that_began_by_the_first_rules_keep_them(tmp_path):
    """Names, labels and digests as the version before these rules had them, by running it."""
    write(
        tmp_path, "cat/{1-4}.jpg cat/5.jfif cat/6 cat/@eaDir/1.jpg dog/{1-4}.jpg "
        f"@eaDir/{{1-2}}.jpg {E_NFC}/{{1-2}}.jpg {E_NFD}/{{1-2}}.jpg",
    )  # fmt: skip
    parts = [opened(tmp_path, split, folder_rules=1) for split in ("train", "test")]
    assert [part.name.rpartition("@")[2] for part in parts] == ["f2969411:train", "a87eb14a:test"]
    assert parts[0].class_names == ("@eaDir", "cat", "dog", E_NFD, E_NFC)
    assert list(parts[1].records.names) == [
        f"{E_NFD}/2.jpg", f"{E_NFC}/2.jpg", "dog/1.jpg", "cat/2.jpg", "@eaDir/2.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("start", ["", "train/"])
def test_an_ordinary_folder_is_the_same_by_all_rules(tmp_path, start):
    write(tmp_path, f"{start}cat/{{1-9}}.jpg {start}dog/in/{{1-9}}.png {start}dog/notes.txt")
    write(tmp_path, "test/cat/1.jpg test/dog/1.jpg" if start else "dog/.hidden.jpg")
    for split in ("train", "test", "train[20%:]"):
        old, new = (opened(tmp_path, split, folder_rules=rules) for rules in (1, 0))
        assert old.name == new.name
        assert list(old.records.names) == list(new.records.names)
        assert found(old) == found(new)


def test_parts_of_a_training_folder_that_is_alone_stay_what_they_were(tmp_path):
    """Who evaluates on a part of it holds nothing out."""
    write(tmp_path, "train/cat/{1-20}.jpg train/dog/{1-20}.jpg")
    parts = [opened(tmp_path, split, eval_split="train[80%:]") for split in
             ("train[:80%]", "train[80%:]")]  # fmt: skip
    assert [len(part) for part in parts] == [32, 8]
    assert len(opened(tmp_path, "train", eval_split="train")) == 40
    assert len(opened(tmp_path, "train")) == 32, "the rest is evaluated on, as 'test'"


def test_sets_whose_classes_differ_in_form_alone_are_joined(tmp_path):
    for name, form in (("one", E_NFC), ("two", E_NFD), ("three", "herisson")):
        write(tmp_path / name, f"{form}/{{1-5}}.jpg dog/{{1-5}}.jpg")
    parts = [opened(tmp_path / name, "train") for name in ("one", "two", "three")]
    both = joined.join(parts[:2])
    assert both.class_names == ("dog", E_NFC)
    assert [both[i].label for i in range(len(both))] == [
        part[i].label for part in parts[:2] for i in range(len(part))
    ]
    with pytest.raises(UsageError, match="different classes: only one of them has 'herisson'"):
        joined.join(parts[1:])
