"""`launch.compute_engine`, as a real process against a stand-in for gcloud."""

import json

from tests.launch.cloud import NASTY, NOT_FOUND


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
