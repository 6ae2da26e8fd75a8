"""The order contract: what a step sees depends on the seed and the step, and on nothing else."""

import dataclasses
import itertools
import os
import time
from functools import partial
from pathlib import Path

import cv2
import grain
import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st

from xception_jax.data import memory, transfer
from xception_jax.data.batches import Host, HostShard, Reader, _draws
from xception_jax.data.order import Sampling
from xception_jax.data.readers import joined
from xception_jax.data.render import decode, presets
from xception_jax.data.render.decode import Images
from xception_jax.data.source import Source
from xception_jax.training import sharding

CROPPED = Images(size=8, crop_area=(0.3, 1.0), crop_aspect=(0.75, 4 / 3), eval_crop=0.9)


def numbered(count: int) -> Source:
    """A source whose i-th example is a picture of noise with label i."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (count, 9, 11, 3), np.uint8)
    records = [
        {"image": cv2.imencode(".png", picture)[1].tobytes(), "label": i}
        for i, picture in enumerate(pictures)
    ]
    names = tuple(map(str, range(count)))
    return Source("numbered", names, records, "image", "label")


def batches(source, count, *, images=CROPPED, host=None, sampling=None, **kwargs):
    host, sampling = host or Host(threads=2), sampling or Sampling()
    reader = Reader(source, images, host, sampling)
    return list(itertools.islice(reader.training_batches(**kwargs), count))


def together(shares):
    """The global batch of the processes' shares."""
    return {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@hypothesis.given(
    count=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 2**32 - 1)
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_every_example_once_an_epoch_in_a_new_order(count, batch, seed):
    epochs = 3
    steps = -(-epochs * count // batch)
    seen = np.concatenate(
        [b["label"] for b in batches(numbered(count), steps, batch_size=batch, seed=seed)]
    )[: epochs * count].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(count), (epochs, 1)))
    if count > 12:
        assert not np.array_equal(seen[0], seen[1])


@pytest.mark.parametrize("hosts", [1, 2, 3, 8])
@pytest.mark.parametrize("threads", [1, 3])
def test_hosts_threads_and_resuming_change_nothing(hosts, threads):
    assert_nothing_changes(CROPPED, hosts, Host(threads))


@pytest.mark.parametrize("hosts", [1, 3])
def test_what_is_kept_in_memory_is_what_is_made_anew(hosts):
    kept = Host(threads=3, memory=50 * 8 * 8 * 3)
    assert_nothing_changes(Images(size=8, eval_crop=0.9), hosts, kept)
    assert_nothing_changes(CROPPED, hosts, kept)


def test_two_worker_processes_change_nothing():
    flags.FLAGS.mark_as_parsed()  # Grain asks for that before it starts a process
    assert_nothing_changes(CROPPED, 1, Host(threads=2, workers=2))


class Signed:
    """Records that leave the number of the process which reads them in a folder."""

    def __init__(self, folder: Path, records: list):
        self.folder, self.records = folder, records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        (self.folder / str(os.getpid())).touch()
        return self.records[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_who_reads(tmp_path, workers):
    flags.FLAGS.mark_as_parsed()
    source = numbered(20)
    source = dataclasses.replace(source, records=Signed(tmp_path, source.records))
    batches(source, 4, batch_size=5, seed=0, host=Host(threads=1, workers=workers))
    readers = {int(path.name) for path in tmp_path.iterdir()}
    assert len(readers) == max(1, workers)
    assert (os.getpid() in readers) == (workers == 0)


class Broken:
    """Records of which one brings down who reads it; counts what is read."""

    def __init__(self, records: list, fault: Exception | None = None, seconds: float = 0):
        self.records, self.fault, self.seconds, self.read = records, fault, seconds, 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        self.read += 1
        time.sleep(self.seconds)
        if self.fault and index == 7:
            raise self.fault
        return self.records[index]


def test_a_fault_of_our_own_ends_the_stream():
    """What is no `ExampleError` is no bad example, and must not leave rows empty."""
    source = numbered(50)
    source = dataclasses.replace(source, records=Broken(source.records, ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        batches(source, 3, batch_size=24, seed=0)


def test_a_stream_that_is_left_reads_no_further():
    source = numbered(50)
    records = Broken(source.records, seconds=0.01)
    source = dataclasses.replace(source, records=records)
    reader = Reader(source, CROPPED, Host(threads=2))
    made = reader.training_batches(batch_size=160, seed=0)
    next(made)
    made.close()
    begun = records.read
    time.sleep(0.5)  # for the slices that were begun
    assert records.read <= begun + 2 * 8
    time.sleep(0.5)
    assert records.read <= begun + 2 * 8


@pytest.mark.parametrize(("threads", "each"), [(1, 64), (2, 8), (16, 64), (64, 1), (96, 30)])
def test_every_thread_has_a_slice_to_fill(threads, each, monkeypatch):
    """Also while the last of a batch are filled; and no batches are held that none asks for."""
    asked, options = [], grain.ReadOptions
    monkeypatch.setattr(
        grain, "ReadOptions", lambda ahead, **how: asked.append(ahead) or options(ahead, **how)
    )
    reader = Reader(numbered(3), CROPPED, Host(threads))
    made = reader.training_batches(batch_size=each, seed=0)
    next(made)
    made.close()
    [ahead] = asked
    slices = -(-each // 8)
    assert (ahead - 1) * slices >= threads > (ahead - 2) * slices


def test_a_cpu_device_takes_batches_as_they_are():
    """Without a copy, which costs as much as a fortieth of what is done for an image."""
    reader = Reader(numbered(50), CROPPED)
    made = list(itertools.islice(reader.training_batches(batch_size=24, seed=0), 16))
    one = sharding.by_example(jax.sharding.Mesh(jax.devices()[:1], "data"))
    for batch, placed in zip(made, transfer.to_devices(made, one), strict=True):
        assert placed["image"].unsafe_buffer_pointer() == batch["image"].ctypes.data


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 17, 24])
@pytest.mark.parametrize("threads", [1, 3, 40])
def test_threads_fill_slices_of_a_batch(rows, threads):
    """However the slices fall, rows are those of a batch of another size."""
    [whole] = batches(numbered(50), 1, batch_size=2 * rows, seed=5, host=Host(1))
    [made] = batches(
        numbered(50), 1, batch_size=2 * rows, seed=5, host=Host(threads),
        shard=HostShard(1, 2),
    )  # fmt: skip
    assert_same([{name: column[rows:] for name, column in whole.items()}], [made])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(balanced=True), Sampling(weights=(1, 2, 5)), Sampling(balanced=True, repeats=3)],
)
def test_hosts_threads_and_resuming_change_nothing_however_it_is_sampled(sampling):
    source = joined.join([numbered(50)] * 3)
    assert_nothing_changes(CROPPED, 3, Host(threads=2), source, sampling)


