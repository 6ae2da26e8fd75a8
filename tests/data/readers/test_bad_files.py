"""Examples that cannot be used: replaced, masked, counted, named; and the order holds."""

import functools
import itertools
import json
import os
import shutil
from pathlib import Path

import cv2
import hypothesis
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import strategies as st

from tests import pictures, tiny_datasets
from tests.processes import digests, finish, result
from xception_jax.data import readers, skips
from xception_jax.data.batches import Host, HostShard, Reader
from xception_jax.data.order import Sampling
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.errors import ExampleError, RunError
from xception_jax.utils.text import as_utf8, printable

CROPPED = Images(size=8, crop_area=(0.3, 1.0), crop_aspect=(0.75, 4 / 3))


@functools.cache
def encoded(record: int) -> bytes:
    pixels = np.random.default_rng(record).integers(0, 255, (9, 11, 3), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def numbered(count: int, bad: frozenset[int] = frozenset()) -> Source:
    """Pictures whose label is their number; the bad ones are cut short or have a wrong label."""
    records = [
        {"image": encoded(i)[: 99 if i in bad and i % 2 else None],
         "label": count if i in bad and not i % 2 else i}
        for i in range(count)
    ]  # fmt: skip
    names = tuple(map(str, range(count)))
    return Source("numbered", names, records, "image", "label")


def taken(workdir: Path, most: float = 1.0) -> tuple[skips.Skips, list[str]]:
    said: list[str] = []
    return skips.Skips(workdir, most, said.append), said


def logged(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "skipped.jsonl").read_text().splitlines()]


def batches(source, count, *, images=CROPPED, host=None, sampling=None, **options):
    reader = Reader(source, images, host or Host(), sampling or Sampling())
    return list(itertools.islice(reader.training_batches(**options), count))


def replacement(record: int, count: int, bad: frozenset[int]) -> int:
    return next(k % count for k in range(record, record + count) if k % count not in bad)


