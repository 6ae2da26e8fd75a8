"""Stand-ins for gcloud, kubectl and SLURM, and what they have seen.

Behind the stand-in's ssh the worker runs for real, one home folder for each machine.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.processes import ROOT

STAND_IN = ROOT / "tests" / "launch" / "stand_in.py"


PROGRAMS = (
    "gcloud",
    "kubectl",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "docker",
    "gcsfuse",
    "sudo",
)


LAUNCHERS = ("tpu_vm", "compute_engine", "gke", "slurm")


# Words that a shell would make something else of.
NASTY = ["--config.a=a b", "--config.b=$(touch x)", "--config.c='\"`touch y`", "--config.d=é\n; z",
         "--config.e=*", "--config.f=\\", "--config.g=$HOME"]  # fmt: skip


class Cloud:
    """What the stand-ins know and have seen."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder = folder
        self.checkout = checkout
        programs = folder / "bin"
        programs.mkdir()
        for name in PROGRAMS:
            (programs / name).symlink_to(STAND_IN)
        # The machines' own one, instead of one that a version manager would choose each time.
        (programs / "python3").symlink_to(Path(sys.executable).resolve())
        self.answers({})
        self.training({"lines": ["step 1/1"], "code": 0})
        self.env = {
            **os.environ,
            "STAND_INS": str(folder),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(checkout),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def answers(self, answers: dict[str, list[tuple[int | str, str, str]]]) -> None:
        """What programs answer: for a pattern of their words, each answer in turn."""
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def training(self, plan: dict[str, Any], **others: dict[str, Any]) -> None:
        """What training does, and what it does on some machines."""
        plans = {"any": plan, **{name.lstrip("_"): other for name, other in others.items()}}
        (self.folder / "training.json").write_text(json.dumps(plans))

    def machines(self, *names: str) -> None:
        """Machines on which uv is installed already."""
        for name in names:
            uv = self.folder / "machines" / name / "xception_jax" / "uv" / "bin" / "uv"
            uv.parent.mkdir(parents=True)
            uv.symlink_to(STAND_IN)

    def start(self, launcher: str, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Starts a launcher."""
        return subprocess.Popen(
            [sys.executable, "-m", f"launch.{launcher}", *words], cwd=self.checkout, env=self.env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
        )  # fmt: skip

    def finish(self, launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a launcher to its end."""
        process = self.start(launcher, *words)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self, program: str = "") -> list[list[str]]:
        """All calls so far, of one program or of all."""
        path = self.folder / "calls.jsonl"
        calls = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        return [call for call in calls if call[0] == program or not program]


def git(root: Path, *words: str) -> None:
    subprocess.run(
        ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=b", *words],
        check=True, capture_output=True,
    )  # fmt: skip


NOT_FOUND = (1, "", "ERROR: (gcloud) NOT_FOUND: Resource 'pod1' was not found")


WAITING = (0, '{"state": {"state": "WAITING_FOR_RESOURCES"}}', "")


ACTIVE = (0, '{"state": {"state": "ACTIVE"}}', "")


SUSPENDED = (0, '{"state": {"state": "SUSPENDED"}}', "")


DESCRIBE = "queued-resources describe"


def tpu(
    verb: str, cloud: Cloud, *more: str, arguments: tuple[str, ...] = (), kind: str = "v4-16"
) -> list[str]:
    """The command line, unless `kind` is another for two hosts of v4."""
    flags = ["--zone=us-central2-b", f"--type={kind}", "--bucket=my-bucket", "--workdir=runs/a b"]
    flags = [verb, "pod1", *flags, f"--mount={cloud.folder}/bucket", "--poll=0.05", *more]
    return [*flags, "--", "--config=configs/digits.py", *arguments]
