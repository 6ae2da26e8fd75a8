"""The launchers as real processes, against stand-ins for gcloud, kubectl and SLURM.

Behind the stand-in's ssh the worker runs for real, one home folder for each machine.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import slices, source, worker
from launch.gke import unexpanded
from tests.processes import ROOT
from xception_jax import slices as tables
from xception_jax.errors import UsageError

STAND_IN = ROOT / "tests" / "stand_in.py"
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
        # That of the machines, in place of one that a version manager would choose anew each time.
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


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A clone to launch from; what runs the tests may have come without its .git."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("launch", "xception_jax", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, root)
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    return root


@pytest.fixture
def cloud(tmp_path, checkout) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path, checkout)
    yield cloud
    for state in tmp_path.glob("machines/*/xception_jax/state.json"):
        found = json.loads(state.read_text())
        if found["state"] == "running":  # a test that failed left it
            os.kill(found["supervisor"], signal.SIGKILL)
            os.kill(found["pid"], signal.SIGKILL)


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


# Slices


@pytest.mark.parametrize(
    ("name", "topology", "chips", "hosts", "machine", "accelerator_type"),
    [  # as the pages of docs.cloud.google.com/tpu/docs on each version have them
        ("v4-8", "2x2x1", 4, 1, "ct4p-hightpu-4t", "v4-8"),
        ("v4-32", "2x2x4", 16, 4, "ct4p-hightpu-4t", "v4-32"),
        ("v4-128", "4x4x4", 64, 16, "ct4p-hightpu-4t", "v4-128"),
        ("v4-512", "4x8x8", 256, 64, "ct4p-hightpu-4t", "v4-512"),
        ("v5litepod-1", "1x1", 1, 1, "ct5lp-hightpu-1t", "v5litepod-1"),
        ("v5e-8", "2x4", 8, 1, "ct5lp-hightpu-8t", "v5litepod-8"),
        ("v5litepod-16", "4x4", 16, 4, "ct5lp-hightpu-4t", "v5litepod-16"),
        ("v5e:16x16", "16x16", 256, 64, "ct5lp-hightpu-4t", "v5litepod-256"),
        ("v5p-8", "2x2x1", 4, 1, "ct5p-hightpu-4t", "v5p-8"),
        ("v5p-1024", "8x8x8", 512, 128, "ct5p-hightpu-4t", "v5p-1024"),
        ("v6e-4", "2x2", 4, 1, "ct6e-standard-4t", "v6e-4"),
        ("v6e-256", "16x16", 256, 64, "ct6e-standard-4t", "v6e-256"),
        ("tpu7x-8", "2x2x1", 4, 1, "tpu7x-standard-4t", "tpu7x-8"),
        ("tpu7x:1x1x1", "1x1x1", 1, 1, "tpu7x-standard-1t", "tpu7x-2"),
        ("tpu7x:4x4x8", "4x4x8", 128, 32, "tpu7x-standard-4t", "tpu7x-256"),
    ],
)
def test_slices_by_name(name, topology, chips, hosts, machine, accelerator_type):
    found = slices.parse(name)
    assert (found.topology, found.chips, found.hosts) == (topology, chips, hosts)
    assert (found.machine_type, found.accelerator_type) == (machine, accelerator_type)
    assert found.is_default_shape


@given(st.sampled_from(sorted(slices.GENERATIONS)), st.lists(st.integers(0, 40), max_size=4))
def test_every_shape_is_refused_or_makes_whole_hosts(generation, sides):
    name = f"{generation}:{'x'.join(map(str, sides))}"
    try:
        found = slices.parse(name)
    except UsageError:
        return
    assert str(found) == name
    assert found.hosts * found.chips_per_host == found.chips <= tables.KINDS[generation].largest
    named = slices.parse(found.accelerator_type) if found.is_default_shape else None
    assert named in (None, found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7-8", "no TPU slice 'v7-8'; did you mean"),
        ("v5lite-16", "did you mean 'v5litepod-"),
        ("v5e-12", "v5e- goes with chips: 1, 4, 8, 16"),
        ("v4-7", "did you mean 'v4-8'? v4- goes with cores, two a chip: 8, 16"),
        ("v5e:4x2", "no TPU slice 'v5e:4x2'; did you mean 'v5e:2x4'?"),
        ("v5p:4x4x2", "no TPU slice 'v5p:4x4x2'; did you mean 'v5p:2x4x4'?"),
    ],
)
def test_slices_that_are_not_there(name, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        slices.parse(name)


# Command lines


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
         "what is to be trained? Add: -- --config=configs/imagenet.py"),
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


# Rented machines


def test_a_run_from_creation_to_deletion_on_two_hosts(cloud):
    cloud.machines("0", "1")
    cloud.answers({DESCRIBE: [NOT_FOUND, WAITING, ACTIVE]})
    words = tpu("run", cloud, "--delete-after", "--spot", "--json", arguments=tuple(NASTY))
    dry = cloud.finish("tpu_vm", *words[:-9], "--dry-run", *words[-9:])
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == [], "a dry run runs nothing"
    done = cloud.finish("tpu_vm", *words)
    assert done.returncode == 0, done.stderr

    # The arguments arrive on each machine as they are, and nothing of them was run.
    for number in ("0", "1"):
        home = cloud.folder / "machines" / number
        state = json.loads((home / "xception_jax" / "state.json").read_text())
        workdir = f"--workdir={cloud.folder}/bucket/runs/a b"
        assert state["command"][1:3] == ["-m", "xception_jax.main"]
        assert state["command"][3:] == [
            "--num_processes=2", "--config=configs/digits.py", *NASTY, workdir]  # fmt: skip
        assert sorted(p.name for p in home.iterdir()) == ["xception_jax"]
    trained = [call[1:] for call in cloud.calls("python")]
    assert trained == [["-m", "xception_jax.main", *state["command"][3:]]] * 2

    # It ran just what the dry run had printed: as text, and as JSON.
    printed = [as_bash_reads(line) for line in dry.stdout.splitlines()[:-1]]
    assert printed == json.loads(dry.stdout.splitlines()[-1])["commands"]
    ran = cloud.calls("gcloud")
    assert {json.dumps(call) for call in ran} == {json.dumps(call) for call in printed}
    assert ran[-1][3:5] == ["queued-resources", "delete"]
    created = next(call for call in ran if "create" in call)
    assert {"--accelerator-type=v4-16", "--runtime-version=tpu-ubuntu2204-base", "--spot",
            "--node-id=pod1", "--zone=us-central2-b"} <= set(created)  # fmt: skip

    assert "[0] step 1/1" in done.stdout
    assert "[1] step 1/1" in done.stdout
    assert "WAITING_FOR_RESOURCES, after" in done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])["workers"]
    assert [ended[number]["code"] for number in "01"] == [0, 0]
    logs = list((cloud.folder / "bucket" / "runs" / "a b" / "logs").iterdir())
    assert logs
    assert all(log.read_text().endswith("step 1/1\n") for log in logs)


def as_bash_reads(line: str) -> list[str]:
    """The words of a command, as a shell would hand them on."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_the_code_that_runs_is_that_of_the_checkout(cloud):
    cloud.machines("0")
    words = tpu("install", cloud, kind="v4-8")
    assert cloud.finish("tpu_vm", *words).returncode == 0
    code = source.pack(cloud.checkout)
    home = cloud.folder / "machines" / "0" / "xception_jax"
    installed = home / code.archive.name.removesuffix(".tar.gz")
    assert (installed / "launch" / "worker.py").read_bytes() == Path(worker.__file__).read_bytes()
    assert cloud.calls("uv")[-1][-1] == f"{installed}[tpu]"
    before = len(cloud.calls("uv"))
    assert cloud.finish("tpu_vm", *words).returncode == 0
    assert len(cloud.calls("uv")) == before, "what is installed is not installed again"
    [mount, *_] = cloud.calls("gcsfuse")
    assert mount[-2:] == ["my-bucket", f"{cloud.folder}/bucket"]
    assert {"--rename-dir-limit=10000", "--implicit-dirs"} <= set(mount)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("ERROR: (gcloud.x) RESOURCE_EXHAUSTED: Quota limit 'TPUV4sPodPerProject' exceeded.",
         "ask for quota at https://console.cloud.google.com/iam-admin/quotas"),
        ("ERROR: (gcloud.x) There is no more capacity in the zone", "wait in a queue, or try"),
        ("ERROR: (gcloud.x) INVALID_ARGUMENT: acceleratorType v4-16 is unknown",
         "gcloud compute tpus accelerator-types list --zone=ZONE"),
    ],
)  # fmt: skip
def test_a_refused_request_is_one_line_with_what_to_do(error, hint, cloud):
    cloud.answers({DESCRIBE: [NOT_FOUND], "queued-resources create": [(1, "", f"{error}\nmore\n")]})
    done = cloud.finish("tpu_vm", *tpu("run", cloud))
    assert done.returncode == 1
    assert f"gcloud compute tpus queued-resources create failed: {error}; " in done.stderr
    assert hint in done.stderr.splitlines()[-1]
    delete = "python -m launch.tpu_vm delete pod1 --zone=us-central2-b --type=v4-16"
    assert f"the machines cost money; to delete them: {delete}" in done.stderr
    assert not [call for call in cloud.calls() if "ssh" in call]


