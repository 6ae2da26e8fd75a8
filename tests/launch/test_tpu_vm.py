"""`launch.tpu_vm`, as a real process against a stand-in for gcloud."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from launch import source, worker
from tests.launch.cloud import ACTIVE, DESCRIBE, NASTY, NOT_FOUND, SUSPENDED, WAITING, tpu


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
