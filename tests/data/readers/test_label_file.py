"""Tables of labels, as spreadsheets, pandas and people write them."""

import os
from pathlib import Path

import pytest

from tests.data.readers.test_folder_layouts import found, opened, write
from xception_jax.data.readers import label_file
from xception_jax.errors import UsageError

# Ten images of two classes.
IMAGES = "a{1-5}.jpg b{1-5}.jpg"
ROWS = [
    f"{kind}{i}.jpg,{label}" for i in range(1, 6) for kind, label in (("a", "cat"), ("b", "dog"))
]
CLASSES = {"cat": [f"a{i}.jpg" for i in range(1, 6)], "dog": [f"b{i}.jpg" for i in range(1, 6)]}


def read(root: Path, table: str | bytes, images: str = IMAGES) -> label_file.Listing:
    """The one split of a table beside images."""
    write(root, images)
    (root / "labels.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
    [listing] = label_file.read(str(root / "labels.csv")).values()
    return listing


@pytest.mark.parametrize(
    "table",
    [
        "\n".join(["file,label", *ROWS]),
        "\n".join(ROWS),
        "\r\n".join(["Image Id,Label", *ROWS, ""]),
        "\r".join(["id,breed", *ROWS]),
        "\n".join(["", "filename;class", *(row.replace(",", ";") for row in ROWS), "", ";"]),
        "\n".join(["filename\tclass", *(row.replace(",", "\t") for row in ROWS)]),
        "\n".join(["file,label", *(row.replace(".jpg", "") for row in ROWS)]),
        "\n".join(["file,label", *(row.replace(".jpg", ".JPG") for row in ROWS)]),
        "\n".join(["file,label", *(f"C:\\Users\\me\\my pets\\{row}" for row in ROWS)]),
        "\n".join(["file,label", *(f"./{row}" for row in ROWS)]),
        "\n".join(['"file", "label"', *('"{}", "{}"'.format(*row.split(",")) for row in ROWS)]),
        "\n".join(["label,image_path", *(",".join(row.split(",")[::-1]) for row in ROWS)]),
        "\n".join(",".join(row.split(",")[::-1]) for row in ROWS),
        "\n".join(["width,label,file", *(f"9,{r.split(',')[1]},{r.split(',')[0]}" for r in ROWS)]),
        "\n".join(["id,name,label", *(f"{r.split(',')[0]},Rex,{r.split(',')[1]}" for r in ROWS)]),
        "\n".join(["id,name", *ROWS]),
        "\n".join(["photo_no,kind of animal", *ROWS]),
        "\ufeff" + "\n".join(["file,label", *ROWS]),
        "\n".join(["file,label", *ROWS]).encode("utf-16"),
        "\n".join(["file,label", *reversed(ROWS)]),
    ],
    ids=[
        "header", "no header", "windows", "old mac", "semicolons", "tabs", "no endings", "capitals",
        "windows paths", "dot", "quotes", "label first", "label first, no header", "more columns",
        "an id beside a name", "an id, and the name of the class", "unknown header", "BOM",
        "UTF-16", "another order",
    ],
)  # fmt: skip
def test_the_same_labels_however_they_are_written(tmp_path, table):
    listing = read(tmp_path, table)
    assert listing.classes == CLASSES
    assert not listing.missing
    assert not [path for path in listing.others if path.endswith("labels.csv")]
    assert opened(tmp_path, "train").name.partition("@")[2] == "533fc8bc:train"


def test_each_oddity_is_told_in_a_line(tmp_path):
    write(tmp_path, "c.jpg d/e.jpg notes.txt")
    table = "\n".join(["file,label", *ROWS, ROWS[0], ROWS[3], "gone,cat", "a9.jpg,", ",dog"])
    listing = read(tmp_path, table)
    assert listing.classes == CLASSES
    assert listing.missing == ["gone"]
    assert listing.notes == (
        f"{tmp_path}/labels.csv: 13 rows, columns 'file', 'label'",
        "rows that repeat another row: 2",
        "rows without a file or a label, left out: 2, for example line 15",
        "files in the table that do not exist: 1, for example gone",
        "images that are not in the table, left out: 2, for example c.jpg, d/e.jpg",
    )
    assert [os.path.basename(path) for path in listing.others] == ["notes.txt"]
    source = opened(tmp_path, "train", max_skipped=0.1)
    assert source.summary.splitlines()[1:] == list(listing.notes)


def test_as_many_may_be_missing_as_may_be_skipped(tmp_path):
    read(tmp_path, "\n".join(["file,label", *ROWS, "gone.jpg,cat", "lost.jpg,dog"]))
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, "train")
    assert str(caught.value) == (
        f"2 of the 12 files in {tmp_path}/labels.csv are missing, for example 'gone.jpg': more "
        f"than the allowed share of 0.001. Unpack all of them, or raise config.data.max_skipped"
    )
    assert len(opened(tmp_path, "train", max_skipped=0.2)) == 8