def test_half_a_creation_is_deleted_where_that_was_asked_for(cloud):
    cloud.answers({DESCRIBE: [NOT_FOUND, (0, '{"state": {"state": "FAILED"}}', "")]})
    done = cloud.finish("tpu_vm", *tpu("run", cloud, "--delete-after"))
    assert done.returncode == 1
    assert "the machines are gone" in done.stderr
    assert "delete" in cloud.calls()[-1]


def test_what_was_preempted_is_made_anew_and_machines_that_do_not_answer_yet_are_waited_for(cloud):
    cloud.machines("0")
    refused = (255, "", "ssh: connect to host 1.2.3.4 port 22: Connection refused")
    cloud.answers({
        DESCRIBE: [SUSPENDED, ACTIVE],
        "--worker=0 --command=mkdir": [refused, refused, ("go on", "", "")],
    })  # fmt: skip
    done = cloud.finish("tpu_vm", *tpu("run", cloud, kind="v4-8"))
    assert done.returncode == 0, done.stderr
    verbs = [call[4] for call in cloud.calls("gcloud") if call[3] == "queued-resources"]
    assert verbs == ["describe", "delete", "create", "describe"]
    assert "Connection refused" in done.stderr
    assert "trying again" in done.stderr


def test_one_worker_that_fails_ends_all_and_is_named(cloud):
    cloud.machines("0", "1")
    cloud.answers({DESCRIBE: [ACTIVE]})
    cloud.training({"lines": ["waits"], "code": None}, _1={"lines": ["error: no data"], "code": 1})
    done = cloud.finish("tpu_vm", *tpu("run", cloud, "--grace=0.2"))
    assert done.returncode == 1
    assert "[1] error: no data" in done.stdout
    assert "[0] saved" in done.stdout, "the other was asked to save and stop"
    assert "worker 1 ended with exit code 1; above is its log" in done.stderr.splitlines()[-1]


