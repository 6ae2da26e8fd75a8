"""Checkpoints: what is kept, what is found, and that damage is never restored."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.processes import ROOT, as_nobody
from xception_jax.config import Best
from xception_jax.errors import ReadError, RunError, UsageError
from xception_jax.training import sharding
from xception_jax.training.checkpoint import digest, manager, manifest, reading
from xception_jax.training.checkpoint.checkpoints import Checkpoints, DamagedCheckpointError, Meta
from xception_jax.training.state import TrainState
from xception_jax.utils import retry, seal

META = Meta(0, "set/1.0.0:train", 100, ("a", "b"))


def make_state(step: int, *, with_ema: bool = True, devices: int = 1) -> TrainState:
    def make():
        params = {"flow": {0: {"kernel": jnp.arange(4096.0) + step}, 1: {"bias": jnp.ones(3)}}}
        stats = {"mean": jnp.full(5, step / 7)}
        return TrainState(
            jnp.asarray(step, jnp.int32),
            params,
            stats,
            optax.adam(1e-3).init(params),
            {"params": params, "batch_stats": stats} if with_ema else None,
        )

    return jax.jit(make, out_shardings=sharding.replicated(sharding.make_mesh(devices)))()


def target(**kwargs):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_state(0, **kwargs),
    )


def save_all(folder, steps, *, keep=10, top1=None):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            found = {"top1": top1[step], "loss": step / 100} if top1 and step in top1 else None
            checkpoints.save(make_state(step), META.at(step), found)
        checkpoints.wait()
        return checkpoints.steps()


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("with_ema", [True, False])
@pytest.mark.parametrize("devices", [1, 8])
def test_restored_is_what_was_saved(tmp_path, with_ema, devices):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3, with_ema=with_ema), META.at(3))
    with Checkpoints(tmp_path) as checkpoints:
        state, meta, notes = checkpoints.restore_newest(target(with_ema=with_ema, devices=devices))
    assert_equal(state, make_state(3, with_ema=with_ema))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state)} == {devices}
    assert (meta.step, meta.train_examples, meta.class_names, notes) == (3, 100, ("a", "b"), [])


def test_a_save_compiles_nothing_that_was_compiled_before(tmp_path):
    state = make_state(3)
    state = dataclasses.replace(state, batch_stats={"mean": jnp.ones((3, 5, 7))})  # none of others
    with Checkpoints(tmp_path) as checkpoints:
        before = digest._digest._cache_size()
        checkpoints.warm_up(state)
        compiled = digest._digest._cache_size()
        assert compiled > before
        checkpoints.save(state, META.at(3))
        assert digest._digest._cache_size() == compiled


def test_keeps_the_newest_and_the_best(tmp_path):
    top1 = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.6, 6: 0.8}
    assert save_all(tmp_path, range(1, 8), keep=2, top1=top1) == [2, 6, 7]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == 2, "the same top-1 as 3, and a lower loss"
        assert checkpoints.find("latest") == 7
        assert checkpoints.find("6") == 6
        assert checkpoints.metrics(2) == {"top1": 0.9, "loss": 0.02}
        assert checkpoints.metrics(7) is None
        with pytest.raises(UsageError, match=r"no checkpoint '4' .* or: 2, 6, 7"):
            checkpoints.find("4")


def test_the_best_of_multilabel_data_is_by_map(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step, quality in enumerate((0.5, 0.7, 0.6), start=1):
            found = {"map": quality, "precision": 1 - quality, "recall": 0.5, "loss": 1.0}
            checkpoints.save(make_state(step), META.at(step), found)
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.find("best")) == ([2, 3], 2)


def test_without_the_metric_that_decides_none_is_the_best(tmp_path):
    """As after a change of `eval.best` in a run that is done."""
    criterion = Best.parse("v2/top1")
    with Checkpoints(tmp_path, keep=1, best=criterion) as checkpoints:
        for step, further in enumerate(({}, {"v2/top1": 0.2}, {}), start=1):
            checkpoints.save(
                make_state(step), META.at(step), {"top1": 0.5, "loss": 1 / step, **further}
            )
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.find("best")) == ([2, 3], 2)
    with (
        Checkpoints(tmp_path, read_only=True, best=Best.parse("v3/top1")) as checkpoints,
        pytest.raises(UsageError, match="was evaluated by a finite v3/top1; use --step=latest"),
    ):
        checkpoints.find("best")


DELETE = """
import os, shutil, signal, sys
from pathlib import Path
from tests.training.checkpoint.test_checkpoints import META, Checkpoints, make_state

