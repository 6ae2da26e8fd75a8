"""Reads that fail as a disk or a network fails them: tried again, and never another example."""

import dataclasses
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from absl import flags as absl_flags

from tests import tiny_datasets
from tests.processes import ROOT, digests, finish, result
from xception_jax.data import readers
from xception_jax.data.batches import Host, Reader
from xception_jax.data.readers import folder
from xception_jax.data.render import presets
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError, ReadError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """One set of each kind that is read."""
    root = tmp_path_factory.mktemp("data")
    tiny_datasets.prepare(root, "tiny_photos", examples={"train": 16})
    tiny_datasets.prepare(root / "made", "tiny_records", examples={"train": 16})
    tiny_datasets.as_tfrecord(root / "made/tiny_records/1.0.0", root / "tiny_records/1.0.0", 1)
    rng = np.random.default_rng(0)
    for i in range(16):
        path = root / "photos/train" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_datasets.jpeg(rng, 20, 24, i))
    return root


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Path:
    """The library that makes reads fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    library = tmp_path_factory.mktemp("shim") / "failing_reads.so"
    source = Path(__file__).with_name("failing_reads.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def test_hiccups_of_every_kind_of_data_change_nothing_and_a_lasting_one_names_the_file(
    data, failing, tmp_path
):
    process = subprocess.run(
        [sys.executable, "-m", "tests.data.read_hiccups", str(data)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "LD_PRELOAD": str(failing), "FAIL_PLAN": str(tmp_path / "plan"),
             "FAIL_PATH": "none", "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.splitlines()[-1])
    names = {
        "tiny_photos": "tiny_photos-train.array_record-00000-of-00001",
        "tiny_records": "tiny_records-train.tfrecord-",
        "folder:photos": str(data / "photos/train/"),
    }
    assert report.keys() == names.keys()
    for name, found in report.items():
        assert found["again"] == [True] * 8, name
        assert found["same batches"], name
        assert found["labels"], name
        assert "cannot be read: " in found["line"], name
        assert "Input/output error" in found["line"], name
        assert names[name] in found["line"]
        assert "Nothing is known to be wrong with the data" in found["line"]
    assert "cannot be read at present" in process.stderr


def test_a_full_table_of_open_files_is_no_fault_of_a_file(data, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kinds = {name: readers.open_split(name, "train", str(data)) for name in
             ("tiny_photos", "tiny_records", "folder:photos")}  # fmt: skip
    expected = {name: source[3].label for name, source in kinds.items()}
    for name, source in kinds.items():
        hurried = dataclasses.replace(source, patience=0.01)
        files = getattr(source.records, "data_source", None)
        if files is not None:
            files.__setstate__(files.__getstate__())  # its readers hold their files open
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(ReadError, match="Too many open files"):
                hurried[3]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert hurried[3].label == expected[name]


def test_a_file_that_is_gone_or_denied_or_a_folder_is_skipped(tmp_path):
    files = folder.Files(str(tmp_path), ["gone.jpg", "folder.jpg", "loop.jpg"], np.zeros(3, int))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    source = Source("three", ("a", "b"), files, "image", "label", describe=files.describe)
    for index, reason in enumerate(("No such file", "Is a directory", "Too many levels")):
        with pytest.raises(ExampleError, match=f"cannot be read: {reason}"):
            source[index]


def test_a_lack_of_memory_is_no_fault_of_a_file(data):
    """The decoder cannot have its memory, at first."""
    source = readers.open_split("folder:photos", "train", str(data))
    images = Images(size=8)
    reader = Reader(source, images)
    failures = iter([MemoryError(), MemoryError()])
    render = partial(presets.render_center, images)

    def short_of_memory(example, into):
        for failure in failures:
            raise failure
        render(example, into)

    batch, whole = reader._room(1), reader._room(1)
    reader._fill_row(batch, 0, [3], short_of_memory)
    reader._fill_row(whole, 0, [3], render)
    assert not batch["skipped"][0]
    for name in batch:
        np.testing.assert_array_equal(batch[name], whole[name])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_reading_in_a_worker_process_ends_the_run_and_replaces_nothing(data, workers):
    source = dataclasses.replace(
        readers.open_split("folder:photos", "train", str(data)),
        records=Denied(16), patience=0.01, describe="memory of example {}".format,
    )  # fmt: skip
    images = Images(size=8, crop_area=(0.5, 1.0))
    absl_flags.FLAGS.mark_as_parsed()  # Grain asks for that before it starts a process
    reader = Reader(source, images, Host(workers=workers))
    with pytest.raises(ReadError, match="memory of example") as caught:
        list(itertools.islice(reader.training_batches(batch_size=4, seed=0), 1))
    assert "Input/output error" in str(caught.value)


@pytest.mark.slow
def test_a_run_over_hiccups_is_the_same_run(failing, undisturbed, flags, tmp_path):
    plan = tmp_path / "plan"
    plan.write_text(f"4 {errno.EIO}")
    given = flags(tmp_path / "run", data__in_memory=0)
    hiccups = {"LD_PRELOAD": str(failing), "FAIL_PLAN": str(plan), "FAIL_PATH": "array_record-"}
    process = finish("main", *given, "--json", env=hiccups)
    assert result(process) == json.loads((undisturbed / "result.json").read_text())
    assert plan.read_text().split()[0] == "0", "all reads that were to fail did"
    assert "cannot be read at present" in process.stderr
    assert digests(tmp_path / "run", 12) == digests(undisturbed, 12)
    assert not (tmp_path / "run/skipped.jsonl").exists()


class Denied:
    """Records that are pages which no process has mapped: a real EIO, each time."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        with open("/proc/self/mem", "rb", buffering=0) as file:
            return {"image": file.read(8), "label": 0}