@hypothesis.given(count=st.integers(2, 15), data=st.data())
@hypothesis.settings(max_examples=4, deadline=None)
def test_a_bad_record_is_replaced_by_the_next_good_one_and_by_nothing_else(
    tmp_path_factory, count, data
):
    bad = data.draw(st.frozensets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    workdir = tmp_path_factory.mktemp("run")
    kept, _ = taken(workdir)
    options = {"batch_size": count, "seed": 3, "host": Host(threads=2)}
    clean = batches(numbered(count), 2, **options)
    found = batches(numbered(count, bad), 2, **options, skips=kept)
    for one, other in zip(clean, found, strict=True):
        expected = [replacement(k, count, bad) for k in one["label"]]
        assert other["label"].tolist() == expected
        untouched = [i for i, k in enumerate(one["label"]) if k not in bad]
        np.testing.assert_array_equal(one["image"][untouched], other["image"][untouched])
        assert other.keys() == {"image", "label", "mask"}
        assert other["mask"].all()
    entries = logged(workdir)
    assert sorted(entry["record"] for entry in entries) == sorted(bad), "each is named once"
    for entry in entries:
        assert entry["split"] == "numbered"
        assert entry["name"] == f"example {entry['record']} of numbered"
        fault = "cannot be decoded" if entry["record"] % 2 else f"has label {count}, outside"
        assert entry["reason"].startswith(fault)


def test_the_crop_is_that_of_the_place_in_the_stream(tmp_path):
    """The replacement is cropped as the record that stood there would have been."""
    same = encoded(0)
    records = [{"image": b"" if i == 3 else same, "label": i} for i in range(6)]
    whole = [{"image": same, "label": i} for i in range(6)]
    [with_bad], [without] = (
        batches(
            Source("same", tuple("abcdef"), part, "image", "label"), 1,
            batch_size=6, seed=0, skips=taken(tmp_path)[0],
        )
        for part in (records, whole)
    )  # fmt: skip
    np.testing.assert_array_equal(with_bad["image"], without["image"])
    assert sorted(with_bad["label"]) == [0, 1, 2, 4, 4, 5]


@pytest.mark.parametrize(("hosts", "threads"), [(1, 3), (2, 1), (3, 2)])
def test_hosts_threads_and_resuming_change_nothing_with_bad_records(tmp_path, hosts, threads):
    source = numbered(30, frozenset((1, 2, 3, 11, 20, 29)))
    options = {"batch_size": 12, "seed": 5}
    whole = batches(source, 5, **options, skips=taken(tmp_path)[0])
    for first in (0, 2):
        shares = [
            batches(
                source, 5 - first, **options, first_step=first, host=Host(threads),
                shard=HostShard(host, hosts), skips=taken(tmp_path)[0],
            )
            for host in range(hosts)
        ]  # fmt: skip
        for step, parts in enumerate(zip(*shares, strict=True), first):
            for name, array in whole[step].items():
                joined = np.concatenate([part[name] for part in parts])
                np.testing.assert_array_equal(joined, array)


def test_what_is_kept_in_memory_is_skipped_alike(tmp_path):
    source = numbered(30, frozenset((0, 1, 11, 29)))
    options = {"batch_size": 12, "seed": 5, "images": Images(size=8)}
    found = []
    for memory in (0, 10**6):
        kept, _ = taken(tmp_path / str(memory))
        (tmp_path / str(memory)).mkdir()
        made = batches(source, 6, **options, skips=kept, host=Host(memory=memory))
        found.append((made, sorted(entry["record"] for entry in logged(tmp_path / str(memory)))))
    assert found[0][1] == found[1][1] == [0, 1, 11, 29]
    for streamed, held in zip(found[0][0], found[1][0], strict=True):
        for name, array in streamed.items():
            np.testing.assert_array_equal(array, held[name])


def test_evaluation_masks_what_cannot_be_used_and_keeps_the_rest(tmp_path):
    bad = frozenset((0, 3, 7, 8))
    kept, said = taken(tmp_path)
    found = list(Reader(numbered(10, bad), CROPPED).evaluation_batches(batch_size=4, skips=kept))
    label, mask = (np.concatenate([b[name] for b in found]) for name in ("label", "mask"))
    assert label[mask == 1].tolist() == [1, 2, 4, 5, 6, 9]
    assert len(mask) == 12
    assert [entry["record"] for entry in logged(tmp_path)] == [0, 3, 7, 8]
    [line] = said
    assert line == (
        f"skipped: example 0 of numbered has label 10, outside 0...9; {tmp_path}/skipped.jsonl "
        f"names all"
    )


def test_nothing_is_skipped_unless_it_is_counted():
    for of_split in (
        Reader(numbered(4, frozenset([1])), CROPPED).training_batches(batch_size=4, seed=0),
        Reader(numbered(4, frozenset([1])), CROPPED).evaluation_batches(batch_size=4),
    ):
        with pytest.raises(ExampleError, match="example 1 of numbered cannot be decoded"):
            next(of_split)


def test_more_than_the_budget_stops_and_a_continued_run_goes_on_with_the_count(tmp_path):
    source = numbered(100, frozenset((10, 20, 30)))
    note = [(10, "ten", "is bad")]
    kept, _ = taken(tmp_path, most=0.01)
    kept.add(source, note)
    kept.add(source, note)  # another epoch
    with (tmp_path / "skipped.jsonl").open("a") as file:
        file.write('{"split": "numbered", "rec')  # killed while it wrote
    with pytest.raises(RunError) as caught:
        taken(tmp_path, most=0.01)[0].add(source, [(20, "twenty", "is bad")])
    assert str(caught.value) == (
        f"2 of the 100 examples of numbered cannot be used, more than the share of 0.01 that may "
        f"be skipped; {tmp_path}/skipped.jsonl names them: fix them and remove it, or go on with "
        f"--allow_config_changes --config.data.max_skipped=0.04"
    )
    with pytest.raises(RunError, match="2 of the 100"):  # the same command again
        taken(tmp_path, most=0.01)[0].add(source, note)
    taken(tmp_path, most=0.02)[0].add(source, note)
    other = numbered(200, frozenset((10, 20)))
    taken(tmp_path, most=0.02)[0].add(other, [(30, "thirty", "is bad")])
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == 4, "two, half a one, one"
    assert json.loads(lines[-1])["name"] == "thirty"


def test_the_processes_of_a_run_count_together_and_name_nothing_twice(tmp_path, monkeypatch):
    source = numbered(100)
    notes = [(record, str(record), "is bad") for record in range(3)]
    kept = []
    for process in range(3):
        monkeypatch.setattr(skips.jax, "process_index", lambda process=process: process)
        kept.append(taken(tmp_path, most=0.02)[0])
    kept[1].add(source, [notes[0]])
    kept[2].add(source, [notes[0]])
    kept[2].add(source, [notes[1]])
    for process in (1, 2):
        lines = (tmp_path / f"skipped.{process}.jsonl").read_text().splitlines()
        assert [json.loads(line)["record"] for line in lines] == [process - 1]
    taken(tmp_path, most=0.02)[0].add(source, [notes[0]])  # one that continues
    with pytest.raises(RunError, match=r"3 of the 100 .* skipped; \S+/skipped\*\.jsonl names them"):
        kept[0].add(source, [notes[2]])


def test_a_damaged_log_is_read_as_far_as_it_goes_and_one_that_is_not_ours_is_told(tmp_path):
    log = tmp_path / "skipped.jsonl"
    log.write_bytes(b'{"split": "numbered", "record": 1}\n\xff\xfe\n[]\n{"split": "numbered"}\n')
    with pytest.raises(RunError, match="2 of the 100"):
        taken(tmp_path, most=0.01)[0].add(numbered(100), [(2, "two", "is bad")])
    log.unlink()
    log.mkdir()
    with pytest.raises(RunError, match=r"skipped\.jsonl cannot be read: Is a directory"):
        taken(tmp_path)


@pytest.mark.parametrize("count", [5, 400])
def test_where_all_is_gone_nothing_loops(tmp_path, count):
    source = numbered(count, frozenset(range(count)))
    kept, _ = taken(tmp_path)
    with pytest.raises(RunError, match=f"{min(count, 100)} examples of numbered in a row cannot"):
        batches(source, 1, batch_size=4, seed=0, skips=kept)


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path):
    (tmp_path / "skipped.jsonl").mkdir()
    shutil.rmtree(tmp_path / "skipped.jsonl")
    kept, _ = taken(tmp_path)
    (tmp_path / "skipped.jsonl").mkdir()
    with pytest.raises(RunError, match=r"skipped\.jsonl cannot be (read|written): Is a directory"):
        kept.add(numbered(3), [(0, "it", "is bad")])


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_of_a_foreign_run_leads_nowhere(tmp_path, kind):
    (tmp_path / "mine").write_text("mine\n")
    log = tmp_path / "run" / "skipped.jsonl"
    log.parent.mkdir()
    if kind == "link":
        log.symlink_to(tmp_path / "mine")
    else:
        os.mkfifo(log)
    with pytest.raises(RunError, match=r"skipped\.jsonl cannot be (read|written): "):
        taken(log.parent)[0].add(numbered(3), [(0, "it", "is bad")])
    assert (tmp_path / "mine").read_text() == "mine\n"


