"""Whole runs in real processes: killed, stopped, moved to other devices, and evaluated."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_datasets
from tests.processes import finish, result, signal_at
from xception_jax import config as config_lib
from xception_jax.training.checkpoint import Checkpoints


@pytest.fixture
def flags(small_config):
    """A function of a workdir that gives the flags of a small run there."""

    def make(workdir: Path, **changes: object) -> list[str]:
        changed = config_lib.flatten(small_config)
        defaults = config_lib.flatten(config_lib.default())
        given = {name: changed[name] for name in config_lib.differences(defaults, changed)}
        given |= {name.replace("__", "."): value for name, value in changes.items()}
        overrides = [f"--config.{name}={value}" for name, value in given.items()]
        return ["--config=tests/default_config.py", f"--workdir={workdir}", *overrides]

    return make


def meta(workdir: Path, step: int) -> dict:
    return json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())


def records(workdir: Path) -> list[tuple[str, int, float]]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(r["kind"], r["step"], r["loss"]) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run of twelve steps that nothing happened to; made by the first test that needs it."""
    return tmp_path_factory.mktemp("undisturbed") / "run"


def run_undisturbed(workdir: Path, flags) -> dict:
    if not workdir.exists():
        process = finish("main", *flags(workdir), "--json")
        (workdir / "result.json").write_text(json.dumps(result(process)))
        (workdir / "said.txt").write_text(process.stderr)
    return json.loads((workdir / "result.json").read_text())


def test_a_run_tells_what_it_does_and_leaves_its_files(undisturbed, flags):
    found = run_undisturbed(undisturbed, flags)
    said = (undisturbed / "said.txt").read_text()
    assert "optical_digits/1.0.0:train: 1,437 examples, 10 classes; 12 steps of 64" in said
    assert "middle_flow.0" in said, "the parameter table"
    assert "step 12/12" in said
    assert f"done: {undisturbed}/checkpoints/12" in said
    assert f"python -m xception_jax.evaluate --workdir={undisturbed}" in said
    assert found["step"] == 12
    assert found["examples"] == 360
    assert {"config.json", "metrics.jsonl", "checkpoints"} <= {
        p.name for p in undisturbed.iterdir()
    }
    assert list(undisturbed.glob("events.out.tfevents.*"))
    assert [(kind, step) for kind, step, _ in records(undisturbed) if kind == "eval"] == [
        ("eval", 6), ("eval", 12),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "step",
    [1, 5, 6, 11, *(pytest.param(s, marks=pytest.mark.slow) for s in (2, 3, 4, 7, 8, 9, 10))],
)
def test_killed_at_any_step_and_started_again_ends_bit_identical(
    undisturbed, flags, tmp_path, step
):
    run_undisturbed(undisturbed, flags)
    code, _ = signal_at(step, signal.SIGKILL, "main", *flags(tmp_path / "run"))
    assert code == -signal.SIGKILL
    again = result(finish("main", *flags(tmp_path / "run"), "--json"))
    assert again["step"] == 12
    assert meta(tmp_path / "run", 12)["digests"] == meta(undisturbed, 12)["digests"]
    # The first step of a process is told with its compilation, not logged: compare evaluations.
    evaluations = [r for r in records(undisturbed) if r[0] == "eval"]
    assert [r for r in records(tmp_path / "run") if r[0] == "eval"] == evaluations


def test_sigterm_saves_and_the_same_command_continues(undisturbed, flags, tmp_path):
    run_undisturbed(undisturbed, flags)
    workdir = tmp_path / "run"
    code, said = signal_at(3, signal.SIGTERM, "main", *flags(workdir))
    assert code == 0
    assert "and saved; the same command continues" in said
    stopped = int(said.split("stopped at step ")[1].split()[0])
    assert 3 <= stopped <= 8
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.find("latest") == stopped
    process = finish("main", *flags(workdir), "--json")
    assert f"continues from the checkpoint of step {stopped}" in process.stderr
    assert result(process)["step"] == 12
    assert meta(workdir, 12)["digests"] == meta(undisturbed, 12)["digests"]


def test_a_finished_run_started_again_has_nothing_to_do(undisturbed, flags):
    found = run_undisturbed(undisturbed, flags)
    before = records(undisturbed)
    assert result(finish("main", *flags(undisturbed), "--json")) == found
    assert records(undisturbed) == before


