"""Archives that are not whole: found before or while a data set is prepared, and told."""

import gzip
import os
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.processes import finish
from tests.test_prepare import add, needs, prepared, write_imagenet
from tests.tiny_datasets import jpeg
from xception_jax.data import readers
from xception_jax.data.readers import tfds as tfds_reader
from xception_jax.data.readers.needs import Needs
from xception_jax.errors import RunError, UsageError


@pytest.mark.parametrize("size", [9, 11])
def test_an_archive_of_another_size_is_refused_unless_told_otherwise(tmp_path, size):
    archive = tmp_path / "manual/photos.tar"
    archive.parent.mkdir()
    archive.write_bytes(bytes(size))
    with pytest.raises(UsageError) as caught:
        prepared("sample_by_hand", tmp_path / "data", manual_dir=str(archive.parent))
    assert str(caught.value) == (
        f"{archive} has {size} bytes instead of 10: the archive is incomplete or another "
        f"version; download it again, or skip this check with --nocheck_archives"
    )
    assert not (tmp_path / "data").exists()
    found, _ = prepared(
        "sample_by_hand",
        tmp_path / "data",
        manual_dir=str(archive.parent),
        check_archives=False,
    )
    assert found.prepared


def test_a_download_of_imagenet_that_was_cut_short_is_refused(tmp_path):
    """The real builder, beside archives of zeros that take no room on the disk."""
    sizes = {"train": 147_897_477_120, "val": 6_744_924_160}
    paths = {split: tmp_path / f"ILSVRC2012_img_{split}.tar" for split in sizes}
    for split, path in paths.items():
        path.touch()
        os.truncate(path, sizes[split])
    os.truncate(paths["train"], sizes["train"] - 1)
    flags = (
        "--dataset=imagenet2012", f"--manual-dir={tmp_path}", f"--data-dir={tmp_path}/data",
        "--nocheck-disk",
    )  # fmt: skip
    process = finish("prepare", *flags)
    assert process.returncode == 2
    [line] = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert f"{paths['train']} has 147,897,477,119 bytes instead of 147,897,477,120: " in line
    assert str(paths["val"]) not in line
    assert not (tmp_path / "data").exists()
    os.truncate(paths["train"], sizes["train"])
    builder = tfds_reader.find_builder("imagenet2012", str(tmp_path / "data"))
    Needs.of(builder, tmp_path).check(builder, check_disk=False, check_archives=True)


PHOTOS = [jpeg(np.random.default_rng(i), 200, 240, i) for i in range(6)]