def test_a_damaged_record_of_a_tfds_set_is_skipped(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_damaged", examples={"train": 20})
    [path] = tmp_path.rglob("*train*.array_record*")
    data = bytearray(path.read_bytes())
    data[8000] ^= 1  # among the records; the second half is their index
    path.write_bytes(data)
    source = readers.open_split("tiny_damaged", "train", str(tmp_path))
    kept, _ = taken(tmp_path)
    batches(source, 1, batch_size=20, seed=0, skips=kept)
    [entry] = logged(tmp_path)
    assert entry["reason"].startswith("cannot be read: Corrupted Riegeli/records file")
    assert "\n" not in entry["reason"]


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_a_record_that_is_whole_and_no_example_is_skipped(tmp_path, kind):
    """What a writer that was killed, or another program, may leave behind."""
    garbage = [b"", b"garbage", b"\x0a\x00", bytes(100)]
    tiny_datasets.prepare(tmp_path / "good", "tiny_photos", examples={"train": 20})
    good = tmp_path / "good/tiny_photos/1.0.0"
    target = tmp_path / "bad/tiny_photos/1.0.0"
    records = tiny_datasets.as_tfrecord(good, target, shards=1)["train"]
    records[3:7] = garbage
    if kind == "tfrecord":
        [path] = target.glob("*.tfrecord-*")
        path.write_bytes(b"".join(map(tiny_datasets.tfrecord_frame, records)))
    else:
        shutil.rmtree(target)
        shutil.copytree(good, target)
        [path] = target.glob("*train*.array_record*")
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    source = readers.open_split("tiny_photos", "train", str(tmp_path / "bad"))
    kept, _ = taken(tmp_path)
    batches(source, 1, batch_size=20, seed=0, skips=kept)
    entries = logged(tmp_path)
    assert sorted(entry["record"] for entry in entries) == [3, 4, 5, 6]
    for entry in entries:
        assert entry["reason"].startswith(("cannot be read: ", "has no "))


def test_balanced_classes_count_and_name_what_they_cannot_use(tmp_path):
    bad = frozenset((1, 2, 8, 15))
    kept, _ = taken(tmp_path)
    options = {"batch_size": 20, "seed": 0, "sampling": Sampling(balanced=True)}
    [batch] = batches(numbered(20, bad), 1, **options, skips=kept)
    assert sorted(entry["record"] for entry in logged(tmp_path)) == sorted(bad)
    classes, counts = np.unique(batch["label"], return_counts=True)
    assert set(classes) == set(range(20)) - bad
    assert counts.max() - counts.min() <= 1, "those without bad records"
    with pytest.raises(RunError, match="of the 20 examples"):
        batches(numbered(20, bad), 1, **options, skips=taken(tmp_path, most=0.1)[0])


# A class whose name would clear the screen and turn its letters round.
HOSTILE = "\x1b[2J\u202e0"


def write_digits(root: Path, count: int, extra: dict[str, bytes]) -> None:
    """So many files in ten classes: the digits' run is compiled already. `extra` among them."""
    names = [HOSTILE, *map(str, range(1, 10))]
    rng = np.random.default_rng(0)
    files = {f"good-{i}.jpg": tiny_datasets.jpeg(rng, 9, 11, i % 3) for i in range(count)}
    for i, (name, data) in enumerate([*extra.items(), *files.items()][:count]):
        (root / names[i % 10]).mkdir(parents=True, exist_ok=True)
        (root / names[i % 10] / name).write_bytes(data)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A folder with every odd and bad file among good ones."""
    root = tmp_path_factory.mktemp("mixed")
    extra = {**pictures.odd(), **{f"bad-{name}": data for name, data in pictures.bad().items()}}
    (root / "train").mkdir()
    (root / "train" / "\x9b31m\r.txt").touch()
    write_digits(root / "train", 1437, extra)
    write_digits(root / "test", 70, extra)
    return root


@pytest.fixture(scope="module")
def run_on_mixed(mixed, flags, tmp_path_factory):
    """A small run over more than an epoch of the mixed folder, in a real process."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    given = flags(
        workdir, data__dataset=f"folder:{mixed}", data__max_skipped=0.3, duration="24 steps",
        eval__every="24 steps", checkpoint__every="12 steps",
    )  # fmt: skip
    return workdir, given, finish("main", *given, "--json")