@pytest.mark.parametrize("options", [(), ("--batch_size=7",), ("--batch_size=360",), ("--step=6",)])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_evaluate_reports_what_the_run_did(undisturbed, flags, options, devices):
    found = run_undisturbed(undisturbed, flags)
    if options == ("--step=6",):
        with Checkpoints(undisturbed, read_only=True) as checkpoints:
            found = {"step": 6, **checkpoints.metrics(6)}
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    again = result(finish("evaluate", f"--workdir={undisturbed}", "--json", *options, env=env))
    exact = ("step", "top1", "top5", "examples")
    assert [again[name] for name in exact] == [found[name] for name in exact]
    assert again["loss"] == pytest.approx(found["loss"], abs=1e-6)
    assert (again["weights"], again["split"]) == ("ema", "test")


def test_evaluate_raw_weights_of_another_split_as_a_table(undisturbed, flags):
    run_undisturbed(undisturbed, flags)
    process = finish("evaluate", f"--workdir={undisturbed}", "--weights=raw", "--split=train[:100]")
    assert process.returncode == 0, process.stderr
    cells = [line.split("│")[1:3] for line in process.stdout.splitlines() if "│" in line]
    table = {name.strip(): value.strip() for name, value in cells}
    assert table["weights"] == "raw"
    assert table["examples"] == "100"
    assert table["top1"].endswith("%")


def test_eight_devices_see_the_same_and_end_within_rounding(undisturbed, flags, tmp_path):
    run_undisturbed(undisturbed, flags)
    found = result(finish("main", *flags(tmp_path / "run", mesh__data=8), "--json"))
    assert found["examples"] == 360
    one, eight = (
        {(k, s): loss for k, s, loss in records(folder)}
        for folder in (undisturbed, tmp_path / "run")
    )
    assert one.keys() == eight.keys()
    assert eight == pytest.approx(one, rel=1e-3)


def test_a_run_moves_to_other_devices_with_the_flag(undisturbed, flags, tmp_path):
    run_undisturbed(undisturbed, flags)
    workdir = tmp_path / "run"
    signal_at(4, signal.SIGTERM, "main", *flags(workdir))
    process = finish("main", *flags(workdir, mesh__data=8))
    assert process.returncode == 2
    assert "mesh.data was 1, is 8; --allow_config_changes lets" in process.stderr
    moved = flags(workdir, mesh__data=8)
    assert result(finish("main", *moved, "--allow_config_changes", "--json"))["step"] == 12
    losses = [np.array([loss for kind, _, loss in records(f) if kind == "eval"])
              for f in (workdir, undisturbed)]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    flags, tmp_path
):
    workdir = tmp_path / "run"
    wild = flags(workdir, optimizer__learning_rate=1e18, checkpoint__every="1 step")
    process = finish("main", *wild)
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert "step" in line
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert all(step < 12 for step in checkpoints.steps())


def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(undisturbed, flags, tmp_path):
    run_undisturbed(undisturbed, flags)
    workdir = tmp_path / "run"
    assert finish("main", *flags(workdir)).returncode == 0
    newest = workdir / "checkpoints" / "12"
    path = max(
        (p for p in (newest / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused = finish("evaluate", f"--workdir={workdir}", "--weights=raw")
    assert refused.returncode == 1
    assert "checkpoint 12" in refused.stderr
    process = finish("main", *flags(workdir), "--json")
    assert "DAMAGED: checkpoint 12" in process.stderr
    assert "continues from the checkpoint of step 10" in process.stderr
    assert result(process)["step"] == 12
    assert meta(workdir, 12)["digests"] == meta(undisturbed, 12)["digests"]


def test_any_data_set_trains_by_name(tmp_path):
    tiny_datasets.prepare(tmp_path, "tiny_photos", examples={"train": 48, "validation": 20})
    process = finish(
        "main", "--config=configs/imagenet.py", f"--workdir={tmp_path / 'run'}", "--json",
        "--config.data.dataset=tiny_photos", f"--config.data.data_dir={tmp_path}",
        "--config.data.batch_size=8", "--config.model.bn_virtual_batch=8", "--config.mesh.data=1",
        "--config.data.image_size=24", "--config.model.width=0.02", "--config.duration=3 steps",
        "--config.model.middle_blocks=1",
    )  # fmt: skip
    assert result(process)["examples"] == 20
