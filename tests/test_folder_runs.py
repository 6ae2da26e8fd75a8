"""Runs on folders: what they evaluate on is named, and a changed folder is told or refused."""

import json
from pathlib import Path

import pytest

from tests.data.readers.test_folder_layouts import write
from tests.processes import digests, finish, result
from tests.training.test_workdir import begin
from xception_jax import config as config_lib
from xception_jax.data import splits
from xception_jax.data.readers import folder, folder_layout, label_file
from xception_jax.errors import UsageError
from xception_jax.training import workdir
from xception_jax.utils import seal


def forget() -> None:
    """What this process has listed: a run is a process of its own."""
    for cached in (folder_layout.find_layout, folder_layout._list_classes, folder._read_split,
                   label_file.read):  # fmt: skip
        cached.cache_clear()


def test_what_is_evaluated_on_is_named_and_a_change_is_told(tmp_path, small_config):
    data, run = write(tmp_path / "pets", "cat/{1-9}.jpg dog/{1-9}.jpg"), tmp_path / "run"
    run.mkdir()
    small_config.data.dataset = f"folder:{data}"
    source = splits.open_split(small_config, "test")
    assert workdir.name_files(run, source) == (source.summary, "")
    named = (run / "eval_files.txt").read_text().splitlines()
    assert named == [Path(source.name_of(i)).relative_to(data).as_posix() for i in range(4)]
    assert workdir.files_of(small_config, "test", run) == named
    assert workdir.name_files(run, source) == (source.summary, ""), "by the same command again"

    forget()
    (data / named[0]).unlink()
    changed = splits.open_split(small_config, "test")
    _, note = workdir.name_files(run, changed)
    both = {*named, *workdir.files_of(small_config, "test", None)}
    new_or_gone = len(both) * 2 - len(named) - len(changed)
    assert note == (
        f"NOTE: the files for evaluation have changed: {new_or_gone} were added or removed; "
        f"{run}/eval_files.txt lists the current ones"
    )
    assert len((run / "eval_files.txt").read_text().splitlines()) == len(changed)


def test_no_file_is_written_for_a_set_that_is_no_folder(tmp_path, digits):
    assert workdir.name_files(tmp_path, digits["test"]) == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_set_without_files_cannot_be_listed(small_config):
    with pytest.raises(UsageError, match=r"--list_split .* optical_digits/1\.0\.0:test is not one"):
        workdir.files_of(small_config, "test", None)


def without_rules(run: Path) -> None:
    """Makes a run one of a version that had no rules of folders to choose."""
    for path in (run / "config.json", *run.glob("checkpoints/*/meta/metadata")):
        fields = json.loads(path.read_text())
        del fields[seal.NAME], fields.get("config", fields)["data.folder_rules"]
        path.write_text(json.dumps(seal.sealed(fields)))


AWKWARD = "cat/{1-40}.jpg cat/x{1-9}.jfif cat/y{1-9} dog/{1-40}.jpg dog/@eaDir/{1-9}.jpg"


def test_an_old_run_opens_its_data_by_its_rules(tmp_path, small_config):
    small_config.data.dataset = f"folder:{write(tmp_path / 'data', AWKWARD)}"
    begin(tmp_path / "run", config_lib.resolve(small_config))
    without_rules(tmp_path / "run")
    begun = workdir.existing_config(tmp_path / "run")
    old = splits.open_split(config_lib.settled(small_config, begun), "train+test")
    assert len(old) == 89
    assert len(splits.open_split(small_config, "train+test")) == 98
    assert len(splits.open_split(workdir.read_config(tmp_path / "run"), "train+test")) == 89


@pytest.mark.slow
def test_an_old_run_goes_on_bit_identically(tmp_path, flags):
    data = write(tmp_path / "data", AWKWARD)
    given = {"data__dataset": f"folder:{data}", "data__batch_size": 16}
    old = {**given, "data__folder_rules": 1}
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    result(finish("main", *flags(whole, **old, duration="6 steps"), "--json"))
    result(finish("main", *flags(moved, **old, duration="4 steps"), "--json"))
    without_rules(moved)
    again = finish("main", *flags(moved, **given, duration="6 steps"), "--allow_config_changes",
                   "--json")  # fmt: skip
    assert result(again)["step"] == 6
    assert digests(moved, 6) == digests(whole, 6)
    assert not (moved / "damaged").exists()

    next((data / "cat").glob("*.jpg")).unlink()
    refused = finish("main", *flags(moved, **given, duration="8 steps"), "--allow_config_changes")
    assert refused.returncode == 2
    assert f"--config.init_from={moved} and another --workdir" in refused.stderr
