"""`prepare` with real builders: what it makes, what it refuses, and what an interruption leaves."""

import contextlib
import fcntl
import importlib.util
import io
import os
import pty
import re
import signal
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from tests import builders
from tests.processes import ROOT, as_nobody, command, finish, result, signal_at
from tests.tiny_datasets import as_tfrecord, jpeg
from xception_jax import prepare
from xception_jax.data import readers
from xception_jax.errors import RunError, UsageError

tfds.disable_progress_bar()


def prepared(dataset: str, data_dir: Path, **flags) -> tuple[prepare.PreparedDataset, str]:
    """Prepares in this process; returns the result and what was said."""
    said = io.StringIO()
    console = Console(file=said, soft_wrap=True, markup=False, highlight=False)
    found = prepare.prepare(dataset, data_dir=str(data_dir), console=console, **flags)
    return found, said.getvalue()


def test_a_data_set_is_prepared_and_opens_by_name(tmp_path):
    flags = (
        "--dataset=sample_photos", f"--data-dir={tmp_path}", "--imports=tests.builders", "--json",
    )  # fmt: skip
    process = finish("prepare", *flags)
    path = tmp_path / "sample_photos/1.0.0"
    expected = {
        "dataset": "sample_photos/1.0.0",
        "path": str(path),
        "file_format": "array_record",
        "splits": {"train": 6, "test": 1},
        "bytes": result(process)["bytes"],
        "prepared": True,
    }
    assert result(process) == expected
    assert f"sample_photos/1.0.0 will be written to {path}\n" in process.stderr
    assert "; free: " in process.stderr
    records = [path for path in path.iterdir() if ".array_record-" in path.name]
    assert len(records) == 2
    source = readers.open_split("sample_photos", "train", str(tmp_path))
    photos = {source[i].encoded: source[i].label for i in range(6)}
    for _, example in map(builders.photo, range(6)):
        assert photos[example["image"]] == example["label"]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again, said = prepared("sample_photos", tmp_path)
    assert again.to_json() == {**expected, "prepared": False}
    assert "is prepared already" in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that runs the tests in the background has SIGINT ignored, in their processes too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_it_leaves_nothing_that_opens_and_starts_again(tmp_path, number, monkeypatch):
    data_dir, pause = tmp_path / "data", tmp_path / "paused"
    monkeypatch.setenv("PAUSE_AT", str(pause))
    arguments = ("--dataset=sample_photos", f"--data_dir={data_dir}", "--imports=tests.builders")
    with subprocess.Popen(
        command("prepare", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        while not pause.exists():
            assert process.poll() is None
            time.sleep(0.05)
        monkeypatch.delenv("PAUSE_AT")
        with pytest.raises(UsageError, match="another process is preparing"):
            prepared("sample_photos", data_dir)
        process.send_signal(number)
        said = process.communicate()[1]
    left = list((data_dir / "sample_photos").glob("incomplete*"))
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert len(left) == 1
    else:
        assert process.returncode == (130 if number == signal.SIGINT else 1)
        assert said == (
            "error: interrupted; nothing half-written is left, and the same command starts again\n"
        )
        assert not left
    with pytest.raises(UsageError, match="sample_photos is not prepared"):
        readers.open_split("sample_photos", "train", str(data_dir))
    # Of another version: not this command's to remove.
    other = data_dir / "sample_photos/incomplete.ABCDEF_2.0.0"
    other.mkdir()
    assert prepared("sample_photos", data_dir)[0].splits == {"train": 6, "test": 1}
    assert list((data_dir / "sample_photos").glob("incomplete*")) == [other]
    assert len(readers.open_split("sample_photos", "train", str(data_dir))) == 6


def test_what_it_needs_by_hand_is_said_and_checked(tmp_path):
    manual = tmp_path / "manual"
    wants = "Register at example.org, and put photos.tar and perhaps notes.txt into the folder."
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            prepared("sample_by_hand", tmp_path, manual_dir=str(manual))
        assert str(caught.value) == (
            f"{manual} has no photos.tar; name the folder with --manual_dir. TFDS says: {wants}"
        )
        manual.mkdir(exist_ok=True)
        (manual / "notes.txt").touch()
    with pytest.raises(UsageError, match=f"{tmp_path}/downloads/manual has no photos.tar"):
        prepared("sample_by_hand", tmp_path)
    assert sorted(tmp_path.rglob("*")) == [manual, manual / "notes.txt"], "nothing was written"
    (manual / "photos.tar").write_bytes(b"0123456789")
    found, said = prepared("sample_by_hand", tmp_path, manual_dir=str(manual))
    assert found.prepared
    assert f"manually, in {manual}: {wants}\n" in said
    assert "disk: about 10 bytes" in said


def test_a_disk_too_small_is_refused_unless_told_otherwise(tmp_path):
    with pytest.raises(
        UsageError, match=r"free, and sample_huge takes about 2048\.00 PiB; .*--nocheck_disk"
    ):
        prepared("sample_huge", tmp_path)
    assert not list(tmp_path.iterdir())
    found, said = prepared("sample_huge", tmp_path, check_disk=False)
    assert found.prepared
    assert "downloads: up to 1024.00 PiB, of 1 files from example.org" in said


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file cannot be written to; name another --data_dir"):
        prepared("sample_photos", tmp_path / "file" / "data")
    with as_nobody(), pytest.raises(UsageError, match=r"/etc cannot be written to; name another"):
        prepared("sample_photos", Path("/etc/data"))


def test_a_folder_without_its_metadata_is_refused(tmp_path):
    folder = tmp_path / "sample_photos/1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(UsageError, match=f"{folder} is there and holds no dataset_info.json"):
        prepared("sample_photos", tmp_path)


def test_a_builder_that_fails_says_why_in_one_line(tmp_path):
    with pytest.raises(
        RunError, match=r"^sample_empty/1\.0\.0 cannot be prepared: .*No examples were yielded\.$"
    ):
        prepared("sample_empty", tmp_path)
    with pytest.raises(UsageError, match="sample_empty is not prepared"):
        readers.open_split("sample_empty", "train", str(tmp_path))


def test_what_is_prepared_as_tfrecord_is_left_as_it_is(tmp_path):
    first, _ = prepared("sample_photos", tmp_path / "first")
    copy = tmp_path / "copy/sample_photos/1.0.0"
    as_tfrecord(first.path, copy, shards=2)
    found, said = prepared("sample_photos", tmp_path / "copy")
    assert (found.path, found.file_format, found.prepared) == (copy, "tfrecord", False)
    assert f"is prepared already, in {copy}" in said


def test_a_terminal_shows_tfds_progress(tmp_path):
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    with subprocess.Popen(
        command("prepare", "--dataset=optical_digits", f"--data_dir={tmp_path}"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=inside,
    ) as process:  # fmt: skip
        os.close(inside)
        said = b""
        # On Linux, reading a terminal that no process has open ends with an error.
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 65536):
                said += part
    os.close(terminal)
    assert process.returncode == 0
    assert b"Generating splits...:   0%|" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--dataset is needed"),
        (["--dataset=optical_digit"], "no data set 'optical_digit' "),
        (["--dataset=x", "--imports=tests.nowhere"], "--imports=tests.nowhere: No module named"),
        (["--dataset=x", "--data-dri=y"], "Unknown command line flag 'data_dri'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message):
    process = finish("prepare", *flags)
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("dataset", "flag", "env", "message"),
    [
        (
            "optical_digits",
            "--data-dir=gs://b/data",
            {},
            ".* a URL .* mount the bucket .*",
        ),
        (
            "sample_by_hand",
            "--data-dir=file:///tmp",
            {},
            ".* a URL .* without file://",
        ),
        (
            "sample_by_hand",
            "--manual-dir=s3://tars",
            {},
            ".* a URL .* mount the bucket .*",
        ),
        ("sample_by_hand", "--json", {"TFDS_DATA_DIR": "gs://b"}, "gs://b is not on .* --data_dir"),
    ],
)
def test_a_bucket_is_refused(tmp_path, dataset, flag, env, message):
    process = finish(
        "prepare", f"--dataset={dataset}", "--imports=tests.builders", flag,
        env={"TFDS_DATA_DIR": str(tmp_path), **env},
    )  # fmt: skip
    assert process.returncode == 2
    [line] = process.stderr.splitlines()
    assert re.fullmatch(f"error: {message}", line)
    assert not process.stdout
    assert not list(tmp_path.iterdir())


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def without(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(installed(module), reason=f"{module} is installed")


def needs(module: str, extra: str) -> pytest.MarkDecorator:
    reason = f"{module} is not installed: pip install '.[{extra}]'"
    return pytest.mark.skipif(not installed(module), reason=reason)


@without("tensorflow")
def test_a_builder_that_needs_tensorflow_names_the_extra(tmp_path):
    for split in ("train", "val"):
        (tmp_path / f"ILSVRC2012_img_{split}.tar").touch()
    with pytest.raises(
        UsageError, match=r"imagenet2012/5\..* needs tensorflow .*xception_jax\[prepare\]"
    ):
        prepared("imagenet2012", tmp_path / "data", manual_dir=str(tmp_path), check_archives=False)
    assert not list(tmp_path.glob("data/imagenet2012/*[!k]"))


@without("apache_beam")
def test_beam_options_and_beam_builders_name_the_extra(tmp_path):
    for options in ([], ["direct_num_workers=2"]):
        with pytest.raises(UsageError, match=r"xception_jax\[beam\]"):
            prepared("sample_beam", tmp_path, beam_options=options)


@pytest.mark.slow
@needs("apache_beam", "beam")
def test_the_example_of_the_docs_runs_on_beams_direct_runner(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    [options] = re.findall(r"--beam-options=\S+", (ROOT / "docs/data.md").read_text())
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/my_photos.py").write_text(code)
    photos = {}
    for split, count in (("train", 6), ("test", 2)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for i in range(count):
            name = ("cat", "dog")[i % 2]
            photo = jpeg(np.random.default_rng(i), 20, 24, i)
            (tmp_path / f"photos/{split}/{name}.{i}.jpg").write_bytes(photo)
            photos[split, photo] = name
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HOME": str(tmp_path)}
    flags = (
        "--dataset=my_photos", "--imports=my_package.my_photos", f"--data-dir={tmp_path}/data",
        "--json",
    )  # fmt: skip
    refused = finish("prepare", *flags, "--beam-options=direct_running_mode=many", env=env)
    assert refused.returncode == 2
    assert "invalid choice: 'many'" in refused.stderr
    process = finish("prepare", *flags, options.replace("=8", "=2"), env=env)
    assert result(process)["splits"] == {"train": 6, "test": 2}
    found = {}
    for split in ("train", "test"):
        source = readers.open_split("my_photos", split, str(tmp_path / "data"))
        for i in range(len(source)):
            encoded, label, _ = source[i]
            found[split, encoded] = source.class_names[label]
    assert found == photos


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def write_imagenet(folder: Path, *, classes: int, each: int, validation: int) -> None:
    """The two archives as ImageNet's site gives them: a tar of a tar a class, and a flat one."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    synsets = tfds.builder_cls("imagenet2012")(data_dir=folder).info.features["label"].names
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for number, synset in enumerate(synsets[:classes]):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for i in range(each):
                    add(archive, f"{synset}_{i}.JPEG", jpeg(rng, 90, 100 + i, number))
            add(train, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for i in range(1, validation + 1):
            add(archive, f"ILSVRC2012_val_{i:08}.JPEG", jpeg(rng, 80, 90, i))


@pytest.mark.slow
@needs("tensorflow", "prepare")
def test_imagenet_from_its_archives_to_an_evaluation(tmp_path):
    write_imagenet(tmp_path / "tars", classes=3, each=7, validation=5)
    data, run = tmp_path / "data", tmp_path / "run"
    flags = (
        "--dataset=imagenet2012", f"--manual-dir={tmp_path}/tars", f"--data-dir={data}", "--json",
    )  # fmt: skip
    refused = finish("prepare", *flags)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/tars/ILSVRC2012_img_tr")
    assert not data.exists()
    made = result(finish("prepare", *flags, "--nocheck-archives"))
    assert made["splits"] == {"train": 21, "validation": 5}
    assert made["file_format"] == "array_record"
    # The labels of the first validation images, which TFDS has from ImageNet's development kit.
    source = readers.open_split("imagenet2012", "validation", str(data))
    by_name = {source.records[i]["file_name"].decode(): source[i].label for i in range(5)}
    kit = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    assert [source.class_names[by_name[name]] for name in sorted(by_name)] == kit[:5]

    overrides = {
        "data.data_dir": data, "data.batch_size": 8, "data.image_size": 71, "data.threads": 2,
        "duration": "6 steps", "mesh.data": 1, "model.width": 0.1, "model.middle_blocks": 1,
        "model.bn_virtual_batch": 8, "eval.every": "6 steps", "checkpoint.every": "2 steps",
        "log.every": "1 step",
    }  # fmt: skip
    train = (
        "--config=configs/imagenet.py", f"--workdir={run}",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    )  # fmt: skip
    code, said = signal_at(2, signal.SIGTERM, "main", *train)
    assert code == 0, said
    stopped = int(said.split("stopped at step ")[1].split()[0])
    assert 2 <= stopped < 6
    resumed = finish("main", *train, "--json")
    assert f"continues from the checkpoint of step {stopped}" in resumed.stderr
    found = result(resumed)
    assert (found["step"], found["examples"]) == (6, 5)
    evaluated = result(finish("evaluate", f"--workdir={run}", "--json"))
    assert evaluated["examples"] == 5
    assert evaluated["loss"] == pytest.approx(found["loss"], rel=1e-6)