def test_a_path_that_contradicts_a_file_does_not_mean_it(tmp_path):
    """`cat/1.jpg` is missing; `dog/1.jpg` is another image, with another label."""
    listing = read(
        tmp_path, "file,label\ncat/1.jpg,cat\ndog/1.jpg,dog\ncat/2.jpg,cat\n",
        "dog/1.jpg cat/2.jpg",
    )  # fmt: skip
    assert listing.classes == {"cat": ["cat/2.jpg"], "dog": ["dog/1.jpg"]}
    assert listing.missing == ["cat/1.jpg"]


def test_the_very_spelling_is_preferred(tmp_path):
    listing = read(tmp_path, "file,label\na,cat\nA.jpg,dog\nb.jpg,dog\n", "a.jpg A.jpg b.jpg")
    assert listing.classes == {"cat": ["a.jpg"], "dog": ["A.jpg", "b.jpg"]}


def test_an_order_is_that_of_names_and_changed_labels_are_other_data(tmp_path):
    parts = []
    for number, rows in enumerate([ROWS, ROWS[::-1], [*ROWS[:-1], "b5.jpg,cat"]]):
        root = tmp_path / str(number)
        root.mkdir()
        read(root, "\n".join(rows))
        parts.append(opened(root, "train+test"))
    names = [part.name.rpartition("@")[2] for part in parts]
    assert names[0] == names[1] != names[2]
    assert found(parts[0]) == found(parts[1])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "{path} is empty; it takes a row for each image: file, label"),
        ("x.jpg,cat\ny.jpg,dog", "{path} names no file that is there, as 'x.jpg'; found: {root}/"),
        ("file,label\na1.jpg,cat\na2.jpg,cat", "{path} names one class, 'cat'; two are needed;"),
        ("file,label\na1.jpg,cat\nb1,dog\na1,dog", "{path} lines 2 and 4 contradict each other "
         "about a1.jpg: cat and dog"),
        ("no,cat,dog\na1.jpg,1,0", "{path} has 3 columns (no, cat, dog); name the one with the fi"),
        ("a1.jpg\nb1.jpg", "{path} has 1 column (a1.jpg); name the one with the files 'file' and"),
        ("file,label\na1,cat\nc/d,dog\nd,dog\n", "{path} line 4: 'd' may be c/d.jpg or c/d.png; "),
        (b"file,label\na1.jpg,h\xe9risson\n", "{path} is not UTF-8 in line 2; save it as UTF-8"),
        (b'file,label\n"a1.jpg,cat\n' + 200_000 * b"x", "{path} cannot be read in line "),
    ],
)  # fmt: skip
def test_what_will_not_do_is_one_line(tmp_path, table, message):
    path = tmp_path / "labels.csv"
    if "c/d" in str(table):
        write(tmp_path, "c/d.jpg c/d.png")
        table = table.replace("c/d,dog\n", "b1,dog\n")
    write(tmp_path, IMAGES)
    path.write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(UsageError) as caught:
        opened(tmp_path, "train")
    assert str(caught.value).startswith(message.format(path=path, root=tmp_path))
    assert "\n" not in str(caught.value)