def test_a_broken_connection_loses_no_line_and_shows_none_twice(cloud):
    cloud.machines("0", "1")
    cloud.training({"lines": [f"line {i}" for i in range(50)], "code": 0})
    # It breaks after two lines; what goes on asks for what comes after them.
    part = "".join(json.dumps({"offset": 7 * (i + 1), "line": f"line {i}"}) + "\n" for i in (0, 1))
    cloud.answers({
        DESCRIBE: [ACTIVE],
        "--worker=0 .*follow 0": [(255, part, "Connection closed by remote host")],
    })  # fmt: skip
    done = cloud.finish("tpu_vm", *tpu("run", cloud))
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        seen = [line for line in done.stdout.splitlines() if line.startswith(f"[{number}] line")]
        assert seen == [f"[{number}] line {i}" for i in range(50)]
    assert any("follow 14" in " ".join(call) for call in cloud.calls())


def test_a_machine_that_is_lost_says_that_the_same_command_continues(cloud):
    cloud.machines("0", "1")
    cloud.training({"lines": [], "code": None})
    cloud.answers({
        DESCRIBE: [ACTIVE, ACTIVE, SUSPENDED],
        "--worker=1 .*follow": [(255, "", "ssh: connect to host 1.2.3.4 port 22: timed out")],
    })  # fmt: skip
    done = cloud.finish("tpu_vm", *tpu("run", cloud, "--patience=0.2", "--grace=0.1"))
    assert done.returncode == 75, done.stderr
    assert "worker 1: cannot be reached: gcloud compute tpus tpu-vm ssh failed" in done.stderr
    assert "the machines are gone; run the same command again" in done.stderr


