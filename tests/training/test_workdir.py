"""One writer, one config."""

import json
import os
import random
import runpy

import pytest

from tests.processes import ROOT
from xception_jax import config as config_lib
from xception_jax.errors import RunError, UsageError
from xception_jax.training import workdir
from xception_jax.training.checkpoint.manifest import Meta
from xception_jax.utils import seal


def begin(folder, config, *, sealed=True):
    """A run that has saved something; as it was before configs were sealed, if not `sealed`."""
    flat = config_lib.flatten(config)
    fields = Meta(2, "set", 100, ("a", "b"), flat, digests={}).fields()
    if not sealed:
        fields = {name: fields[name] for name in list(fields)[:4]} | {"digests": {}}
    with workdir.lock_workdir(folder, config):
        meta = folder / "checkpoints" / "2" / "meta" / "metadata"
        meta.parent.mkdir(parents=True)
        meta.write_text(json.dumps(fields))
    if not sealed:
        (folder / "config.json").write_text(json.dumps(flat))
    return folder / "config.json"


def test_the_config_is_written_and_read_back(tmp_path, small_config):
    small_config.model.fc_units = (3, 4)
    with workdir.lock_workdir(tmp_path / "deep" / "run", small_config):
        pass
    found = workdir.read_config(tmp_path / "deep" / "run")
    assert config_lib.flatten(found) == config_lib.flatten(small_config)


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path, small_config):
    with (
        workdir.lock_workdir(tmp_path, small_config),
        pytest.raises(UsageError, match="another process is training in"),
        workdir.lock_workdir(tmp_path, small_config),
    ):
        pass
    with workdir.lock_workdir(tmp_path, small_config):
        pass


def test_another_config_is_refused_and_the_fields_named(tmp_path, small_config):
    begin(tmp_path, small_config)
    small_config.optimizer.learning_rate = 0.5
    small_config.log.every = "9 steps"
    for allow in (False, True):
        with (
            pytest.raises(UsageError) as caught,
            workdir.lock_workdir(tmp_path, small_config, allow_changes=allow),
        ):
            pass
        assert "optimizer.learning_rate was 0.001, is 0.5" in str(caught.value)
        assert "log.every was '1 step', is '9 steps'" in str(caught.value)
        assert "another --workdir" in str(caught.value)


def test_a_run_that_has_saved_nothing_takes_another_config(tmp_path, small_config):
    with workdir.lock_workdir(tmp_path, small_config):
        (tmp_path / "checkpoints").mkdir()
    small_config.seed = 5
    with workdir.lock_workdir(tmp_path, small_config):
        pass
    assert workdir.read_config(tmp_path).seed == 5


def test_harmless_fields_may_change_with_the_flag(tmp_path, small_config):
    begin(tmp_path, small_config)
    small_config.log.every = "9 steps"
    with (
        pytest.raises(UsageError, match="add --allow_config_changes to allow"),
        workdir.lock_workdir(tmp_path, small_config),
    ):
        pass
    with workdir.lock_workdir(tmp_path, small_config, allow_changes=True):
        pass
    assert workdir.read_config(tmp_path).log.every == "9 steps"


@pytest.mark.parametrize("recipe", ["jft", "open_images"])
def test_a_run_begun_before_its_recipe_changed_goes_on_by_the_same_command(recipe, tmp_path):
    """Such a run has `optimizer.initial_squares` at 0, or does not have the field."""
    config = runpy.run_path(str(ROOT / "configs" / f"{recipe}.py"))["get_config"]()
    assert config_lib.resolve(config).optimizer.initial_squares == 1, "of a new run"
    then = config_lib.resolve(config)
    then.optimizer.initial_squares = 0.0
    path = begin(tmp_path, then, sealed=False)
    fields = json.loads(path.read_text())
    assert fields.pop("optimizer.initial_squares") == 0
    path.write_text(json.dumps(fields))
    for _ in range(2):  # then it stands in the config.json
        resolved = config_lib.resolve(config, workdir.existing_config(tmp_path))
        with workdir.lock_workdir(tmp_path, resolved):
            pass
        assert workdir.read_config(tmp_path).optimizer.initial_squares == 0, "what it began with"
        assert json.loads(path.read_text())["optimizer.initial_squares"] == 0


