"""The manifest: no changed bit has an effect, and what is no manifest is told, never opened."""

import json
import math
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.processes import as_nobody
from xception_jax.errors import ReadError
from xception_jax.training.checkpoint import manifest
from xception_jax.training.checkpoint.manifest import DamagedCheckpointError, Meta
from xception_jax.utils import seal

META = Meta(
    7, "set/1.0.0:train", 100, ("a", "b"), {"seed": 1, "data.mix": (), "model.width": 0.5},
    {"sums": [1.5, 2]}, {"top1": 0.5, "loss": 1.25, "examples": 360},
    {"params": {"flow.0.kernel": "0123456789abcdef", "flow.1.bias": "00ff00ff00ff00ff"}},
)  # fmt: skip
TEXT = json.dumps(META.fields())
# As it was written before manifests were sealed.
OLD = {
    "step": 7, "dataset": "set", "train_examples": 100, "class_names": ["a", "b"],
    "digests": {"params": {"kernel": 1234}},
}  # fmt: skip


def put(folder: Path, fields: dict | str, metrics: str | None = None) -> Path:
    """A checkpoint's folder that holds a manifest and maybe the old file of metrics."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    (folder / "7" / "meta").mkdir(parents=True)
    (folder / "7" / "meta" / "metadata").write_text(text)
    if metrics is not None:
        (folder / "7" / "metrics").mkdir()
        (folder / "7" / "metrics" / "metrics").write_text(metrics)
    return folder / "7"


def test_it_is_read_as_it_was_written(tmp_path):
    read = manifest.read(put(tmp_path, TEXT))
    assert read == replace(META, config={**(META.config or {}), "data.mix": []})
    assert read.fields()["seal"] == META.fields()["seal"]
    assert manifest.newest_config(tmp_path) == (7, read.config)
    assert manifest.survey(tmp_path) == {7: read}


def test_a_metric_that_is_not_finite_is_null():
    odd = {"top1": 0.5, "loss": 1.25, "odd": math.inf}
    fields = replace(META, metrics=odd).fields()
    text = json.dumps(fields, allow_nan=False)
    assert json.loads(text)["metrics"] == {**odd, "odd": None}
    read = manifest.parse(text)
    assert math.isnan(read.metrics["odd"])
    assert read.fields()["seal"] == fields["seal"]
    with pytest.raises(ValueError, match="invalid metrics"):
        manifest.parse(json.dumps(replace(META, metrics={**odd, "loss": math.nan}).fields()))


def test_no_flipped_bit_has_an_effect():
    """All of them: metrics, their keys, class names, the config, digests, the seal and its name."""
    right, data = manifest.parse(TEXT), TEXT.encode()
    silent = []
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            try:
                if manifest.parse(bytes(flipped)) != right:
                    silent.append(flipped)
            except ValueError:
                pass
    assert not silent


def test_no_truncation_is_taken():
    for size in range(len(TEXT)):
        with pytest.raises(ValueError):  # noqa: PT011
            manifest.parse(TEXT[:size])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"digests": {"params": 3}}, "invalid digests"),
        ({"digests": {"params": {"kernel": 3}}}, "invalid digests"),
        ({"digests": None}, "invalid digests"),
        ({"digest_algorithm": 3}, "invalid digest_algorithm"),
        ({"digest_algorithm": 1}, "invalid digests"),
        ({"step": True}, "invalid step"),
        ({"train_examples": -1}, "invalid train_examples"),
        ({"class_names": "ab"}, "invalid class_names"),
        ({"class_names": ["a", 1]}, "invalid class_names"),
        ({"metrics": {"top1": 5}}, "invalid metrics"),
        ({"metrics": {"|op1": 0.5, "loss": 1.0}}, "invalid metrics"),
        ({"metrics": "0.5"}, "invalid metrics"),
        ({"metrics": {"top1": True, "loss": 1.0}}, "invalid metrics"),
        ({"config": [1]}, "invalid config"),
        ({"log": 1}, "invalid log"),
        ({"more": 1}, "more"),
    ],
)
def test_a_field_of_another_kind_is_told_though_it_is_sealed(change, told):
    with pytest.raises(ValueError, match=told):
        manifest.parse(json.dumps(seal.sealed({**META.fields(), **change})))


def test_a_seal_that_was_renamed_makes_no_old_manifest_of_it():
    for fields in (
        {key.replace("seal", "sEal"): value for key, value in META.fields().items()},
        {key: value for key, value in META.fields().items() if key != "seal"},
        {**OLD, "digest_algorithm": 1},
    ):
        with pytest.raises(ValueError, match="has no seal"):
            manifest.parse(json.dumps(fields))


def test_the_manifest_of_another_step_is_damage(tmp_path):
    put(tmp_path, json.dumps(META.at(8).fields()))
    with pytest.raises(DamagedCheckpointError, match="its manifest is of step 8"):
        manifest.read(tmp_path / "7")


def test_one_without_a_seal_is_read_with_its_metrics(tmp_path):
    found = manifest.read(put(tmp_path / "evaluated", OLD, '{"top1": 0.5, "loss": 1}'))
    assert (found.digest_algorithm, found.metrics) == (1, {"top1": 0.5, "loss": 1})
    assert (found.config, found.class_names) == (None, ("a", "b"))
    assert manifest.read(put(tmp_path / "not", OLD)).metrics is None
    assert manifest.newest_config(tmp_path / "not") is None


def test_a_file_of_metrics_beside_a_sealed_manifest_is_not_read(tmp_path):
    sealed = json.dumps(replace(META, metrics=None).fields())
    assert manifest.read(put(tmp_path, sealed, '{"top1": 0.9, "loss": 0}')).metrics is None


@pytest.mark.parametrize(
    "metrics", ["null", '"0.5"', '{"top1": 5}', '{"|op1": 0.5, "loss": 1}', "{", "", "[" * 10_000]
)
def test_metrics_of_one_without_a_seal_that_are_none_are_damage(tmp_path, metrics):
    with pytest.raises(DamagedCheckpointError, match="checkpoint 7 is damaged: its metrics: "):
        manifest.read(put(tmp_path, OLD, metrics))


@pytest.mark.parametrize("change", [{"digests": {"params": 3}}, {"step": "7"}])
def test_one_without_a_seal_of_another_shape_is_damage(tmp_path, change):
    with pytest.raises(DamagedCheckpointError, match=r"has (an )?invalid"):
        manifest.read(put(tmp_path, {**OLD, **change}))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder_of_a_file(path: Path) -> None:
    path.mkdir()
    (path / "file").write_text("")


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def loop_of_folders(path: Path) -> None:
    path.symlink_to(path.parent)


def dangling(path: Path) -> None:
    path.symlink_to("nothing")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, unix_socket, loop, loop_of_folders, dangling, device])
@pytest.mark.parametrize("where", ["meta/metadata", "params/d/0123"])
def test_what_is_no_file_is_damage_and_never_opened(tmp_path, make, where):
    folder = put(tmp_path, TEXT)
    path = folder / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(DamagedCheckpointError, match=f"checkpoint 7 is damaged: .*{path.name}"):
        manifest.read(folder)


def test_a_folder_in_place_of_a_file_that_is_read_is_damage(tmp_path):
    folder = put(tmp_path / "new", TEXT)
    (folder / "meta" / "metadata").unlink()
    folder_of_a_file(folder / "meta" / "metadata")
    old = put(tmp_path / "old", OLD, "{}")
    (old / "metrics" / "metrics").unlink()
    folder_of_a_file(old / "metrics" / "metrics")
    for one in (folder, old):
        with pytest.raises(DamagedCheckpointError, match=r"damaged: .*/met\w+: Is a directory"):
            manifest.read(one)


def test_a_folder_that_cannot_be_listed_is_told_and_named(shared):
    (shared / "7").mkdir()
    shared.chmod(0)
    with as_nobody(), pytest.raises(ReadError, match=f"{shared} cannot be read: Permission denied"):
        manifest.steps(shared)


def test_a_file_or_a_pipe_in_place_of_the_folder(tmp_path):
    (tmp_path / "7").write_text("")
    os.mkfifo(tmp_path / "8")
    found = manifest.survey(tmp_path)
    assert found.keys() == {7, 8}
    assert all("is damaged" in complaint for complaint in found.values())


def test_links_to_files_and_folders_are_followed(tmp_path):
    elsewhere = put(tmp_path / "elsewhere", TEXT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "7").symlink_to(elsewhere)
    assert manifest.read(tmp_path / "run" / "7").step == 7


def test_only_finished_checkpoints_are_listed(tmp_path):
    for name in ("7", "12", "007", "12.orbax-checkpoint-tmp", "latest"):
        (tmp_path / name).mkdir()
    assert manifest.steps(tmp_path) == [7, 12]
    assert manifest.steps(tmp_path / "none") == []