def test_stop_lets_all_save_and_the_follower_knows_that_it_is_not_the_end(cloud):
    cloud.machines("0", "1")
    cloud.answers({DESCRIBE: [ACTIVE]})
    cloud.training({"lines": ["begun"], "code": None})
    follower = cloud.start("tpu_vm", *tpu("run", cloud))
    assert follower.stdout is not None
    begun = [follower.stdout.readline() for _ in range(2)]
    assert sorted(begun) == ["[0] begun\n", "[1] begun\n"]
    again = cloud.finish("tpu_vm", *tpu("start", cloud))
    assert again.returncode == 0
    assert len(cloud.calls("python")) == 2, "what runs is not started a second time"
    stopped = cloud.finish("tpu_vm", *tpu("stop", cloud))
    assert stopped.returncode == 0
    assert stopped.stderr.count("was stopped and has saved") == 2
    out, err = follower.communicate(timeout=30)
    assert follower.returncode == 75
    assert sorted(out.splitlines()) == ["[0] saved", "[1] saved"]
    assert "stopped, and saved; the same command continues" in err


def test_results_are_fetched_without_checkpoints_unless_asked_for(cloud, tmp_path):
    for more in ((), ("--checkpoints",)):
        words = tpu("fetch", cloud, f"--to={tmp_path}/re sults", *more)[:-2]
        assert cloud.finish("tpu_vm", *words).returncode == 0
    rsync = ["gcloud", "storage", "rsync", "gs://my-bucket/runs/a b", f"{tmp_path}/re sults"]
    without, with_all = cloud.calls("gcloud")
    assert without == [*rsync, "--exclude=(checkpoints|damaged)/.*", "--recursive"]
    assert with_all == [*rsync, "--recursive"]
    pattern = without[5].partition("=")[2]
    assert re.match(pattern, "checkpoints/405/meta/metadata")
    assert not re.match(pattern, "metrics.jsonl")


def test_a_slice_on_compute_engine_is_a_group_with_a_policy(cloud):
    cloud.machines("pod1-x1", "pod1-a2")
    listed = [{"instance": f"https://x/zones/z/instances/{name}", "instanceStatus": "RUNNING"}
              for name in ("pod1-x1", "pod1-a2")]  # fmt: skip
    creating = [{**listed[0]}, {**listed[1], "instanceStatus": "STAGING"}]
    cloud.answers({
        "list-instances": [NOT_FOUND, (0, json.dumps(creating), ""), (0, json.dumps(listed), "")],
        "describe pod1": [NOT_FOUND],
    })  # fmt: skip
    words = ["run", "pod1", "--zone=us-central1-c", "--type=tpu7x:2x2x2", "--bucket=b",
             "--workdir=runs/a", f"--mount={cloud.folder}/bucket", "--poll=0.05",
             "--max-run-duration=12h", "--delete-after", "--project=p"]  # fmt: skip
    done = cloud.finish("compute_engine", *words, "--", "--config=c.py", *NASTY)
    assert done.returncode == 0, done.stderr
    assert "1 OF 2 RUNNING" in done.stderr
    created = [call[2:] for call in cloud.calls("gcloud") if "create" in call]
    policy, template, group = created
    assert policy[:4] == ["resource-policies", "create", "workload-policy", "pod1"]
    assert {"--accelerator-topology=2x2x2", "--region=us-central1"} <= set(policy)
    assert {"--machine-type=tpu7x-standard-4t", "--maintenance-policy=TERMINATE",
            "--image-family=ubuntu-accel-2404-amd64-tpu-tpu7x", "--max-run-duration=12h",
            "--instance-termination-action=DELETE"} <= set(template)  # fmt: skip
    assert {"--size=2", "--target-size-policy-mode=bulk", "--zone=us-central1-c",
            "--workload-policy=projects/p/regions/us-central1/resourcePolicies/pod1",
            } <= set(group)  # fmt: skip
    deleted = [call[2:-2] for call in cloud.calls("gcloud")[-3:]]
    assert [call[0] for call in deleted] == [
        "instance-groups", "instance-templates", "resource-policies"]  # fmt: skip
    state = json.loads((cloud.folder / "machines/pod1-a2/xception_jax/state.json").read_text())
    assert state["command"][3:-1] == ["--num_processes=2", "--config=c.py", *NASTY]