def write_archive(path: Path, kind: str) -> None:
    """Writes the photos as a tar, compressed or not, as a zip, or one of them as a gz."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, photo in enumerate(PHOTOS):
                archive.writestr(f"{i}.jpg", photo)
    elif kind == "gz":
        path.write_bytes(gzip.compress(PHOTOS[0]))
    else:
        with tarfile.open(path, "w:" + kind.partition(".")[2]) as archive:
            for i, photo in enumerate(PHOTOS):
                add(archive, f"{i}.jpg", photo)


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    middle = len(data) // 2
    damaged = {
        "cut": data[:middle],
        "begun otherwise": b"<html>" * 100 + data[600:],
        "wrong after its header": data[:10] + b"\xff" * 64 + data[74:],
        "overwritten": data[: middle - 32] + b"\xff" * 64 + data[middle + 32 :],
    }
    path.write_bytes(damaged[kind])


DAMAGED = [
    ("photos.tar", "tar", "cut", "ReadError: .*unexpected end of data"),
    ("photos.tar", "tar", "begun otherwise", "ReadError: file could not be opened .*"),
    ("photos.tar.gz", "tar.gz", "cut", "EOFError: .*ended before the end-of-stream marker.*"),
    ("photos.tar", "tar.xz", "overwritten", "LZMAError: .*Corrupt input data"),
    ("photos.zip", "zip", "cut", "BadZipFile: File is not a zip file"),
    ("photos.zip", "zip", "overwritten", r"BadZipFile: .*Bad CRC-32 for file '\d\.jpg'"),
    ("photos.gz", "gz", "begun otherwise", "BadGzipFile: .*Not a gzipped file.*"),
    ("photos.gz", "gz", "wrong after its header", "error: .*Error -3 while decompressing.*"),
]


@pytest.mark.parametrize(
    ("name", "kind", "harm", "reason"),
    [
        DAMAGED[0],
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (DAMAGED[2], DAMAGED[-1])),
        *(
            pytest.param(*other, marks=[pytest.mark.slow, pytest.mark.long])
            for other in (DAMAGED[1], *DAMAGED[3:-1])
        ),
    ],
)
def test_a_damaged_archive_is_told_in_one_line(tmp_path, name, kind, harm, reason):
    data, path = tmp_path / "data", tmp_path / "manual" / name
    path.parent.mkdir()
    write_archive(path, kind)
    damage(path, harm)
    with pytest.raises(RunError) as caught:
        prepared("sample_archive", data, manual_dir=str(path.parent))
    assert re.fullmatch(
        rf"sample_archive/1\.0\.0 cannot be prepared: an archive in {path.parent} or "
        rf"{data}/downloads is damaged; download it again \({reason}\)",
        str(caught.value),
    )
    assert [path.name for path in data.glob("sample_archive/*")] == [".prepare_1.0.0.lock"]
    with pytest.raises(UsageError, match="sample_archive is not prepared"):
        readers.open_split("sample_archive", "train", str(data))
    write_archive(path, kind)
    found, _ = prepared("sample_archive", data, manual_dir=str(path.parent))
    assert found.splits == {"train": 1 if kind == "gz" else 6}


def test_a_set_of_a_published_size_that_comes_out_smaller_is_removed(tmp_path, monkeypatch):
    """A tar that is damaged where a file begins looks like one that ends there."""
    monkeypatch.setitem(tfds_reader.PUBLISHED, "sample_archive", {"train": 6})
    data, path = tmp_path / "data", tmp_path / "manual/photos.tar"
    path.parent.mkdir()
    write_archive(path, "tar")
    with tarfile.open(path) as archive:
        fourth = archive.getmembers()[3].offset
    content = path.read_bytes()
    path.write_bytes(content[:fourth] + b"\xff" * 512 + content[fourth + 512 :])
    with pytest.raises(RunError, match="has only 3 of 6 in train and was removed"):
        prepared("sample_archive", data, manual_dir=str(path.parent))
    with pytest.raises(UsageError, match="sample_archive is not prepared"):
        readers.open_split("sample_archive", "train", str(data))
    found, _ = prepared("sample_archive", data, manual_dir=str(path.parent), check_archives=False)
    assert found.splits == {"train": 3}
    shutil.rmtree(data)
    path.write_bytes(content)
    assert prepared("sample_archive", data, manual_dir=str(path.parent))[0].splits == {"train": 6}


def test_a_damaged_archive_is_exit_code_1(tmp_path):
    path = tmp_path / "photos.tar"
    write_archive(path, "tar")
    damage(path, "cut")
    process = finish(
        "prepare", "--dataset=sample_archive", "--imports=tests.builders",
        f"--manual-dir={tmp_path}", f"--data-dir={tmp_path}/data", "--json",
    )  # fmt: skip
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith("error: sample_archive/1.0.0 cannot be")
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@needs("tensorflow", "prepare")
@pytest.mark.parametrize(
    ("split", "reason"),
    [
        pytest.param("train", "ReadError: .*", marks=pytest.mark.long),
        ("val", "OutOfRangeError: .*"),
    ],
)
def test_an_archive_of_imagenet_that_ends_too_soon_is_told(tmp_path, split, reason):
    write_imagenet(tmp_path / "tars", classes=3, each=7, validation=5)
    path = tmp_path / f"tars/ILSVRC2012_img_{split}.tar"
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1]
    os.truncate(path, second.offset_data + second.size // 2)
    process = finish(
        "prepare", "--dataset=imagenet2012", f"--manual-dir={tmp_path}/tars",
        f"--data-dir={tmp_path}/data", "--nocheck-archives",
    )  # fmt: skip
    assert process.returncode == 1
    assert re.fullmatch(
        rf"error: imagenet2012/5\.1\.0 cannot be prepared: an archive in {path.parent} or "
        rf"{tmp_path}/data/downloads is damaged; download it again \({reason}\)",
        process.stderr.splitlines()[-1],
    )
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "data/imagenet2012/5.1.0").exists()


@pytest.mark.slow
@needs("tensorflow", "prepare")
def test_an_archive_that_cannot_be_extracted_is_told(tmp_path):
    path = tmp_path / "photos.zip"
    write_archive(path, "zip")
    damage(path, "overwritten")
    with pytest.raises(RunError, match=r"is damaged; .*\(BadZipFile: Bad CRC-32"):
        prepared("sample_extracted", tmp_path / "data", manual_dir=str(tmp_path))
    assert not (tmp_path / "data/sample_extracted/1.0.0").exists()