@pytest.mark.parametrize(("schedule", "allowed"), [("staircase", True), ("cosine", False)])
def test_a_run_may_grow_longer_where_its_rate_does_not_know(
    tmp_path, small_config, schedule, allowed
):
    small_config.optimizer.schedule = schedule
    begin(tmp_path, small_config)
    small_config.duration = "24 steps"
    if allowed:
        with workdir.lock_workdir(tmp_path, small_config, allow_changes=True):
            pass
    else:
        with (
            pytest.raises(UsageError, match="duration was '12 steps', is '24 steps'"),
            workdir.lock_workdir(tmp_path, small_config, allow_changes=True),
        ):
            pass


def test_a_folder_that_is_a_file(tmp_path, small_config):
    path = tmp_path / "file"
    path.write_text("mine")
    with (
        pytest.raises(UsageError, match="is a file; give a folder"),
        workdir.lock_workdir(path, small_config),
    ):
        pass
    assert path.read_text() == "mine"


def test_a_file_in_place_of_the_folder_of_checkpoints(tmp_path, small_config):
    (tmp_path / "checkpoints").write_text("")
    with (
        pytest.raises(UsageError, match="checkpoints is not a folder; move it away"),
        workdir.lock_workdir(tmp_path, small_config),
    ):
        pass


def test_a_config_that_cannot_be_written_is_one_line(tmp_path, small_config):
    (tmp_path / "config.json").mkdir()
    with (
        pytest.raises(RunError, match=r"^/.*/config\.json: Is a directory$"),
        workdir.lock_workdir(tmp_path, small_config),
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_no_run_there(tmp_path):
    with pytest.raises(UsageError, match=r"no run in .* no config\.json"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        workdir.read_config(tmp_path)


def edit(path, **changes):
    """Changes fields of a config by hand; two underscores stand for a dot."""
    fields = json.loads(path.read_text())
    path.write_text(
        json.dumps(fields | {name.replace("__", "."): value for name, value in changes.items()})
    )


def test_a_config_changed_by_hand_is_refused_and_the_fields_named(tmp_path, small_config):
    path = begin(tmp_path, small_config)
    edit(path, model__bn_epsilon=0.5, log__every="9 steps")
    with pytest.raises(UsageError) as caught:
        workdir.read_config(tmp_path)
    told = str(caught.value)
    assert "\n" not in told
    assert "model.bn_epsilon was None, is 0.5" in told
    assert "log.every was '1 step', is '9 steps'" in told
    assert "delete the file to use the copy in checkpoint 2" in told
    with pytest.raises(UsageError, match="was changed since the run wrote it"):
        workdir.existing_config(tmp_path)
    with (
        pytest.raises(UsageError, match="was changed since the run wrote it"),
        workdir.lock_workdir(tmp_path, small_config, allow_changes=True),
    ):
        pass


def test_one_changed_and_sealed_again_is_refused_where_results_depend_on_it(tmp_path, small_config):
    path = begin(tmp_path, small_config)
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(seal.sealed(fields | {"seed": 9})))
    with pytest.raises(UsageError, match="seed was 0, is 9"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("name", [seal.NAME, "sEal", None])
def test_a_seal_that_is_changed_renamed_or_gone_is_no_old_config(tmp_path, small_config, name):
    path = begin(tmp_path, small_config)
    fields = json.loads(path.read_text())
    sealed = fields.pop("seal")
    path.write_text(json.dumps(fields | ({name: sealed[::-1]} if name else {})))
    with pytest.raises(UsageError, match="was changed since the run wrote it"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 10_000])
def test_one_that_is_no_json(tmp_path, small_config, text):
    begin(tmp_path, small_config).write_text(text)
    with pytest.raises(UsageError, match="was changed since the run wrote it: it is not JSON"):
        workdir.read_config(tmp_path)


def test_one_that_is_gone_is_taken_from_the_newest_checkpoint(tmp_path, small_config):
    path = begin(tmp_path, small_config)
    path.unlink()
    assert config_lib.flatten(workdir.read_config(tmp_path)) == config_lib.flatten(small_config)
    small_config.seed = 5
    with (
        pytest.raises(UsageError, match="seed was 0, is 5"),
        workdir.lock_workdir(tmp_path, small_config),
    ):
        pass
    small_config.seed = 0
    with workdir.lock_workdir(tmp_path, small_config):
        pass
    seal.check(json.loads(path.read_text()))


def test_a_pipe_in_its_place_is_not_opened(tmp_path, small_config):
    path = begin(tmp_path, small_config)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="it is not a regular file"):
        workdir.read_config(tmp_path)