# On the machine


def run_worker(home: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, worker.__file__, *words],
        env={**os.environ, "XCEPTION_JAX_HOME": str(home)},
        capture_output=True, text=True, timeout=30, check=False, **more,
    )  # fmt: skip


def test_a_run_whose_machine_was_restarted_is_known_to_be_lost(tmp_path):
    assert json.loads(run_worker(tmp_path, "state").stdout) == {"state": "none"}
    (tmp_path / "state.json").write_text(json.dumps({"state": "running", "pid": 1}))
    assert json.loads(run_worker(tmp_path, "state").stdout)["state"] == "lost"
    end = json.loads(run_worker(tmp_path, "follow", "0").stdout)["end"]
    assert end["state"] == "lost"


def test_a_start_without_an_installation_fails_and_says_why(tmp_path):
    done = run_worker(tmp_path, "start", "code.tar.gz", str(tmp_path / "logs"), "--", "--config=c")
    assert done.returncode == 1
    assert "training could not be started: " in done.stderr
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("code", "sends", "expected"),
    [(0, False, 0), (3, False, 3), (0, True, 75), (3, True, 3), ("kill", True, 137)],
)
def test_a_container_that_was_stopped_does_not_count_as_done(code, sends, expected, tmp_path):
    end = "os.kill(os.getpid(), signal.SIGKILL)" if code == "kill" else f"sys.exit({code})"
    program = (
        "import os, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: {end})\n"
        "print('up', flush=True)\n"
        f"time.sleep({60 if sends else 0}); {end}\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "launch.worker", "container", "--", sys.executable, "-c", program],
        cwd=ROOT, env={**os.environ, "XCEPTION_JAX_HOME": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        if sends:
            process.terminate()
    assert process.returncode == expected


def test_the_worker_needs_no_newer_python_than_the_images_have_and_no_package():
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 10))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names


def test_the_archive_holds_what_git_does_not_ignore(tmp_path):
    git(tmp_path, "init", "-q")
    for name in ("kept", "changed", "deleted"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("ignored\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    clean = source.pack(tmp_path)
    assert clean.changed == 0
    assert source.pack(tmp_path).packed == clean.packed
    (tmp_path / "changed").write_text("other")
    (tmp_path / "deleted").unlink()
    for name in ("new é", "ignored"):
        (tmp_path / name).write_text("")
    dirty = source.pack(tmp_path)
    assert dirty.changed == 3
    assert dirty.digest != clean.digest
    packed = tmp_path / "x.tar"
    packed.write_bytes(dirty.packed)
    listed = subprocess.run(
        ["tar", "-xOf", str(packed), "changed"], capture_output=True, text=True, check=True
    )
    assert listed.stdout == "other"
    names = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", str(packed)], capture_output=True, check=True
    )
    assert names.stdout.decode().split("\n")[:-1] == [".gitignore", "changed", "kept", "new é"]


# GKE


def rendered(cloud: Cloud, *words: str) -> list[dict[str, Any]]:
    flags = ["--image=i", "--bucket=b", "--workdir=runs/a"]
    done = cloud.finish("gke", "render", "run1", *flags, *words, "--", "--config=c", *NASTY)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize(
    ("words", "nodes", "resource", "count", "selector"),
    [
        (["--type=v4-16"], 2, "google.com/tpu", 4,
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
          "cloud.google.com/gke-tpu-topology": "2x2x2"}),
        (["--type=v5e-8", "--spot"], 1, "google.com/tpu", 8,
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
          "cloud.google.com/gke-tpu-topology": "2x4", "cloud.google.com/gke-spot": "true"}),
        (["--type=v5p:2x2x4"], 4, "google.com/tpu", 4,
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
          "cloud.google.com/gke-tpu-topology": "2x2x4"}),
        (["--type=v6e:4x4"], 4, "google.com/tpu", 4,
         {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
          "cloud.google.com/gke-tpu-topology": "4x4"}),
        (["--type=tpu7x:2x2x2"], 2, "google.com/tpu", 4,
         {"cloud.google.com/gke-tpu-accelerator": "tpu7x",
          "cloud.google.com/gke-tpu-topology": "2x2x2"}),
        (["--gpu=nvidia-h100-80gb", "--nodes=3"], 3, "nvidia.com/gpu", 8,
         {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}),
    ],
)  # fmt: skip
def test_manifests_have_what_the_documentation_asks_for(
    words, nodes, resource, count, selector, cloud
):
    *access, jobset = rendered(cloud, *words)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "run1"}
    [job] = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (nodes, nodes, 0)
    assert (job["replicas"], spec["completionMode"]) == (1, "Indexed")
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["nodeSelector"] == selector
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {resource: count}
    assert container["resources"]["requests"] == {resource: count}
    tolerated = {one["key"] for one in pod["tolerations"]}
    assert tolerated == {resource, *(k for k in selector if k.endswith("spot"))}
    # The bucket: the sidecar comes with the annotation, and is mounted where the workdir is.
    assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    csi = next(v["csi"] for v in pod["volumes"] if v["name"] == "bucket")
    assert csi["volumeAttributes"]["bucketName"] == "b"
    assert {"name": "bucket", "mountPath": "/mnt/bucket"} in container["volumeMounts"]
    # A stopped run is started again, without counting.
    codes = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]
             if "onExitCodes" in rule]  # fmt: skip
    assert codes == [[worker.STOPPED]]
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    # JAX finds the pods by the environment on TPUs, by asking Kubernetes without.
    assert [one["kind"] for one in access] == ([] if "tpu" in resource else ["Role", "RoleBinding"])