def test_balanced_mixed_and_repeated_batches():
    few = dataclasses.replace(numbered(50), records=numbered(50).records[:2])
    source = joined.join([numbered(50), few])
    [balanced] = batches(source, 1, batch_size=50, seed=0, sampling=Sampling(balanced=True))
    assert sorted(balanced["label"]) == list(range(50))
    [mixed] = batches(source, 1, batch_size=48, seed=0, sampling=Sampling(weights=(1, 3)))
    assert np.count_nonzero(mixed["label"] < 2) >= 36
    [repeated] = batches(source, 1, batch_size=48, seed=0, sampling=Sampling(repeats=2))
    np.testing.assert_array_equal(repeated["label"][:24], repeated["label"][24:])
    assert not np.array_equal(repeated["image"][:24], repeated["image"][24:]), "other crops"


@pytest.mark.parametrize(
    ("preset", "crop"), [("area", 0.9), ("inception", 0.875), ("keras", 1.0), ("timm", 0.8)]
)
def test_evaluation_resizes_as_it_is_told(preset, crop):
    source = numbered(3)
    images = Images(7, eval_preset=preset, eval_crop=crop)
    [batch] = Reader(source, images).evaluation_batches(batch_size=3)
    pictures = [decode.decode(source[i].encoded) for i in range(3)]
    made = [presets.PRESETS[preset](picture, 7, crop) for picture in pictures]
    np.testing.assert_array_equal(batch["image"], made)


def test_labels_count_towards_what_is_kept():
    source = dataclasses.replace(numbered(50), multilabel=True)  # 50 labels: 50 bytes an image
    image, rest = 8 * 8 * 3, 50 + 4
    reader = partial(Reader, source, Images(8))
    assert reader(Host(memory=50 * (image + rest)))._fits
    assert not reader(Host(memory=50 * (image + rest) - 1))._fits


@pytest.mark.slow
@pytest.mark.parametrize(
    "hosts", [3, *(pytest.param(hosts, marks=pytest.mark.long) for hosts in (1, 2, 8))]
)
def test_worker_processes_change_nothing(hosts):
    flags.FLAGS.mark_as_parsed()
    assert_nothing_changes(CROPPED, hosts, Host(threads=1, workers=3))


def assert_nothing_changes(
    images: Images,
    hosts: int,
    host: Host,
    source: Source | None = None,
    sampling: Sampling | None = None,
) -> None:
    """The same batches as on one host without anything, also from a step in between."""
    source, batch = source or numbered(50), 24
    whole = batches(source, 7, images=images, batch_size=batch, seed=5, sampling=sampling)
    for first in (0, 4):
        shares = [
            batches(
                source, 7 - first, images=images, host=host, batch_size=batch, seed=5,
                first_step=first, shard=HostShard(index, hosts), sampling=sampling,
            )
            for index in range(hosts)
        ]  # fmt: skip
        assert_same([together(parts) for parts in zip(*shares, strict=True)], whole[first:])


