"""Weights & Biases offline, MLflow in files: runs in real processes, stopped, killed, resumed."""

import json
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import finish, signal_at

pytestmark = pytest.mark.slow

Figures = dict[tuple[str, int], float]


def figures(workdir: Path) -> Figures:
    """The loss of each record of training and evaluation."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {(r["kind"], r["step"]): r["loss"] for r in found if "loss" in r}


def stopped_killed_and_resumed(workdir: Path, flags: list[str]) -> str:
    """Does the twelve steps in three processes; what the last one said."""
    assert signal_at(3, signal.SIGTERM, "main", *flags)[0] == 0
    assert signal_at(8, signal.SIGKILL, "main", *flags)[0] == -signal.SIGKILL
    process = finish("main", *flags)
    assert process.returncode == 0, process.stderr
    assert max(step for _, step in figures(workdir)) == 12
    return process.stdout


def in_wandb_file(path: Path) -> Iterator[Any]:
    """Its records; the file is a log in LevelDB's format after a header."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def losses_in(path: Path) -> Figures:
    found = {}
    for record in in_wandb_file(path):
        items = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for kind in ("train", "eval"):
            if f"{kind}/loss" in items:
                found[kind, items["step"]] = items[f"{kind}/loss"]
    return found


def test_wandb_has_one_run_whatever_happens_to_the_processes(tmp_path, flags, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    workdir = tmp_path / "run"
    said = stopped_killed_and_resumed(workdir, flags(workdir, log__writers="wandb"))
    assert f"log: wandb writes to {workdir}/wandb" in said

    stopped, killed, resumed = sorted(workdir.glob("wandb/offline-run-*/run-*.wandb"))
    [identity] = {path.name for path in (stopped, killed, resumed)}
    assert json.loads((workdir / "log_ids.json").read_text())["wandb"] in identity
    expected = figures(workdir)
    first, last = losses_in(stopped), losses_in(resumed)
    assert len(first) >= 3, "it stopped after step 3"
    assert max(last) == ("train", 12)
    assert ("eval", 12) in last
    for found in (first, losses_in(killed), last):  # a kill takes a second of them along
        assert found.items() <= expected.items()
    codes = [one.exit.exit_code for one in in_wandb_file(resumed) if one.HasField("exit")]
    assert codes == [0]


@pytest.mark.long  # in the short form Weights & Biases stands for both
def test_mlflow_has_one_run_whatever_happens_to_the_processes(tmp_path, flags, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    workdir = tmp_path / "run"
    said = stopped_killed_and_resumed(workdir, flags(workdir, log__writers="mlflow"))
    uri = (workdir / "mlruns").as_uri()
    assert f"log: mlflow writes to {uri}" in said
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("xception_jax")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["data.batch_size"] == "64"
    found = {
        (kind, metric.step): metric.value
        for kind in ("train", "eval")
        for metric in client.get_metric_history(run.info.run_id, f"{kind}/loss")
    }
    missing = figures(workdir).keys() - found.keys()
    assert len(missing) <= 1, "what was on its way at the kill"
    assert {key: figures(workdir)[key] for key in found} == found


@pytest.mark.parametrize(
    ("name", "env"),
    [
        pytest.param("wandb", {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": 40 * "a",
                               "WANDB_INIT_TIMEOUT": "5"}, marks=pytest.mark.long),
        pytest.param("wandb", {"WANDB_API_KEY": "", "HOME": "/nowhere"}, marks=pytest.mark.long),
        ("mlflow", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
                    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}),
    ],
)  # fmt: skip
def test_a_server_that_is_not_there_stops_nothing(tmp_path, flags, name, env):
    pytest.importorskip(name)
    workdir = tmp_path / "run"
    process = finish("main", *flags(workdir, log__writers=name, duration="4 steps"), env=env)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count(f"NOTE: the log writer {name} failed: ") == 1
    assert "step 4/4" in process.stdout
    assert f"done: {workdir}/checkpoints/4" in process.stdout