# Killed as soon as anything of a checkpoint is deleted: files go one by one.
remove, removed = os.unlink, []
def unlink(path, *arguments, **options):
    remove(path, *arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

with Checkpoints(Path(sys.argv[1]), keep=1) as checkpoints:
    top1 = {1: 0.5, 2: 0.9, 3: 0.6}
    for step, found in top1.items():
        checkpoints.save(make_state(step), META.at(step), {"top1": found, "loss": 1.0})
    checkpoints.wait()
    os.unlink = os.remove = unlink
    checkpoints.save(make_state(4), META.at(4))
    checkpoints.wait()
    checkpoints.save(make_state(5), META.at(5))
"""


def test_a_kill_while_one_is_deleted_leaves_no_damage(tmp_path):
    killed = subprocess.run([sys.executable, "-c", DELETE, tmp_path], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    left = [path.name for path in (tmp_path / "checkpoints" / "deleted").iterdir()]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == 2
        assert not {*map(str, checkpoints.steps())} & {*left}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, _, notes = checkpoints.restore_newest(target())
        assert notes == []
        checkpoints.save(make_state(6), META.at(6))
        checkpoints.wait()
        assert (int(state.step), checkpoints.steps()) == (4, [2, 6])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "6"]
    assert not (tmp_path / "damaged").exists()


def test_a_reader_beside_a_run_that_deletes_meets_no_damage(tmp_path):
    """Until the run ends, whatever is being deleted at the moment."""
    with subprocess.Popen([sys.executable, "-c", RUN, tmp_path], cwd=ROOT) as run:
        looks = 0
        while run.poll() is None:
            found = manifest.survey(tmp_path / "checkpoints")
            assert not [one for one in found.values() if isinstance(one, str)]
            looks += 1
    assert (run.returncode, looks > 1) == (0, True)


RUN = """
import sys
from pathlib import Path
from tests.training.checkpoint.test_checkpoints import META, Checkpoints, make_state
with Checkpoints(Path(sys.argv[1]), keep=1) as checkpoints:
    for step in range(7):
        checkpoints.save(make_state(step), META.at(step), {"top1": step / 7, "loss": 1.0})
"""


def test_one_that_is_gone_by_now_is_told_so(tmp_path):
    save_all(tmp_path, [1, 2])
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        shutil.rmtree(tmp_path / "checkpoints" / "1")
        with pytest.raises(DamagedCheckpointError, match="checkpoint 1 no longer exists; a run"):
            checkpoints.restore(1, {"ema": target().ema})


def test_what_is_logged_after_a_run_is_shown_again(tmp_path):
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    filters = list(logger.filters)
    with Checkpoints(tmp_path):
        assert logger.filters != filters
    assert (logger.filters, sys.unraisablehook) == (filters, hook)


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(target()) == (None, None, [])
        with pytest.raises(UsageError, match="no checkpoint in"):
            checkpoints.find("latest")
        checkpoints.save(make_state(1), META.at(1))
        checkpoints.wait()
        with pytest.raises(UsageError, match="was evaluated"):
            checkpoints.find("best")


def test_evaluation_reads_only_its_items(tmp_path):
    save_all(tmp_path, [1])
    for item in ("opt_state", "params"):
        for path in sorted((tmp_path / "checkpoints" / "1" / item).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        items, _ = checkpoints.restore(1, {"ema": target().ema})
    assert_equal(items["ema"], make_state(1).ema)


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(folder: Path) -> None:
    path = largest_file(folder / "params")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def truncate(folder: Path) -> None:
    truncate_file(largest_file(folder / "params"))


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def forge_digest(folder: Path) -> None:
    path = folder / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["digests"]["batch_stats"]["mean"] = "0" * 16
    path.write_text(json.dumps(seal.sealed(meta)))


def rename(folder: Path) -> None:
    older = folder.with_name("2")
    empty(folder)
    folder.rmdir()
    shutil.copytree(older, folder)


def cut_manifest_short(folder: Path) -> None:
    truncate_file(folder / "meta" / "metadata")


def negate_an_array(folder: Path) -> None:
    """Whole for Orbax: every word of an array with another sign, as another step might hold it."""
    handler = ocp.StandardCheckpointHandler()
    tree = make_state(3).params
    tree["flow"][0]["kernel"] = -tree["flow"][0]["kernel"]
    shutil.rmtree(folder / "params")
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder / "params", args=ocp.args.StandardSave(tree))


def change_metrics(folder: Path) -> None:
    path = folder / "meta" / "metadata"
    path.write_text(path.read_text().replace('"top1": 0.5', '"top1": 0.7'))


def delete_manifest(folder: Path) -> None:
    (folder / "meta" / "metadata").unlink()


def pipe_as_manifest(folder: Path) -> None:
    delete_manifest(folder)
    os.mkfifo(folder / "meta" / "metadata")


def folder_as_manifest(folder: Path) -> None:
    delete_manifest(folder)
    (folder / "meta" / "metadata").mkdir()


def folder_as_array(folder: Path) -> None:
    path = largest_file(folder / "params")
    path.unlink()
    path.mkdir()


def pipe_as_array(folder: Path) -> None:
    path = largest_file(folder / "params")
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    flip_a_bit, truncate, empty, forge_digest, rename, cut_manifest_short, negate_an_array,
    change_metrics, delete_manifest, pipe_as_manifest, pipe_as_array, folder_as_manifest,
    folder_as_array,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_moved_aside_and_the_one_before_restored(tmp_path, damage):
    save_all(tmp_path, [1, 2, 3], top1={3: 0.5})
    damage(tmp_path / "checkpoints" / "3")
    with Checkpoints(tmp_path) as checkpoints:
        state, meta, notes = checkpoints.restore_newest(target())
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(make_state(3), META.at(3))
    assert int(state.step) == meta.step == 2
    assert_equal(state, make_state(2))
    [note] = notes
    assert "checkpoint 3" in note
    assert str(tmp_path / "damaged" / "3") in note
    assert (tmp_path / "damaged" / "3").is_dir()


def make_old(folder: Path) -> None:
    """Rewrites what a checkpoint says of itself as it was before manifests were sealed."""
    step, path = int(folder.name), folder / "meta" / "metadata"
    metrics = json.loads(path.read_text())["metrics"]
    items = {name: getattr(make_state(step), name) for name in manager.ITEMS}
    sums = {name: digest.digests(tree, algorithm=1)[0] for name, tree in items.items()}
    path.write_text(json.dumps(
        {"step": step, "dataset": META.dataset, "train_examples": META.train_examples,
         "class_names": list(META.class_names), "digests": sums}
    ))  # fmt: skip
    if metrics:
        (folder / "metrics").mkdir()
        (folder / "metrics" / "metrics").write_text(json.dumps(metrics))


def test_a_run_without_seals_goes_on_its_arrays_checked_by_the_old_digest(tmp_path):
    save_all(tmp_path, [1, 2, 3], top1={1: 0.5, 2: 0.4})
    for step in (1, 2, 3):
        make_old(tmp_path / "checkpoints" / str(step))
    flip_a_bit(tmp_path / "checkpoints" / "3")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, meta, [note] = checkpoints.restore_newest(target())
        assert_equal(state, make_state(2))
        assert (meta.digest_algorithm, meta.metrics) == (1, {"top1": 0.4, "loss": 0.02})
        assert "checkpoint 3" in note
        checkpoints.save(make_state(3), META.at(3), {"top1": 0.3, "loss": 0.0})
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.find("best")) == ([1, 3], 1)
        assert checkpoints.meta(3).digest_algorithm == 2


def test_metrics_that_are_made_up_for_are_sealed_with_the_rest(tmp_path):
    save_all(tmp_path, [1, 2], top1={1: 0.5})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.restore_newest(target())
        checkpoints.add_metrics(2, {"top1": 0.7, "loss": 1.0})
        assert (checkpoints.metrics(2), checkpoints.find("best")) == ({"top1": 0.7, "loss": 1.0}, 2)
        checkpoints.save(make_state(3), META.at(3), {"top1": 0.6, "loss": 1.0})
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("best") == 2
        assert checkpoints.restore(2, {"ema": target().ema})[1].metrics == {
            "top1": 0.7,
            "loss": 1.0,
        }


def test_what_the_log_carries_over_comes_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), META.at(1, log={"loss": [1.5, 2]}))
    with Checkpoints(tmp_path) as checkpoints:
        meta = checkpoints.restore_newest(target())[1]
    assert meta.log == {"loss": [1.5, 2]}


def test_an_older_damaged_checkpoint_is_moved_too(tmp_path):
    """It may have been the best; a save must not stumble over it."""
    save_all(tmp_path, [1, 2], top1={1: 0.5, 2: 0.4})
    change_metrics(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path) as checkpoints:
        state, _, [note] = checkpoints.restore_newest(target())
        assert int(state.step) == 2
        assert "checkpoint 1 is damaged: its manifest is not what was sealed; moved to" in note
        checkpoints.save(make_state(3), META.at(3), {"top1": 0.3, "loss": 1.0})
        checkpoints.wait()
        assert (checkpoints.steps(), checkpoints.find("best")) == ([2, 3], 2)


def test_a_file_where_damaged_checkpoints_go_is_told(tmp_path):
    save_all(tmp_path, [1, 2])
    truncate(tmp_path / "checkpoints" / "2")
    (tmp_path / "damaged").write_text("mine")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(RunError, match=r"/damaged is not a folder, so .* 2 .* move .* away"),
    ):
        checkpoints.restore_newest(target())
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_memory_that_a_device_lacks_is_no_damage(tmp_path):
    def read() -> None:
        jax.block_until_ready(jax.jit(lambda: jnp.ones((1 << 24, 1 << 22), jnp.float32))())

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        reading.as_damage(tmp_path, read)


def test_nothing_is_moved_if_nothing_can_be_restored(tmp_path):
    save_all(tmp_path, [1, 2])
    for step in (1, 2):
        truncate(tmp_path / "checkpoints" / str(step))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(RunError, match=r"no checkpoint in .* can be restored"):
            checkpoints.restore_newest(target())
        assert checkpoints.steps() == [1, 2]


def test_a_reader_says_which_array_is_damaged_and_moves_nothing(tmp_path):
    save_all(tmp_path, [1])
    forge_digest(tmp_path / "checkpoints" / "1")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(
            DamagedCheckpointError, match=r"checkpoint 1 is damaged: batch_stats.mean"
        ):
            checkpoints.restore(1, {"batch_stats": target().batch_stats})
        assert checkpoints.steps() == [1]


def test_a_reader_is_told_of_a_damaged_manifest(tmp_path):
    save_all(tmp_path, [1, 2], top1={1: 0.5, 2: 0.25})
    cut_manifest_short(tmp_path / "checkpoints" / "2")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        for asked in ("latest", "best", "2"):
            with pytest.raises(
                DamagedCheckpointError, match="checkpoint 2 is damaged: its manifest is not JSON"
            ):
                checkpoints.find(asked)
        with pytest.raises(DamagedCheckpointError, match=r"be the best\. .* --step=latest"):
            checkpoints.find("best")
        assert (checkpoints.find("1"), checkpoints.steps()) == (1, [1, 2])


def test_what_a_killed_deletion_of_an_older_version_left_is_moved_and_told(tmp_path):
    """That one deleted file by file, in place, what was not kept."""
    save_all(tmp_path, [1, 2, 3, 4, 5], top1={3: 0.5, 4: 0.25})
    folders = {step: tmp_path / "checkpoints" / str(step) for step in range(1, 6)}
    empty(folders[1])
    shutil.rmtree(folders[2] / "meta")
    shutil.rmtree(folders[4] / "params")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.find("latest") == 5
        with pytest.raises(
            DamagedCheckpointError, match=r"checkpoint 1 is damaged: .*/meta/metadata is missing"
        ):
            checkpoints.find("best")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state, _, notes = checkpoints.restore_newest(target())
        assert int(state.step) == 5
        assert [note.partition(":")[0] for note in notes] == [
            "checkpoint 2 is damaged", "checkpoint 1 is damaged",
        ]  # fmt: skip
        assert checkpoints.find("best") == 3
        checkpoints.save(make_state(6), META.at(6))
        checkpoints.wait()
        assert checkpoints.steps() == [3, 6], "4 was not whole, and not kept"


def refused_by_the_kernel(checkpoint: Path) -> tuple[Path, Callable[[], object]]:
    """Has every read of the manifest end in EIO: a link to what the kernel refuses.

    Gives the file, and how to undo it.
    """
    path = manifest.path_of(checkpoint)
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to("/proc/self/mem")
    return path, lambda: aside.replace(path)


def not_ours(checkpoint: Path) -> tuple[Path, Callable[[], object]]:
    """Has TensorStore meet EACCES in a file of an array."""
    path = largest_file(checkpoint / "params")
    path.chmod(0)
    return path, lambda: path.chmod(0o644)


def test_a_file_that_cannot_be_read_for_a_while_is_tried_again(tmp_path):
    save_all(tmp_path, [1, 2])
    path, repair = refused_by_the_kernel(tmp_path / "checkpoints" / "2")
    said = []

    def say(line: str) -> None:
        said.append(line)
        repair()

    with Checkpoints(tmp_path, say=say) as checkpoints:
        state, _, notes = checkpoints.restore_newest(target())
    assert (int(state.step), notes) == (2, [])
    [line] = said
    assert line.endswith(f"Input/output error ({path}); trying again for 120 seconds")


@pytest.mark.parametrize(
    ("fault", "user"), [(refused_by_the_kernel, nullcontext), (not_ours, as_nobody)]
)
def test_one_that_cannot_be_read_at_all_stops_the_run_and_nothing_is_moved(
    shared, monkeypatch, fault, user
):
    monkeypatch.setattr(retry, "SECONDS", 0.2)
    save_all(shared, [1, 2])
    path, _ = fault(shared / "checkpoints" / "2")
    before = sorted(shared.rglob("*"))
    with user(), pytest.raises(ReadError, match=rf"cannot be read: .* \({path}\); "):
        restore_quietly(shared)
    assert sorted(shared.rglob("*")) == before


def restore_quietly(folder: Path) -> None:
    with Checkpoints(folder, say=lambda line: None) as checkpoints:
        checkpoints.restore_newest(target())


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    broken = make_state(2)
    broken.batch_stats["mean"] = jnp.full(5, jnp.nan)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), META.at(1))
        with pytest.raises(
            RunError, match=r"at step 2 batch_stats.mean is not finite.*checkpoints/1"
        ):
            checkpoints.save(broken, META.at(2))
        assert checkpoints.steps() == [1]


def test_other_data_than_the_run_began_with_is_refused():
    workdir = Path("runs/my pets")
    META.check_data(META.at(9), workdir)
    for changed, now in (
        ("other examples", Meta(0, "set/1.0.0:train", 99, ("a", "b"))),
        ("other examples", Meta(0, "set/2.0.0:train", 100, ("a", "b"))),
        ("other classes", Meta(0, "set/1.0.0:train", 100, ("b", "a"))),
    ):
        with pytest.raises(UsageError, match="began on 100 examples of set/1") as caught:
            META.check_data(now, workdir)
        assert str(caught.value).endswith(
            f"{changed}; restore the data, or start a new run from its weights: "
            f"--config.init_from='runs/my pets' and another --workdir"
        )


def fill(folder: Path) -> None:
    with Checkpoints(folder, keep=50) as checkpoints:
        for step in range(1, 50):
            checkpoints.save(make_state(step), META.at(step))


def test_a_full_disk_is_one_line_that_names_a_file_with_the_rest(small_disk, capfd):
    with pytest.raises(RunError) as caught:
        fill(small_disk)
    told = str(caught.value)
    assert "\n" not in told
    assert "could not be written: No space left on device: " in told
    log = Path(told.rpartition("; ")[2].removesuffix(" has the traceback"))
    assert "Traceback" in log.read_text()
    assert "Traceback" not in "".join(capfd.readouterr())
    if log.parent != small_disk:
        log.unlink()
    with Checkpoints(small_disk) as checkpoints:
        state, _, notes = checkpoints.restore_newest(target())
        assert (int(state.step), notes) == (checkpoints.steps()[-1], [])


def test_metrics_that_no_disk_takes_are_one_line_and_change_nothing(small_disk):
    with Checkpoints(small_disk) as checkpoints:
        checkpoints.save(make_state(1), META.at(1))
        checkpoints.wait()
        path = manifest.path_of(small_disk / "checkpoints" / "1")
        before = path.read_bytes()
        with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        with pytest.raises(RunError, match=rf"^{path}: No space left on device$"):
            checkpoints.add_metrics(1, {"top1": 0.5, "loss": 1.0})
        assert [one.read_bytes() for one in path.parent.glob("metadata*")] == [before]
