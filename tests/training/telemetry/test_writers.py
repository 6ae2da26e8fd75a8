"""Log writers: which there are, and what a run does with one that is slow or fails."""

import json
import threading

import pytest

from xception_jax.errors import UsageError
from xception_jax.training.telemetry import writers
from xception_jax.training.telemetry.records import Records, read
from xception_jax.training.telemetry.writers import LogWriter, RunInfo

GO = threading.Event()


@writers.register("slow")
class Slow(LogWriter):
    """Waits for its server."""

    def write(self, kind, step, metrics):
        GO.wait(60)


@writers.register("no entry")
class NoEntry(LogWriter):
    def __init__(self, info):
        raise PermissionError("nobody is logged in\nand more")


def test_a_slow_writer_holds_up_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_PATIENCE_S", 0.1)
    said = []
    records = Records(tmp_path, 0, names=("slow",), say=said.append)
    for step in range(100):
        records.write("train", step, {"loss": 1.0})
    records.close()
    GO.set()
    assert said == [
        "NOTE: the log writer slow failed: it did not take everything in 0 s; the run goes on"
    ]
    assert len(read(tmp_path)) == 100


def test_one_that_cannot_be_made_is_told_of_once(tmp_path):
    said = []
    records = Records(tmp_path, 0, names=("no entry", "no entry"), say=said.append)
    records.write("train", 1, {"loss": 1.0})
    records.close(failed=True)
    assert said == ["NOTE: the log writer no entry failed: nobody is logged in; the run goes on"]


def test_processes_other_than_the_first_have_none(tmp_path):
    records = Records(None, 0, names=("no entry",), say=pytest.fail)
    records.write("train", 1, {"loss": 1.0})
    records.close()


def test_an_id_is_made_once(tmp_path):
    assert RunInfo(tmp_path).recall("a", lambda: "1") == "1"
    assert RunInfo(tmp_path).recall("b", lambda: "2") == "2"
    assert RunInfo(tmp_path, start=8).recall("a", lambda: "3") == "1"
    assert json.loads((tmp_path / "log_ids.json").read_text()) == {"a": "1", "b": "2"}


def test_names_and_packages_are_checked(tmp_path, monkeypatch):
    writers.check(("slow",))
    with pytest.raises(UsageError, match="'slo'; did you mean 'slow'"):
        writers.check(("slo",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_such_package").mkdir()
    writers.register("far", needs="no_such_package")(Slow)
    with pytest.raises(UsageError, match="which needs: pip install 'no_such_package'"):
        writers.check(("far",))
