"""The Kubernetes objects of a run: a JobSet, and the role by which its pods find each other."""

import argparse
from typing import Any

from launch import fleet, slices
from launch.commands import (
    training_arguments,
)
from launch.worker import STOPPED, compiled_beside
from xception_jax.errors import UsageError

CONTAINER = "train"


def manifest(args: argparse.Namespace, arguments: list[str]) -> list[dict[str, Any]]:
    """The Kubernetes objects of a run, from the launcher's flags and the training arguments.

    Sources of labels and fields: docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus
    and .../tpu-multislice (TPU node labels, `google.com/tpu`), .../how-to/gpus (GPU node labels),
    .../cloud-storage-fuse-csi-driver-ephemeral (the bucket), jobset.sigs.k8s.io/docs/concepts and
    github.com/kubernetes-sigs/jobset, examples/failure-policy (restarts).
    """
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": args.name, "namespace": args.namespace},
        "spec": {
            # The headless service that gives the pods names.
            "network": {"enableDNSHostnames": True, "subdomain": args.name},
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                # Preemptions are not the run's fault, so their restarts are unlimited.
                "rules": [
                    {
                        "name": "stopped",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": "slice", "replicas": 1, "template": {"spec": job(args, arguments)}}
            ],
        },
    }
    return [jobset] if args.type else [*access(args), jobset]


def job(args: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """The Job of all nodes, with one process each; all succeed or the Job fails."""
    nodes = nodes_of(args)
    stopped = {"containerName": CONTAINER, "operator": "In", "values": [STOPPED]}
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        # One failed process ends the Job: the others cannot continue without it.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget"}]},
                {"action": "FailJob", "onExitCodes": stopped},
            ]
        },
        "template": pod(args, arguments),
    }


def nodes_of(args: argparse.Namespace) -> int:
    """Number of nodes of the run, with one process each."""
    return slices.parse(args.type).hosts if args.type else int(args.nodes)


def placement(
    args: argparse.Namespace,
) -> tuple[dict[str, str], list[dict[str, str]], dict[str, int]]:
    """Labels that select the nodes, tolerations of a pod, and the devices of a node."""
    if args.type:
        tpu = slices.parse(args.type)
        selector = {
            "cloud.google.com/gke-tpu-accelerator": tpu.kind.label,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        }
        resource, count = "google.com/tpu", tpu.chips_per_host
    else:
        selector = {"cloud.google.com/gke-accelerator": args.gpu}
        resource, count = "nvidia.com/gpu", args.gpus_per_node
    tolerations = [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if args.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}
        )
    return selector, tolerations, {resource: count}


def pod(args: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """The template of the pods, one a node."""
    selector, tolerations, devices = placement(args)
    workdir = f"{fleet.MOUNT}/{args.workdir}"
    arguments = training_arguments(arguments, workdir, nodes_of(args))
    train = ["python", "-m", "xception_jax.main", *arguments]
    return {
        "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": args.service_account,
            "terminationGracePeriodSeconds": args.termination_grace,
            "nodeSelector": selector,
            "tolerations": tolerations,
            "containers": [
                {
                    "name": CONTAINER,
                    "image": args.image,
                    "command": ["python", "-m", "launch.worker", "container", "--"],
                    "args": [unexpanded(word) for word in train],
                    "env": _environment(workdir),
                    "resources": {"requests": devices, "limits": devices},
                    "volumeMounts": [
                        {"name": "bucket", "mountPath": fleet.MOUNT},
                        {"name": "shared-memory", "mountPath": "/dev/shm"},
                    ],
                }
            ],
            "volumes": [
                {
                    "name": "bucket",
                    "csi": {
                        "driver": "gcsfuse.csi.storage.gke.io",
                        "volumeAttributes": {
                            "bucketName": args.bucket,
                            # The options of `worker.mount`, which gives the reasons.
                            "mountOptions": "implicit-dirs,rename-dir-limit=10000,"
                            "metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
                        },
                    },
                },
                # A container's default is 64 MB; NCCL and the input's workers need more.
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _environment(workdir: str) -> list[dict[str, str]]:
    """The environment variables of the training process."""
    variables = {"PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": compiled_beside(workdir)}
    return [{"name": name, "value": value} for name, value in variables.items()]


def access(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The role by which JAX asks Kubernetes for the job's other pods; needed on GPU nodes.

    Source: docs.jax.dev/en/latest/multi_process.html#kubernetes-example.
    """
    name = {"name": f"{args.name}-finds-pods", "namespace": args.namespace}
    rules = [
        {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["get", "list"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]},
    ]
    group = "rbac.authorization.k8s.io"
    subject = {
        "kind": "ServiceAccount",
        "name": args.service_account,
        "namespace": args.namespace,
    }
    return [
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": name, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": name,
            "subjects": [subject],
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name["name"]},
        },
    ]


def unexpanded(word: str) -> str:
    """The word escaped for Kubernetes, which would expand `$(NAME)`."""
    return word.replace("$", "$$")


def render(args: argparse.Namespace, arguments: list[str]) -> str:
    """The manifest as YAML."""
    try:
        import yaml
    except ImportError:
        raise UsageError("launch.gke writes YAML; pip install pyyaml") from None
    return str(yaml.safe_dump_all(manifest(args, arguments), sort_keys=False, width=100))
