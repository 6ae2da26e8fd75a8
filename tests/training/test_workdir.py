"""One writer, one config."""

import json

import pytest

from xception_jax import config as config_lib
from xception_jax import seal
from xception_jax.errors import UsageError
from xception_jax.training import workdir


def begin(folder, config):
    """A run that has saved something."""
    with workdir.claim(folder, config):
        (folder / "checkpoints" / "2").mkdir(parents=True)


def test_the_config_is_written_and_read_back(tmp_path, small_config):
    small_config.model.fc_units = (3, 4)
    with workdir.claim(tmp_path / "deep" / "run", small_config):
        pass
    found = workdir.read_config(tmp_path / "deep" / "run")
    assert config_lib.flatten(found) == config_lib.flatten(small_config)


def test_a_second_writer_is_refused_until_the_first_is_done(tmp_path, small_config):
    with (
        workdir.claim(tmp_path, small_config),
        pytest.raises(UsageError, match="another process is training in"),
        workdir.claim(tmp_path, small_config),
    ):
        pass
    with workdir.claim(tmp_path, small_config):
        pass


def test_another_config_is_refused_and_the_fields_named(tmp_path, small_config):
    begin(tmp_path, small_config)
    small_config.optimizer.learning_rate = 0.5
    small_config.log.every = "9 steps"
    for allow in (False, True):
        with (
            pytest.raises(UsageError) as caught,
            workdir.claim(tmp_path, small_config, allow_changes=allow),
        ):
            pass
        assert "optimizer.learning_rate was 0.001, is 0.5" in str(caught.value)
        assert "log.every was '1 step', is '9 steps'" in str(caught.value)
        assert "another --workdir" in str(caught.value)


def test_a_run_that_has_saved_nothing_takes_another_config(tmp_path, small_config):
    with workdir.claim(tmp_path, small_config):
        (tmp_path / "checkpoints").mkdir()
    small_config.seed = 5
    with workdir.claim(tmp_path, small_config):
        pass
    assert workdir.read_config(tmp_path).seed == 5


def test_harmless_fields_may_change_with_the_flag(tmp_path, small_config):
    begin(tmp_path, small_config)
    small_config.log.every = "9 steps"
    with (
        pytest.raises(UsageError, match="--allow_config_changes lets them"),
        workdir.claim(tmp_path, small_config),
    ):
        pass
    with workdir.claim(tmp_path, small_config, allow_changes=True):
        pass
    assert workdir.read_config(tmp_path).log.every == "9 steps"


@pytest.mark.parametrize(("schedule", "allowed"), [("staircase", True), ("cosine", False)])
def test_a_run_may_grow_longer_where_its_rate_does_not_know(
    tmp_path, small_config, schedule, allowed
):
    small_config.optimizer.schedule = schedule
    begin(tmp_path, small_config)
    small_config.duration = "24 steps"
    if allowed:
        with workdir.claim(tmp_path, small_config, allow_changes=True):
            pass
    else:
        with (
            pytest.raises(UsageError, match="duration was '12 steps', is '24 steps'"),
            workdir.claim(tmp_path, small_config, allow_changes=True),
        ):
            pass


def test_a_folder_that_is_a_file(tmp_path, small_config):
    path = tmp_path / "file"
    path.write_text("mine")
    with (
        pytest.raises(UsageError, match="is a file; name a folder"),
        workdir.claim(path, small_config),
    ):
        pass
    assert path.read_text() == "mine"


def test_no_run_there(tmp_path):
    with pytest.raises(UsageError, match=r"no run in .* no config\.json"):
        workdir.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        workdir.read_config(tmp_path)


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
    with workdir.claim(tmp_path, small_config):  # it is no other config
        pass
