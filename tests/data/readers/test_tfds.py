"""Data sets by name: what opens, and what is said of what does not."""

import pytest

from tests import tiny_datasets
from xception_jax.data import readers
from xception_jax.data.readers import tfds as tfds_reader
from xception_jax.data.render import decode
from xception_jax.data.source import Source
from xception_jax.errors import RunError, UsageError


def test_any_prepared_data_set_opens_by_name(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_photos", examples={"train": 12, "validation": 5})
    source = readers.open_split("tiny_photos", "train", str(tmp_path))
    assert len(source) == 12
    assert len(source.class_names) == 4
    assert source.name == "tiny_photos/1.0.0:train"
    encoded, label, name = source[3]
    assert name == "example 3 of tiny_photos/1.0.0:train"
    assert encoded[:2] == b"\xff\xd8", "the image is left encoded"
    assert decode.decode(encoded).shape[2] == 3
    assert 0 <= label < 4
    assert len(readers.open_split("tiny_photos", "train[:25%]", str(tmp_path))) == 3


def test_an_unknown_data_set_suggests_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"no data set 'optical_digit'.*'optical_digits'"):
        readers.open_split("optical_digit", "train", str(tmp_path))


def test_a_data_set_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(UsageError) as caught:
        readers.open_split("imagenet2012", "train", str(tmp_path))
    message = str(caught.value)
    assert "\n" not in message
    assert f"imagenet2012 is not prepared in {tmp_path}" in message
    command = f"python -m xception_jax.prepare --dataset=imagenet2012 --data_dir={tmp_path}"
    assert command in message
    assert "--manual_dir" in message


def test_an_unknown_split_names_those_there_are():
    with pytest.raises(UsageError, match="no split 'validation'; it has: test, train"):
        readers.open_split("optical_digits", "validation")


def test_an_empty_split_is_refused():
    with pytest.raises(UsageError, match=r"'train\[:0\]' of optical_digits .* is empty"):
        readers.open_split("optical_digits", "train[:0]")


def test_two_images_an_example_are_refused(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_pairs", examples={"train": 2}, extra_image=True)
    with pytest.raises(UsageError, match="tiny_pairs has 2 features of the kind image"):
        readers.open_split("tiny_pairs", "train", str(tmp_path))


def test_the_pair_for_supervised_learning_is_taken_where_there_are_more(tmp_path):
    tiny_datasets.prepare(
        tmp_path, "tiny_keyed", examples={"train": 2}, extra_image=True, keys=("photo", "kind")
    )
    source = readers.open_split("tiny_keyed", "train", str(tmp_path))
    assert (source.image_key, source.label_key) == ("photo", "kind")


def test_a_label_out_of_range_is_found_on_the_host(digits):
    source = digits["train"]
    bad = Source(
        source.name, source.class_names[:3], source.records, source.image_key, source.label_key
    )
    index = next(i for i in range(len(source)) if source[i].label == 7)
    with pytest.raises(RunError, match=rf"example {index} .* has label 7, outside 0\.\.\.2"):
        bad[index]


@pytest.mark.parametrize("name", ["huggingface:mnist", "kaggle:cats/all:1.0.0", "someone:photos"])
def test_no_name_has_code_fetched_and_run(name):
    """Such a name may stand in a stranger's `config.json`."""
    with pytest.raises(UsageError, match="one of TFDS' community, whose code it would download"):
        readers.open_split(name, "train")


@pytest.mark.parametrize("name", ["npz:a.npz", "npz:/a/b.npz", "npz:a.csv", "npz:1.npz"])
def test_a_prefix_of_a_file_that_is_not_imported_asks_for_it(name):
    for act in (readers.open_split, tfds_reader.metadata):  # as a run does, and a plan
        with pytest.raises(UsageError) as caught:
            act(name, "train")
        assert str(caught.value) == (
            f"no data set {name!r}: nothing has registered the prefix 'npz:'; if a file of yours "
            f"does, give it here too: --imports=FILE"
        )


def test_a_version_is_no_prefix():
    with pytest.raises(UsageError, match=r"^no data set 'nowhere:1\.0\.0' in "):
        readers.open_split("nowhere:1.0.0", "train")
    with pytest.raises(UsageError, match=r"^data set 'mnist:3' cannot be opened: "):
        readers.open_split("mnist:3", "train")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/data/pets", "/data/pets"), ("~/pets", "~/pets"), ("./pets", "./pets"),
        ("../pets", "../pets"), ("C:\\pets", "C:\\pets"), ("pets.csv", "pets.csv"),
        ("Folder:pets", "pets"), ("dir:/pets", "/pets"), ("file:///data/pets", "/data/pets"),
        ("data/pets", "data/pets"), ("data", "data"),
    ],
)  # fmt: skip
def test_a_path_asks_for_the_folder_that_it_may_be(tmp_path, monkeypatch, given, meant):
    (tmp_path / "data/pets/cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        readers.open_split(given, "train")
    assert str(caught.value).startswith(f"no data set {given!r}; did you mean folder:{meant}? ")


def test_a_folder_of_tfds_is_a_name_still(tmp_path):
    """Prepared by a builder that is not imported, in the folder of its name."""
    tiny_datasets.prepare(tmp_path, "tiny_named", examples={"train": 2})
    (tmp_path / "mnist").mkdir()
    assert len(readers.open_split("tiny_named", "train", str(tmp_path))) == 2
    with pytest.raises(UsageError, match="mnist is not prepared"):
        readers.open_split("mnist", "train", str(tmp_path))