def test_what_could_not_be_made_is_made_when_it_is_asked_for_again():
    faults = [OSError("gone for a moment")]

    def fill(columns: dict, row: int, record: int) -> None:
        if faults:
            raise faults.pop()
        columns["number"][row] = record

    kept = memory.ImageCache({"number": np.zeros(5, int)}, fill)
    with pytest.raises(OSError, match="gone for a moment"):
        kept.batch([3, 1])
    assert kept.batch([3, 1])["number"].tolist() == [3, 1]


def test_what_is_kept_is_made_once(monkeypatch):
    made = []
    decoded = decode.decode
    monkeypatch.setattr(
        decode, "decode", lambda *args, **how: made.append(args[1]) or decoded(*args, **how)
    )
    # One thread: of several, two may make the same image at once.
    host = Host(threads=1, memory=10_000)
    reader = Reader(numbered(6), Images(8), host)
    list(itertools.islice(reader.training_batches(batch_size=4, seed=0), 9))
    assert sorted(made) == [f"example {i} of numbered" for i in range(6)]
    made.clear()
    for _ in range(2):
        evaluated = list(reader.evaluation_batches(batch_size=4))
    assert len(made) == 6
    assert_same(evaluated, list(Reader(numbered(6), Images(8)).evaluation_batches(
        batch_size=4)))  # fmt: skip


def test_a_far_step_is_a_step_like_any_other():
    source = numbered(50)
    [batch] = batches(source, 1, batch_size=25, seed=5, first_step=1_000_001)
    [[before], [after]] = (
        batches(source, 1, batch_size=25, seed=5, first_step=step)
        for step in (1_000_000, 1_000_001)
    )
    assert_same([batch], [after])
    assert sorted([*before["label"], *after["label"]]) == list(range(50))


def test_the_order_is_the_one_that_runs_have_begun_with():
    """Pins the order: a new version of a library that changes it would change runs half done."""
    [batch] = batches(numbered(50), 1, batch_size=6, seed=0)
    assert batch["label"].tolist() == [43, 18, 30, 0, 38, 40]


def test_the_crops_are_drawn_as_runs_have_begun_with():
    draws = [next(_draws(seed, range(p, p + 1)))[0] for seed in (0, 1) for p in (0, 7)]
    np.testing.assert_allclose(
        draws, [0.011546754, 0.189764556, 0.303568034, 0.811984264], rtol=1e-6
    )


@pytest.mark.parametrize("first", [0, 1000, 2**62])
def test_every_example_draws_its_own_numbers_whichever_are_drawn_before(first):
    together = list(_draws(5, range(first, first + 20)))
    alone = [next(_draws(5, range(p, p + 1))) for p in range(first, first + 20)]
    assert together == alone
    assert len(np.unique(together)) == 20 * decode.DRAWS


def test_seeds_differ():
    one = numbered(1)
    first, second = (batches(one, 1, batch_size=1, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first[0]["image"], second[0]["image"]), "another crop"
    first, second = (batches(numbered(50), 1, batch_size=50, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first[0]["label"], second[0]["label"])


def test_a_batch_is_what_the_step_takes():
    [batch] = batches(numbered(5), 1, batch_size=4, seed=0)
    kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
    assert kinds == {
        "image": (np.uint8, (4, 8, 8, 3)),
        "label": (np.int32, (4,)),
        "mask": (np.float32, (4,)),
    }
    assert batch["mask"].all()


@hypothesis.given(
    count=st.integers(1, 30), hosts=st.sampled_from((1, 2, 4)), each=st.integers(1, 5)
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_evaluation_covers_the_split_exactly_once(count, hosts, each):
    source = numbered(count)
    shares = [
        list(
            Reader(source, CROPPED).evaluation_batches(
                batch_size=hosts * each, shard=HostShard(host, hosts)
            )
        )
        for host in range(hosts)
    ]
    whole = together([together(parts) for parts in zip(*shares, strict=True)])
    real = whole["mask"] == 1
    np.testing.assert_array_equal(whole["label"][real], np.arange(count))
    assert not real[count:].any()
    assert not whole["label"][~real].any()
    assert not whole["image"][~real].any()
    assert len(real) - count < hosts * each


def test_to_devices_cuts_batches_over_the_mesh_and_drops_none():
    mesh = sharding.make_mesh(8)
    given = [{"label": np.arange(16) + 100 * i} for i in range(5)]
    placed = list(transfer.to_devices(iter(given), sharding.by_example(mesh), ahead=2))
    assert_same(placed, given)
    assert placed[0]["label"].sharding.shard_shape((16,)) == (2,)


def test_to_devices_reads_no_further_than_asked():
    taken = []
    source = ({"label": taken.append(i) or np.zeros(8)} for i in range(100))
    placed = transfer.to_devices(source, sharding.by_example(sharding.make_mesh(1)), ahead=2)
    next(placed)
    assert len(taken) == 2


def test_worker_processes_share_the_cores():
    alone = Host().at_once
    assert alone >= 1
    assert Host(workers=alone).at_once == 1
    assert Host(workers=1000).at_once == 1
    assert Host(threads=3, workers=2).at_once == 3
