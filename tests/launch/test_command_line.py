"""The command lines of all launchers."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.launch.cloud import LAUNCHERS
from tests.processes import ROOT


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_shows_an_example_and_imports_nothing_heavy(launcher, cloud):
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('launch.{launcher}', run_name='__main__')\n"
        "except SystemExit as end: print('code:', end.code)\n"
        "print('heavy:', {'jax', 'absl', 'yaml', 'numpy'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["code: 0", "heavy: set()"]
    assert f"python -m launch.{launcher} " in done.stdout
    assert "--dry-run" in done.stdout


@pytest.mark.parametrize(
    ("launcher", "words", "message"),
    [
        ("tpu_vm", "run pod1 --zone=z --bucket=b --workdir=r -- --config=c", "--type is needed"),
        ("tpu_vm", "run pod1 --zone=z --type=tpu7x-8 --bucket=b --workdir=r -- --config=c",
         "the Cloud TPU API has no tpu7x; use launch.compute_engine or launch.gke"),
        ("tpu_vm", "run Pod --zone=z --type=v4-8", "name 'Pod': only a-z"),
        ("tpu_vm", "run pod1 --zone=z --type=v4-8 --workdir=r -- --config=c", "needs --bucket"),
        ("tpu_vm", "run pod1 --zone=z --type=v4-8 --bucket=b --workdir=/x -- --config=c",
         "--workdir=/x: give a path inside the bucket"),
        ("tpu_vm", "run pod1 --zone=z --type=v4-8 --bucket=b --workdir=a/../../x -- --config=c",
         "give a path inside the bucket"),
        ("tpu_vm", "run pod1 --zone=z --type=v4-8 --bucket=b --workdir=r",
         "the config is missing. Add: -- --config=configs/imagenet.py"),
        ("tpu_vm", "run pod1 --zone=z --type=v4-8 --bucket=b --workdir=r -- --config=c --workdir=x",
         "--workdir goes before the --"),
        ("tpu_vm", "run pod1 --zne=z", "--zone"),
        ("tpu_vm", "run pod1 --zone=z --buckt=b",
         "unrecognized arguments: --buckt=b; did you mean --bucket?"),
        ("tpu_vm", "ran pod1 --zone=z", "invalid choice: 'ran'"),
        ("compute_engine", "status pod1 --zone=z", "--type=tpu7x:2x2x1 for TPUs, or"),
        ("compute_engine", "run pod1 --zone=z --type=v5e-8 --bucket=b --workdir=r -- --config=c",
         "Compute Engine has no v5e, but v5p, v6e, tpu7x"),
        ("compute_engine",
         "run pod1 --zone=z --machine-type=a3-highgpu-8g --bucket=b --workdir=r -- --config=c",
         "--machine-type needs --image-family and --image-project"),
        ("gke", "render run1 --type=v4-8 --gpu=nvidia-l4 --image=i", "--type=tpu7x:2x2x2 for TPUs"),
        ("gke", "render run1 --type=v4-8 --bucket=b --workdir=r -- --config=c", "needs --image"),
        ("slurm", "--workdir=/x --processes=gpu -- --config=c", "needs --gpus-per-node"),
        ("slurm", "--workdir=/x --nodes=0 -- --config=c", "--nodes and --warning are at least 1"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_exit_code_2(launcher, words, message, cloud):
    done = cloud.finish(launcher, *words.split())
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert cloud.calls() == []


def test_a_program_that_is_not_there_is_named(cloud):
    cloud.env["PATH"] = str(cloud.folder / "machines")
    done = cloud.finish("tpu_vm", "status", "pod1", "--zone=z", "--type=v4-8")
    assert done.returncode == 2
    assert "there is no gcloud on the PATH; install the Google Cloud CLI" in done.stderr


def test_shellcheck_finds_nothing():
    beside = shutil.which("shellcheck", path=os.path.dirname(sys.executable))
    shellcheck = beside or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("shellcheck is not installed")
    scripts = sorted((ROOT / "launch").glob("*.sbatch"))
    assert scripts
    done = subprocess.run(
        [shellcheck, *scripts, *(ROOT / ".ci").iterdir()],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
