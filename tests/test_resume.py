"""Runs that something happens to: killed, stopped, moved to other devices, damaged."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import (
    averaged,
    digests,
    finish,
    records,
    result,
    signal_at,
    train_metrics,
)
from xception_jax.training.checkpoint.checkpoints import Checkpoints


@pytest.mark.parametrize(
    "step",
    [
        6,
        pytest.param(1, marks=pytest.mark.slow),
        *(
            pytest.param(step, marks=[pytest.mark.slow, pytest.mark.long])
            for step in (2, 3, 4, 5, 7, 8, 9, 10, 11)
        ),
    ],
)
def test_killed_at_any_step_and_started_again_ends_bit_identical(
    undisturbed, flags, tmp_path, step
):
    # Where a line stands for three steps, a checkpoint of every second one comes in between.
    every = 3 if step % 3 == 0 else 1
    given = flags(tmp_path / "run", log__every=f"{every} steps")
    code, _ = signal_at(step, signal.SIGKILL, "main", *given)
    assert code == -signal.SIGKILL
    again = result(finish("main", *given, "--json"))
    assert again["step"] == 12
    assert digests(tmp_path / "run", 12) == digests(undisturbed, 12)
    evaluations = [
        [r for r in records(f) if r[0] == "eval"] for f in (tmp_path / "run", undisturbed)
    ]
    assert evaluations[0] == evaluations[1]
    assert train_metrics(tmp_path / "run") == averaged(train_metrics(undisturbed), every)


def test_sigterm_saves_and_the_same_command_continues(undisturbed, flags, tmp_path):
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
    assert digests(workdir, 12) == digests(undisturbed, 12)


def test_a_finished_run_started_again_has_nothing_to_do(undisturbed, flags):
    found = json.loads((undisturbed / "result.json").read_text())
    before = records(undisturbed)
    assert result(finish("main", *flags(undisturbed), "--json")) == found
    assert records(undisturbed) == before


@pytest.mark.slow
def test_a_run_moves_to_other_devices_with_the_flag(undisturbed, flags, tmp_path):
    workdir = tmp_path / "run"
    signal_at(4, signal.SIGTERM, "main", *flags(workdir))
    process = finish("main", *flags(workdir, mesh__data=8))
    assert process.returncode == 2
    assert "mesh.data was 1, is 8; add --allow_config_changes" in process.stderr
    moved = flags(workdir, mesh__data=8)
    assert result(finish("main", *moved, "--allow_config_changes", "--json"))["step"] == 12
    losses = [np.array([loss for kind, _, loss in records(f) if kind == "eval"])
              for f in (workdir, undisturbed)]  # fmt: skip
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_a_run_that_continues_finds_its_compiled_programs(flags, tmp_path):
    """In the user's own cache folder, for any workdir."""
    env = {
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    assert finish("main", *flags(tmp_path / "run", duration="4 steps"), env=env).returncode == 0
    [folder] = (tmp_path / "cache" / "xception_jax" / "compiled").iterdir()

    def programs() -> set[str]:
        large = ("train_step", "evaluate_batch", "_digest")
        return {path.name for name in large for path in folder.glob(f"jit_{name}-*-cache")}

    before = programs()
    assert any("train_step" in name for name in before)
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "4")
    process = finish("main", *flags(tmp_path / "moved", duration="4 steps"), env=env)
    assert "continues from the checkpoint of step 2" in process.stdout
    assert programs() == before, "none was compiled again"


@pytest.mark.slow
def test_workers_and_memory_change_no_bit(undisturbed, flags, tmp_path):
    """The run that nothing disturbed keeps its images in memory; this one's come from a process."""
    changes = {"data__in_memory": 0, "data__workers": 1}
    assert finish("main", *flags(tmp_path / "run", **changes)).returncode == 0
    assert digests(tmp_path / "run", 12) == digests(undisturbed, 12)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_continues(undisturbed, flags, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
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
    assert digests(workdir, 12) == digests(undisturbed, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.EIO, "params/d/"),
        (errno.ETIMEDOUT, "meta/"),
        pytest.param(errno.ESTALE, "params/manifest.ocdbt", marks=pytest.mark.long),
        pytest.param(errno.EMFILE, "opt_state/_METADATA", marks=pytest.mark.long),
    ],
)
def test_reads_of_a_checkpoint_that_fail_for_a_while_move_nothing(
    undisturbed, flags, tmp_path, number, part
):
    workdir, library, plan = tmp_path / "run", tmp_path / "failing.so", tmp_path / "plan"
    if not (compiler := shutil.which("cc")) or sys.platform != "linux":
        pytest.skip("needs a C compiler on Linux")
    source = Path(__file__).parent / "data" / "failing_reads.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    shutil.copytree(undisturbed, workdir)
    plan.write_text(f"2 {number}")
    env = {"LD_PRELOAD": str(library), "FAIL_PLAN": str(plan),
           "FAIL_PATH": f"checkpoints/12/{part}"}  # fmt: skip
    process = finish("main", *flags(workdir), "--json", env=env)
    assert result(process)["step"] == 12
    assert f"cannot be read at present: {os.strerror(number)}" in process.stderr
    assert "continues from the checkpoint of step 12" in process.stderr
    assert not (workdir / "damaged").exists()


@pytest.mark.slow
def test_a_config_changed_by_hand_is_refused_by_every_command(undisturbed, flags, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"ema.decay": 0.9', '"ema.decay": 0.5'))
    commands = (
        ("main", *flags(workdir)),
        ("main", *flags(workdir), "--allow_config_changes"),
        ("evaluate", f"--workdir={workdir}"),
        ("export", f"--workdir={workdir}", f"--output={tmp_path / 'exported'}"),
        (
            "convert",
            "--from=xception_jax",
            f"--input={workdir}",
            f"--output={tmp_path / 'x.safetensors'}",
        ),
    )
    for command in commands:
        process = finish(*command)
        assert process.returncode == 2, process.stderr
        [line] = process.stderr.splitlines()
        assert "was changed since the run wrote it: ema.decay was 0.9, is 0.5; undo" in line
    path.unlink()
    assert result(finish("evaluate", f"--workdir={workdir}", "--json"))["step"] == 12
