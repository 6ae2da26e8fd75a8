"""`launch.slurm`, as a real process against stand-ins for SLURM."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.cloud import NASTY, STAND_IN, Cloud


def submit(cloud: Cloud, *words: str) -> subprocess.CompletedProcess[str]:
    python = cloud.folder / "venv" / "python"
    python.parent.mkdir()
    python.symlink_to(STAND_IN)
    flags = ["--nodes=2", f"--python={python}", f"--workdir={cloud.folder}/50% a b", "--json"]
    return cloud.finish("slurm", *flags, *words, "--", "--config=c", *NASTY)


def ended(cloud: Cloud, code: int | None = None) -> str:
    """Waits for the job; returns its log."""
    pid = int((cloud.folder / "job").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists() or ") Z " in stat.read_text():
            return (cloud.folder / "50% a b" / "slurm-7.out").read_text()
        time.sleep(0.02)
    raise AssertionError("the job does not end")


@pytest.mark.parametrize(
    ("words", "tasks", "devices"),
    [
        (["--gpus-per-node=4"], 2, "0,1,2,3"),
        (["--gpus-per-node=4", "--processes=gpu", "--cpus-per-process=8"], 8, "own"),
        ([], 2, "own"),
    ],
)
def test_a_job_of_one_process_a_node_or_a_gpu(words, tasks, devices, cloud):
    done = submit(cloud, *words, "--time=1:00:00", "--sbatch=--qos=a b")
    assert done.returncode == 0, done.stderr
    log = f"{cloud.folder}/50% a b/slurm-7.out"
    assert json.loads(done.stdout) == {"job": "7", "log": log}
    assert ended(cloud).count("step 1/1") == tasks
    [sbatch] = cloud.calls("sbatch")
    assert {"--requeue", "--open-mode=append", "--nodes=2", "--time=1:00:00", "--qos=a b",
            f"--ntasks-per-node={tasks // 2}"} <= set(sbatch)  # fmt: skip
    at = next(i for i, word in enumerate(sbatch) if word.endswith("/train.sbatch"))
    assert sbatch[at + 1] == devices
    [srun] = cloud.calls("srun")
    assert srun[1] == "--kill-on-bad-exit=1"
    assert ("--cpus-per-task=8" in srun) == ("--cpus-per-process=8" in words)
    wanted = ["-m", "xception_jax.main", f"--num_processes={tasks}", "--config=c", *NASTY,
              f"--workdir={cloud.folder}/50% a b"]  # fmt: skip
    assert [call[1:] for call in cloud.calls("python")] == [wanted] * tasks
    assert cloud.calls("scontrol") == []


def wait_for(cloud: Cloud, tasks: int) -> int:
    """The process id of the job, once its tasks have begun."""
    log = cloud.folder / "50% a b" / "slurm-7.out"
    deadline = time.monotonic() + 20
    while not (log.exists() and log.read_text().count("begun") == tasks):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int((cloud.folder / "job").read_text())


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_at_its_time_limit_saves_and_is_queued_again(number, cloud):
    cloud.training({"lines": ["begun"], "code": None})
    submit(cloud)
    job = wait_for(cloud, 2)
    os.kill(job, number)
    if number == signal.SIGTERM:
        # As at a preemption: SLURM tells the tasks itself, and queues the job again itself.
        time.sleep(0.1)
        for task in json.loads((cloud.folder / "tasks").read_text()):
            os.kill(task, signal.SIGTERM)
    assert ended(cloud).count("saved") == 2
    again = [["scontrol", "requeue", "7"]] if number == signal.SIGUSR1 else []
    assert cloud.calls("scontrol") == again
    assert len(cloud.calls("scancel")) == len(again)


def test_a_refused_job_says_why(cloud):
    cloud.answers({"^sbatch": [(1, "", "sbatch: error: invalid partition specified: gpu")]})
    done = submit(cloud)
    assert done.returncode == 1
    assert "sbatch: error: invalid partition specified: gpu" in done.stderr.splitlines()[-1]
