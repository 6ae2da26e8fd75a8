"""Log writers: which there are, and what a run does with one that is slow or fails."""

import json
import threading
from typing import ClassVar

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
        raise PermissionError("not logged in\nand more")


def test_a_slow_writer_holds_up_no_step(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_PATIENCE_S", 0.1)
    said = []
    records = Records(tmp_path, 0, names=("slow",), say=said.append)
    for step in range(100):
        records.write("train", step, {"loss": 1.0})
    records.close()
    GO.set()
    assert said == ["NOTE: the log writer slow failed: it did not finish in 0 s; the run goes on"]
    assert len(read(tmp_path)) == 100


def test_one_that_cannot_be_made_is_told_of_once(tmp_path):
    said = []
    records = Records(tmp_path, 0, names=("no entry", "no entry"), say=said.append)
    records.write("train", 1, {"loss": 1.0})
    records.close(failed=True)
    assert said == ["NOTE: the log writer no entry failed: not logged in; the run goes on"]


class Failing(LogWriter):
    """Gives up as a program does, at its first record."""

    closed: ClassVar[list[bool]] = []

    def write(self, kind, step, metrics):
        raise SystemExit("out of quota")

    def close(self, failed):
        self.closed.append(failed)


def test_one_that_fails_is_closed_whatever_it_raises(tmp_path, monkeypatch):
    writers.register("failing")(Failing)
    said = []
    records = Records(tmp_path, 0, names=("failing",), say=said.append)
    records.write("train", 1, {"loss": 1.0})
    records.close()
    assert said == ["NOTE: the log writer failing failed: out of quota; the run goes on"]
    assert Failing.closed == [True]


def test_several_slow_ones_are_waited_for_together(tmp_path, monkeypatch):
    now = [0.0]
    waits = []
    monkeypatch.setattr(writers.time, "monotonic", lambda: now[0])

    def join(thread, seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(writers.threading.Thread, "join", join)
    go = threading.Event()

    class Waiting(LogWriter):
        def write(self, kind, step, metrics):
            go.wait(60)

    for name in ("a", "b"):
        writers.register(name)(Waiting)
    records = Records(tmp_path, 0, names=("a", "b"), say=lambda text: None, clock=lambda: 0.0)
    records.write("train", 1, {"loss": 1.0})
    records.close()
    go.set()
    assert waits == [writers._PATIENCE_S, 0.0]


def test_processes_other_than_the_first_have_none(tmp_path):
    records = Records(None, 0, names=("no entry",), say=pytest.fail)
    records.write("train", 1, {"loss": 1.0})
    records.close()


def test_an_id_is_made_once(tmp_path):
    assert RunInfo(tmp_path).recall("a", lambda: "1") == "1"
    assert RunInfo(tmp_path).recall("b", lambda: "2") == "2"
    assert RunInfo(tmp_path, start=8).recall("a", lambda: "3") == "1"
    assert json.loads((tmp_path / "log_ids.json").read_text()) == {"a": "1", "b": "2"}


def test_ids_that_are_made_at_once_are_all_kept(tmp_path):
    """A server is asked for one while the other writer has its own already."""
    asked, go = threading.Event(), threading.Event()

    def from_a_server():
        asked.set()
        go.wait(60)
        return "far"

    thread = threading.Thread(target=RunInfo(tmp_path).recall, args=("server", from_a_server))
    thread.start()
    asked.wait(60)
    RunInfo(tmp_path).recall("fast", lambda: "near")
    go.set()
    thread.join()
    kept = json.loads((tmp_path / "log_ids.json").read_text())
    assert kept == {"fast": "near", "server": "far"}


def test_names_and_packages_are_checked(tmp_path, monkeypatch):
    writers.check(("slow",))
    with pytest.raises(UsageError, match="'slo'; did you mean 'slow'"):
        writers.check(("slo",))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_such_package").mkdir()
    writers.register("far", needs="no_such_package")(Slow)
    with pytest.raises(UsageError, match="which needs: pip install 'no_such_package'"):
        writers.check(("far",))
