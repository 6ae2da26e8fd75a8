"""`launch.gke`, as a real process against a stand-in for kubectl."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launch import source, worker
from launch.gke.manifest import unexpanded
from tests.launch.cloud import NASTY, Cloud


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