def expanded(word: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of a word of args: third_party/forked/golang/expansion/expand.go."""
    return re.sub(
        r"\$(\$|\(([^)]*)\))",
        lambda m: "$" if m[1] == "$" else variables.get(m[2], m[0]),
        word,
    )


@given(st.text(alphabet="$()HOME ax", max_size=20))
def test_kubernetes_puts_nothing_in_place_of_a_users_words(word):
    assert expanded(unexpanded(word), {"HOME": "/root", "a": "x", "": "y"}) == word


def test_arguments_in_a_manifest_are_words_of_their_own(cloud):
    [jobset] = rendered(cloud, "--type=v6e-1")
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    words = [expanded(word, {"HOME": "/root"}) for word in pod["containers"][0]["args"]]
    assert words == ["python", "-m", "xception_jax.main", "--num_processes=1", "--config=c", *NASTY,
                     "--workdir=/mnt/bucket/runs/a"]  # fmt: skip
    [pods] = rendered(cloud, "--type=v4-16")
    pod2 = pods["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "--num_processes=2" in pod2["containers"][0]["args"]
    command = pod["containers"][0]["command"]
    assert command == ["python", "-m", "launch.worker", "container", "--"]


RUN = ["run", "run1", "--type=v6e-1", "--image=i", "--bucket=b", "--workdir=r", "--poll=0.02"]


def status(*conditions: str) -> tuple[int, str, str]:
    listed = [{"type": condition, "status": "True"} for condition in conditions]
    return 0, json.dumps({"status": {"conditions": listed}}), ""


@pytest.mark.parametrize(("end", "code"), [("Completed", 0), ("Failed", 1)])
def test_a_jobset_is_applied_and_followed_to_its_end(end, code, cloud):
    pending = {"status": {"phase": "Pending", "conditions": [
        {"reason": "Unschedulable", "message": "0/3 nodes are available"}]},
        "metadata": {"name": "run1-slice-0-0-x"}}  # fmt: skip
    running = {"status": {"phase": "Running"}, "metadata": {"name": "run1-slice-0-0-x"}}
    absent = (1, "", 'Error from server (NotFound): jobsets "run1" not found')
    cloud.answers({
        "get jobset": [absent, status(), status(), status(end)],
        "get pods": [(0, json.dumps({"items": [one]}), "") for one in (pending, running)],
        "logs": [(0, "[pod/x] step 1/1\n", "")],
    })  # fmt: skip
    done = cloud.finish("gke", *RUN, "--delete-after", "--", "--config=c")
    assert done.returncode == code, done.stderr
    assert done.stdout == "[pod/x] step 1/1\n"
    assert "waits: Unschedulable: 0/3 nodes are available" in done.stderr
    calls = cloud.calls("kubectl")
    [applied] = [call for call in calls if call[1] == "apply"]
    path = Path(next(w for w in applied if w.startswith("--filename=")).partition("=")[2])
    assert yaml.safe_load(path.read_text())["kind"] == "JobSet"
    assert ["kubectl", "delete", "jobset", "run1", "--ignore-not-found",
            "--namespace=default"] in calls  # fmt: skip


def test_a_broken_connection_to_pods_shows_no_line_twice(cloud):
    """Of each pod lines come in order; those of two pods mix, and times have any fraction."""
    first = [
        "[pod/a/train] 2026-08-01T10:00:00.9Z a1\n",
        "[pod/b/train] 2026-08-01T10:00:01.123456789Z b1\n",
        "[pod/a/train] 2026-08-01T10:00:01.5Z a2\n",
        "[pod/a/train] 2026-08-01T10:00:01.5Z a2\n",  # the same text at the same time, twice
    ]
    missed = "[pod/b/train] 2026-08-01T10:00:01.4Z b2\n"  # earlier than what pod a has shown
    later = "[pod/a/train] 2026-08-01T10:00:02Z a3\n[pod/a/train] 2026-08-01T10:00:02Z a3\n"
    whole = "".join([*first[:3], missed, first[3], later])
    running = {"status": {"phase": "Running"}, "metadata": {"name": "a"}}
    cloud.answers({
        "get jobset": [status(), status(), status(), status("Completed")],
        "get pods": [(0, json.dumps({"items": [running]}), "")],
        "logs": [(1, "".join(first[:4]), "error: unexpected EOF"), (0, whole, "")],
    })  # fmt: skip
    done = cloud.finish("gke", "follow", "run1", "--poll=0.02")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[pod/a/train] a1", "[pod/b/train] b1", "[pod/a/train] a2", "[pod/a/train] a2",
        "[pod/b/train] b2", "[pod/a/train] a3", "[pod/a/train] a3",
    ]  # fmt: skip


def test_a_cluster_without_jobset_says_how_to_get_it(cloud):
    error = 'error: the server doesn\'t have a resource type "jobset"'
    cloud.answers({"get jobset": [(1, "", error)]})
    done = cloud.finish("gke", *RUN, "--", "--config=c")
    assert done.returncode == 1
    assert "https://jobset.sigs.k8s.io/docs/installation" in done.stderr


def test_pools_of_nodes_and_images(cloud):
    place = ["--cluster=c", "--zone=us-central1-c", "--location=us-central1"]
    for words in (
        ["nodes", "p1", "--type=v6e:4x4", *place],
        ["nodes", "p2", "--type=tpu7x:2x2x2", *place],
        ["nodes", "p3", "--gpu=nvidia-l4", "--gpus-per-node=1", "--nodes=2",
         "--machine-type=g2-standard-12", *place],
        ["image", "--image=registry/x", "--extra=cuda"],
    ):  # fmt: skip
        assert cloud.finish("gke", *words).returncode == 0
    tpu_pool, policy, tpu7x, gpus = cloud.calls("gcloud")
    assert {"--tpu-topology=4x4", "--num-nodes=4", "--machine-type=ct6e-standard-4t"} <= set(
        tpu_pool
    )
    assert "--accelerator-topology=2x2x2" in policy
    assert "--placement-policy=p2" in tpu7x
    assert not any(word.startswith("--tpu-topology") for word in tpu7x)
    assert "--accelerator=type=nvidia-l4,count=1,gpu-driver-version=default" in gpus
    build, push = cloud.calls("docker")
    assert push == ["docker", "push", f"registry/x:{source.pack(cloud.checkout).digest}"]
    assert "--build-arg=EXTRA=cuda" in build
    context = Path(build[-1])
    assert (context / "launch" / "Dockerfile").is_file()
    assert (context / "pyproject.toml").is_file()


# SLURM


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