def test_a_run_without_seals_is_read_and_sealed_when_it_goes_on(tmp_path, small_config):
    path = begin(tmp_path, small_config, sealed=False)
    assert config_lib.flatten(workdir.read_config(tmp_path)) == config_lib.flatten(small_config)
    with workdir.lock_workdir(tmp_path, small_config):
        pass
    edit(path, seed=9)
    with pytest.raises(UsageError, match=r"config\.json is not what was sealed"):
        workdir.read_config(tmp_path)


def test_a_config_of_an_older_version_lacks_newer_fields(tmp_path, small_config):
    path = begin(tmp_path, small_config)
    fields = json.loads(path.read_text())
    del fields["seal"], fields["model.remat"]
    path.write_text(json.dumps(seal.sealed(fields)))
    assert workdir.read_config(tmp_path).model.remat == small_config.model.remat


@pytest.mark.parametrize("older", ["config.json", "manifest"])
def test_a_run_of_an_older_version_keeps_what_that_version_did(tmp_path, small_config, older):
    """A program of this version has settled the fields in the other file of the two."""
    added = {"data.exif": "on", "data.white_level": 65_535}
    for name, value in added.items():
        small_config.update_from_flattened_dict({name: value})
    path = begin(tmp_path, small_config)
    meta = tmp_path / "checkpoints" / "2" / "meta" / "metadata"
    if older == "manifest":
        fields = json.loads(meta.read_text())
        for name in added:
            del fields["config"][name]
        meta.write_text(json.dumps(seal.sealed(fields)))
    else:
        fields = json.loads(path.read_text())
        for name in added:
            del fields[name]
        path.write_text(json.dumps(seal.sealed(fields)))
    found = config_lib.flatten(workdir.read_config(tmp_path))
    assert {name: found[name] for name in added} == added


@pytest.mark.parametrize(
    "flips", [100, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.long])]
)
def test_no_flip_has_an_effect(tmp_path, small_config, flips):
    path = begin(tmp_path, small_config)
    right, data = config_lib.flatten(workdir.read_config(tmp_path)), path.read_bytes()
    draw, silent, told = random.Random(0), [], []
    for _ in range(flips):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            if config_lib.flatten(workdir.read_config(tmp_path)) != right:
                silent.append(bytes(flipped))
        except UsageError as error:
            told.append(str(error))
    assert not silent
    assert len(told) > 0.96 * flips, "spaces alone may change"
    assert not [line for line in told if "\n" in line]


def test_a_folder_of_programs_is_neither_kept_in_nor_taken_from_a_config(tmp_path, small_config):
    small_config.compilation_cache = "/mine"
    begin(tmp_path, small_config)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    assert written["compilation_cache"] == ""
    assert config_lib.SCHEMA.keys() == written.keys() - {seal.NAME}
    path.write_text(json.dumps(seal.sealed({**written, "compilation_cache": "/planted"})))
    assert workdir.read_config(tmp_path).compilation_cache == ""
    small_config.compilation_cache = "/mine/now"
    with workdir.lock_workdir(tmp_path, small_config):  # it is no other config
        pass