def test_a_folder_with_every_bad_file_trains_and_evaluates(mixed, run_on_mixed):
    workdir, _, process = run_on_mixed
    found = result(process)
    bad = len(pictures.bad())
    assert (found["step"], found["examples"], found["skipped"]) == (24, 70 - bad, bad)
    said = process.stderr
    summary = f"'train' of {mixed}: 1,437 images, 10 classes of 143 (7) to 144 "
    assert summary + r"(\x1b[2J\u202e0); left out as not an image of a class: 1 files: " in said
    assert f"{mixed}/train/" + r"\x9b31m\r.txt" in said
    assert printable(said, keep="\n") == said, "what a terminal would obey is shown as escapes"
    assert f"{70 - bad} examples, {bad} skipped" in said
    assert said.count("skipped.jsonl") == 1, "told once where to look"
    evaluated = readers.open_split(f"folder:{mixed}", "test")
    lines = (workdir / "eval_files.txt").read_text().splitlines()
    paths = [printable(as_utf8(evaluated.name_of(record))) for record in range(70)]
    assert [f"{mixed}/{line}" for line in lines] == paths
    named = sorted(Path(entry["name"]).name for entry in logged(workdir))
    assert named == sorted(f"bad-{name}" for name in pictures.bad() for _ in range(2))
    for entry in logged(workdir):
        assert Path(entry["name"]).exists()
        assert entry["reason"].startswith("cannot be decoded: ")


def test_evaluate_reports_the_same_and_names_no_file_twice(run_on_mixed):
    workdir, _, process = run_on_mixed
    before = logged(workdir)
    again = result(finish("evaluate", f"--workdir={workdir}", "--json"))
    found = result(process)
    for name in ("top1", "examples", "skipped"):
        assert again[name] == found[name]
    assert logged(workdir) == before


@pytest.mark.slow
def test_evaluate_has_a_budget_of_its_own(run_on_mixed):
    workdir, _, _ = run_on_mixed
    process = finish("evaluate", f"--workdir={workdir}", "--max_skipped=0.01")
    assert process.returncode == 1
    assert "go on with --max_skipped=" in process.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_run_over_bad_files_continues_bit_identically(run_on_mixed, tmp_path):
    workdir, given, _ = run_on_mixed
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "24")
    again = [flag for flag in given if not flag.startswith("--workdir")]
    process = finish("main", f"--workdir={copy}", *again, "--json")
    assert result(process)["step"] == 24
    assert "continues from the checkpoint of step 12" in process.stderr
    assert digests(copy, 24) == digests(workdir, 24)
    assert logged(copy) == logged(workdir)


def test_more_than_the_budget_ends_a_run_with_one_line(flags, tmp_path):
    write_digits(tmp_path / "data", 100, {f"bad-{i}.jpg": b"none" for i in range(20)})
    given = flags(
        tmp_path / "run", data__dataset=f"folder:{tmp_path / 'data'}", data__max_skipped=0.05
    )
    process = finish("main", *given)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    # More than 4; more than 5 where the last of them stand side by side.
    skipped = len(logged(tmp_path / "run"))
    assert 5 <= skipped <= 8
    assert line.startswith(f"error: {skipped} of the 80 examples of folder:")
    assert f"{tmp_path}/run/skipped.jsonl names them" in line
