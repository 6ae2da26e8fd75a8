"""tfrecord without TensorFlow: the same examples as TFDS reads, and damage that is found."""

import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from tests import tiny_datasets
from tests.processes import as_nobody
from xception_jax.data import readers
from xception_jax.data.batches import Reader
from xception_jax.data.readers import tfrecord
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import RunError, UsageError

COUNTS = {"train": 23, "validation": 5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, Path]:
    """The same data set under two data folders: as array_record, and as tfrecord in 4 files."""
    array_record, as_tfrecord = (tmp_path_factory.mktemp(name) for name in ("array", "tfrecord"))
    tiny_datasets.prepare(array_record, "tiny_photos", examples=COUNTS)
    version = "tiny_photos/1.0.0"
    tiny_datasets.as_tfrecord(array_record / version, as_tfrecord / version, shards=4)
    return array_record, as_tfrecord


@pytest.fixture
def data_dir(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the tfrecord folder, without an index, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(prepared[1], tmp_path / "data", ignore=shutil.ignore_patterns("record_index"))
    return tmp_path / "data"


def folder_of(data_dir: Path) -> Path:
    return data_dir / "tiny_photos/1.0.0"


def shard(data_dir: Path, number: int = 1) -> Path:
    return folder_of(data_dir) / f"tiny_photos-train.tfrecord-{number:05}-of-00004"


def open_train(data_dir: Path) -> Source:
    return readers.open_split("tiny_photos", "train", str(data_dir))


def assert_same_examples(left, right):
    assert len(left) == len(right)
    for i in range(len(left)):
        assert left[i] == right[i]


@pytest.mark.parametrize(
    "split",
    ["train", "validation", "train[:10%]", "train[10:20]", "train[-7:]", "train+validation",
     "train[15:]+train[:4]"],
)  # fmt: skip
def test_every_split_reads_as_tfds_reads_array_record(prepared, split):
    expected, found = (readers.open_split("tiny_photos", split, str(folder)) for folder in prepared)
    assert_same_examples(found, expected)
    # All features of an example, not only those that training takes.
    assert dict(found.records[0]) == dict(expected.records[0])


def test_training_sees_the_same_batches(prepared):
    images = Images(size=8, crop_area=(0.5, 1.0))
    expected, found = (
        list(
            itertools.islice(
                Reader(open_train(folder), images).training_batches(batch_size=10, seed=3),
                5,
            )
        )
        for folder in prepared
    )
    for left, right in zip(found, expected, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_an_index_out_of_range_is_an_index_error(prepared):
    records = open_train(prepared[1]).records
    for i in (-1, 23):
        with pytest.raises(IndexError):
            records[i]


def test_the_index_is_made_once_and_kept_beside_the_data(data_dir, capsys):
    open_train(data_dir)
    kept = sorted((folder_of(data_dir) / "record_index").iterdir())
    assert [path.name for path in kept] == [f"{shard(data_dir, n).name}.npy" for n in range(4)]
    offsets = np.load(kept[1])
    assert offsets[-1] == shard(data_dir).stat().st_size
    times = [path.stat().st_mtime_ns for path in kept]
    open_train(data_dir)
    assert [path.stat().st_mtime_ns for path in kept] == times
    assert not (data_dir.parent / "cache").exists()
    assert capsys.readouterr().err == ""


def test_only_the_files_of_a_part_are_indexed(data_dir):
    readers.open_split("tiny_photos", "train[:6]", str(data_dir))
    [kept] = (folder_of(data_dir) / "record_index").iterdir()
    assert kept.name == f"{shard(data_dir, 0).name}.npy"


def test_a_file_of_another_size_is_indexed_again(data_dir, prepared, capsys):
    """Two files of as many records change places: their old indexes would fit neither."""
    open_train(data_dir)
    first, second = shard(data_dir, 0), shard(data_dir, 1)
    sizes = first.stat().st_size, second.stat().st_size
    assert sizes[0] != sizes[1]
    first.rename(data_dir / "other")
    second.rename(first)
    (data_dir / "other").rename(second)
    source, expected = open_train(data_dir), open_train(prepared[0])
    said = capsys.readouterr().err.splitlines()
    assert f"{first} is indexed again: it has {sizes[1]:,} bytes, and had {sizes[0]:,}" in said[0]
    assert len(said) == 2
    order = [*range(6, 12), *range(6), *range(12, 23)]
    assert [source[i][:2] for i in range(23)] == [expected[i][:2] for i in order]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-8] + b"\xff" * 8,
        lambda data: b"not an index",
    ],
)
def test_a_damaged_index_is_made_again(data_dir, prepared, capsys, damage):
    open_train(data_dir)
    path, _ = tfrecord.index_paths(str(shard(data_dir)))
    path.write_bytes(damage(path.read_bytes()))
    assert_same_examples(open_train(data_dir), open_train(prepared[0]))
    assert "is indexed again: " in capsys.readouterr().err


@pytest.fixture
def read_only(data_dir, monkeypatch) -> Iterator[Path]:
    """The data in a folder that its user may only read, and a cache folder of the user's own."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        shutil.copytree(data_dir, root / "data")
        (root / "data").chmod(0o755)
        folder_of(root / "data").chmod(0o555)
        (root / "cache").mkdir()
        (root / "cache").chmod(0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield root / "data"
        folder_of(root / "data").chmod(0o755)


def test_the_index_of_a_folder_that_is_only_read_is_kept_in_the_cache(read_only, prepared, capsys):
    source = open_train(prepared[0])
    expected = [source[i] for i in range(23)]
    with as_nobody():
        assert_same_examples(open_train(read_only), expected)
        kept = {path.name for path in read_only.parent.glob("cache/xception_jax/index/*/*")}
        assert kept == {f"{shard(read_only, n).name}.npy" for n in range(4)}
        assert not (folder_of(read_only) / "record_index").exists()
        assert_same_examples(open_train(read_only), expected)
    assert capsys.readouterr().err == ""


def test_where_nothing_can_be_written_it_is_said_and_the_data_is_read(read_only, prepared, capsys):
    (read_only.parent / "cache").chmod(0o555)
    source = open_train(prepared[0])
    expected = [source[i] for i in range(23)]
    with as_nobody():
        assert_same_examples(open_train(read_only), expected)
    [line] = capsys.readouterr().err.splitlines()
    assert f"the index of {folder_of(read_only)} is for this run only" in line
    assert str(read_only.parent / "cache") in line


def test_a_flipped_bit_is_found_when_its_record_is_read(data_dir):
    source = open_train(data_dir)
    offsets = np.load(tfrecord.index_paths(str(shard(data_dir)))[0])
    data = bytearray(shard(data_dir).read_bytes())
    data[int(offsets[2] + offsets[3]) // 2] ^= 4  # in the middle of the file's third record
    shard(data_dir).write_bytes(data)
    for i in range(len(source)):
        if i != 6 + 2:
            source[i]
    with pytest.raises(RunError) as caught:
        source[6 + 2]
    message = str(caught.value)
    assert f"record 2 of {shard(data_dir)}, from byte {offsets[2]:,} on, is damaged" in message
    assert "copy the file from its source again" in message
    assert "\n" not in message


def test_a_flipped_bit_of_a_length_is_found_while_indexing(data_dir):
    data = bytearray(shard(data_dir).read_bytes())
    data[1] ^= 1
    shard(data_dir).write_bytes(data)
    with pytest.raises(RunError, match=r"00001-of-00004 is damaged at record 0, byte 0: .*length"):
        open_train(data_dir)
    assert not tfrecord.index_paths(str(shard(data_dir)))[0].exists(), "no index of what is damaged"


@pytest.mark.parametrize(("keep", "record"), [(-1, 5), (-20, 5), (5, 0), (12, 0), (300, 0)])
def test_a_file_cut_short_is_found(data_dir, keep, record):
    data = shard(data_dir).read_bytes()[:keep]
    shard(data_dir).write_bytes(data)
    with pytest.raises(
        RunError, match=rf"cut short: it ends at byte {len(data):,}, within record {record}; copy"
    ):
        open_train(data_dir)


def test_a_file_cut_short_after_it_was_opened_is_found(data_dir):
    """Reading through mmap would end the process with SIGBUS here."""
    source = open_train(data_dir)
    os.truncate(shard(data_dir), 100)
    with pytest.raises(RunError, match=r"record 5 of .* is damaged"):
        source[11]
    shard(data_dir).unlink()
    with pytest.raises(RunError, match=r"record 5 of .* cannot be read: No such file"):
        source[11]


def test_an_empty_file_and_a_wrong_number_of_records_are_found(data_dir):
    whole = shard(data_dir).read_bytes()
    shard(data_dir).write_bytes(b"")
    with pytest.raises(RunError, match=r"holds 0 records in 0 bytes, and dataset_info.json .* 6;"):
        open_train(data_dir)
    shard(data_dir).write_bytes(whole + tiny_datasets.tfrecord_frame(b"one more"))
    with pytest.raises(RunError, match=r"holds 7 records in .* says 6; copy"):
        open_train(data_dir)


def test_a_missing_file_is_named(data_dir):
    shard(data_dir).unlink()
    with pytest.raises(UsageError, match="00001-of-00004 cannot be read: No such file"):
        open_train(data_dir)


def test_a_format_that_cannot_be_read_names_the_command(data_dir):
    path = folder_of(data_dir) / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "riegeli"}))
    with pytest.raises(UsageError, match=r"is prepared as riegeli, .*-m xception_jax\.prepare"):
        open_train(data_dir)


def test_it_is_read_by_threads(data_dir, prepared):
    source, expected = open_train(data_dir), open_train(prepared[0])
    examples = [expected[i] for i in range(23)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.__getitem__, [*range(23)] * 20)) == examples * 20


def test_processes_index_at_the_same_time_and_read_what_another_has_opened(data_dir, prepared):
    expected = open_train(prepared[0])
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        arguments = [("tiny_photos", "train", str(data_dir))] * 4
        opened = processes.starmap(readers.open_split, arguments, chunksize=1)
        elsewhere = processes.map(opened[0].__getitem__, range(23))
    for source in opened:
        assert_same_examples(source, expected)
    assert elsewhere == [expected[i] for i in range(23)]
    kept = list((folder_of(data_dir) / "record_index").iterdir())
    assert len(kept) == 4, "no drafts are left"


RECORDS = [b"", b"one", bytes(range(5))]
FRAMES = b"".join(map(tiny_datasets.tfrecord_frame, RECORDS))


def read_all(file: Path, offsets: np.ndarray) -> list[bytes]:
    pairs = itertools.pairwise(offsets.tolist())
    return [tfrecord.read_record(str(file), i, *pair) for i, pair in enumerate(pairs)]


@pytest.mark.parametrize("when", ["before it is indexed", "after"])
def test_any_flipped_bit_is_found(tmp_path, monkeypatch, when):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "data"
    file.write_bytes(FRAMES)
    offsets = tfrecord.index({str(file): 3})[str(file)]
    assert read_all(file, offsets) == RECORDS
    index, _ = tfrecord.index_paths(str(file))
    for bit in range(len(FRAMES) * 8):
        data = bytearray(FRAMES)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        in_header = any(0 <= bit // 8 - start < 12 for start in offsets[:-1])
        if when == "after":
            if in_header:  # what the index already knows
                assert read_all(file, offsets) == RECORDS
                continue
        else:
            index.unlink(missing_ok=True)
        with pytest.raises(RunError, match=r"record \d"):
            read_all(file, tfrecord.index({str(file): 3})[str(file)])


@hypothesis.given(st.lists(st.binary(max_size=50), max_size=20))
@hypothesis.settings(max_examples=50, deadline=None)
def test_what_is_framed_is_read(tmp_path_factory, records):
    file = tmp_path_factory.mktemp("framed") / "data"
    file.write_bytes(b"".join(map(tiny_datasets.tfrecord_frame, records)))
    assert read_all(file, tfrecord.index({str(file): len(records)})[str(file)]) == records


def test_many_records_are_announced(tmp_path, capsys):
    file = tmp_path / "data"
    file.write_bytes(tiny_datasets.tfrecord_frame(b"x") * 20_000)
    for said in (f"indexing 20,000 records in {tmp_path}, once only\n", ""):
        assert tfrecord.index({str(file): 20_000})[str(file)][-1] == 20_000 * 17
        assert capsys.readouterr().err == said


def test_a_bucket_is_to_be_mounted(data_dir):
    info = tfds.builder_from_directory(folder_of(data_dir)).info
    info.update_data_dir("gs://bucket/tiny_photos/1.0.0")
    with pytest.raises(UsageError, match=r"gs://bucket/.* mount the bucket as a folder"):
        tfrecord.open_split(info, "train")


@pytest.mark.slow
def test_what_tfds_writes_with_tensorflow_reads_as_tf_data_reads_it(prepared, tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed: '.[prepare]'")
    from tensorflow_datasets.core import file_adapters

    original = tfds.builder_from_directory(prepared[0] / "tiny_photos/1.0.0")
    target = tmp_path / "tiny_photos/1.0.0"
    shutil.copytree(folder_of(prepared[1]), target, ignore=shutil.ignore_patterns("*tfrecord*"))
    raw = original.as_data_source(
        "train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    for number, part in enumerate(np.array_split(np.arange(23), 4)):
        file = target / f"tiny_photos-train.tfrecord-{number:05}-of-00004"
        examples = [(int(i), raw[int(i)]) for i in part]
        file_adapters.TfRecordFileAdapter.write_examples(file, examples)
        assert file.read_bytes() == (folder_of(prepared[1]) / file.name).read_bytes()
    dataset = tfds.load(
        "tiny_photos",
        data_dir=tmp_path,
        split="train[10:20]",
        decoders={"photo": tfds.decode.SkipDecoding()},
    )
    found = readers.open_split("tiny_photos", "train[10:20]", str(tmp_path))
    for ours, theirs in zip(found.records, tfds.as_numpy(dataset), strict=True):
        assert dict(ours) == theirs
