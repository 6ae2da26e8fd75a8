r"""Trains on Google Kubernetes Engine, as a JobSet, on TPUs or on GPUs.

    python -m launch.gke image --image=us-docker.pkg.dev/PROJECT/REPOSITORY/xception_jax --extra=tpu
    python -m launch.gke nodes pool1 --type=tpu7x:2x2x2 --cluster=CLUSTER --zone=us-central1-c
    python -m launch.gke run run1 --type=tpu7x:2x2x2 --image=IMAGE --bucket=my-bucket \
        --workdir=runs/imagenet -- --config=configs/imagenet.py \
        --config.data.data_dir=/mnt/bucket/data
    python -m launch.gke render run1 --gpu=nvidia-h100-80gb --gpus-per-node=8 --nodes=2 ...

What stands after -- goes to `python -m xception_jax.main` as it is. The JobSet starts the run anew
when a node is preempted or a process fails; it goes on from its newest checkpoint.
"""

import argparse
import json
import time
from typing import Any

from launch import fleet, follower, machines, podlog, slices, source
from launch.commands import (
    Commands,
    Parser,
    check_name,
    check_workdir,
    main,
    split_arguments,
    training_arguments,
)
from launch.worker import STOPPED, compiled_beside
from xception_jax.errors import RunError, UsageError
from xception_jax.runtime import cache
from xception_jax.utils.text import printable

VERBS = {
    "image": "build the checkout's image and push it",
    "nodes": "make a pool of nodes that the run fits on",
    "render": "print the manifest",
    "run": "apply the manifest and follow the run to its end",
    "follow": "show the log until the run ends",
    "status": "say how the run is",
    "fetch": "copy the run's results from the bucket to --to",
    "delete": "delete the run; with --nodes-too its pool, which costs money",
}

CONTAINER = "train"
_SELECTOR = "jobset.sigs.k8s.io/jobset-name"


def manifest(args: argparse.Namespace, arguments: list[str]) -> list[dict[str, Any]]:
    """The Kubernetes objects of a run, as `parser` and the training arguments describe it.

    Where its labels and fields come from: docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus
    and .../tpu-multislice (TPU node labels, `google.com/tpu`), .../how-to/gpus (GPU node labels),
    .../cloud-storage-fuse-csi-driver-ephemeral (the bucket), jobset.sigs.k8s.io/docs/concepts and
    github.com/kubernetes-sigs/jobset, examples/failure-policy (restarts).
    """
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": args.name, "namespace": args.namespace},
        "spec": {
            # The headless service by whose names the pods know one another.
            "network": {"enableDNSHostnames": True, "subdomain": args.name},
            "failurePolicy": {
                "maxRestarts": args.max_restarts,
                # What a preemption stopped is not the run's fault, however often it happens.
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
    """The Job of all nodes, one process each, that succeeds or fails as a whole."""
    nodes = nodes_of(args)
    stopped = {"containerName": CONTAINER, "operator": "In", "values": [STOPPED]}
    return {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        # One process that fails ends all: they cannot go on without it.
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
    """The nodes of the run, a process each."""
    return slices.parse(args.type).hosts if args.type else int(args.nodes)


def placement(
    args: argparse.Namespace,
) -> tuple[dict[str, str], list[dict[str, str]], dict[str, int]]:
    """Labels that the nodes have, what a pod tolerates of them, and the devices of one."""
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
    """The template of the pods: one a node."""
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
                            # As `worker.mount`, and why.
                            "mountOptions": "implicit-dirs,rename-dir-limit=10000,"
                            "metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0",
                        },
                    },
                },
                # That of a container is 64 MB; NCCL and workers of the input share more.
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        },
    }


def _environment(workdir: str) -> list[dict[str, str]]:
    """Of the training process."""
    variables = {"PYTHONUNBUFFERED": "1", "JAX_COMPILATION_CACHE_DIR": compiled_beside(workdir)}
    return [{"name": name, "value": value} for name, value in variables.items()]


def access(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What lets JAX ask Kubernetes for the job's other pods, as GPU nodes have no other way.

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
    """The word as Kubernetes has to be given it: it would put variables in place of `$(NAME)`."""
    return word.replace("$", "$$")


def render(args: argparse.Namespace, arguments: list[str]) -> str:
    """The manifest as YAML."""
    try:
        import yaml
    except ImportError:
        raise UsageError("launch.gke writes YAML; pip install pyyaml") from None
    return yaml.safe_dump_all(manifest(args, arguments), sort_keys=False, width=100)


class Run:
    """A JobSet that is in the cluster, or will be."""

    def __init__(self, commands: Commands, args: argparse.Namespace):
        self._commands, self._args = commands, args

    def _kubectl(self, *words: str) -> list[str]:
        context = [f"--context={self._args.context}"] if self._args.context else []
        return ["kubectl", *words, f"--namespace={self._args.namespace}", *context]

    def state(self) -> str:
        """`absent`, `Completed`, `Failed`, or `running`; with the number of restarts, if any."""
        text = self._commands.ask(self._kubectl("get", "jobset", self._args.name, "--output=json"))
        if text is None:
            return "absent"
        status = json.loads(text).get("status", {})
        for condition in status.get("conditions", []):
            if condition["type"] in ("Completed", "Failed") and condition["status"] == "True":
                return str(condition["type"])
        return "running"

    def apply(self, manifest: str) -> None:
        """Creates the run, unless it is running; one that ended makes place for it."""
        state = self.state()
        if state in ("Completed", "Failed"):
            self.delete()
        if state != "running":
            path = cache.folder() / "launch" / f"{self._args.name}.yaml"
            if not self._commands.dry_run:
                cache.make_private(path.parent)
                path.write_text(manifest, encoding="utf-8")
            self._commands.run(self._kubectl("apply", f"--filename={path}"))

    def delete(self) -> None:
        """Deletes the JobSet, its pods, and what let them find one another."""
        for kind, name in (("jobset", ""), ("rolebinding", "-finds-pods"), ("role", "-finds-pods")):
            self._commands.run(
                self._kubectl("delete", kind, f"{self._args.name}{name}", "--ignore-not-found")
            )

    def waiting(self) -> str:
        """Why pods do not run yet: what Kubernetes says of the first that waits, else ""."""
        selector = f"--selector={_SELECTOR}={self._args.name}"
        text = self._commands.run(self._kubectl("get", "pods", selector, "--output=json"))
        for one in json.loads(text)["items"] if text else []:
            if one["status"].get("phase") == "Pending":
                said = [
                    f"{condition.get('reason', '')}: {condition['message']}"
                    for condition in one["status"].get("conditions", [])
                    if condition.get("message")
                ]
                states = [s["state"] for s in one["status"].get("containerStatuses", [])]
                said += [s["waiting"]["reason"] for s in states if s.get("waiting")]
                return f"{one['metadata']['name']} waits: {(said or ['starting'])[-1]}"
        return ""

    def follow(self) -> str:
        """Shows the log of all pods until the run ends; returns how: Completed or Failed."""
        logs = self._kubectl(
            "logs", f"--selector={_SELECTOR}={self._args.name}", f"--container={CONTAINER}",
            "--follow", "--prefix", "--timestamps", "--max-log-requests=256", "--tail=-1",
        )  # fmt: skip
        if self._commands.dry_run:
            self._commands.tell(logs)
            return "Completed"
        last, shown = "", podlog.Shown()
        while (state := self.state()) == "running":
            why = self.waiting()
            if not why:
                self._show(logs, shown)
            elif why != last:
                fleet.say(why)
                last = why
            time.sleep(self._args.poll)
        return state

    def _show(self, logs: list[str], shown: podlog.Shown) -> None:
        """Prints what is new in the log, until it or the connection ends."""
        self._commands.tell(logs)
        shown.begin()
        complaints: list[str] = []
        count = 0
        for line in follower.lines_of(logs, complaints):
            count += 1
            if (text := shown.new(line)) is not None:
                print(printable(text, keep="\n\t"), end="", flush=True)
        if complaints and not count:
            fleet.say(complaints[-1].rstrip())


def create_nodes(commands: Commands, args: argparse.Namespace) -> None:
    """Makes a pool of nodes for the slice or the GPUs.

    Source: docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus; on TPU7x, where a placement
    policy stands for the topology, .../docs/concepts/tpu-ironwood.
    """
    if not (args.cluster and args.zone):
        raise UsageError("nodes needs --cluster and --zone")
    project = [f"--project={args.project}"] if args.project else []
    place = [f"--cluster={args.cluster}", f"--location={args.location or args.zone}"]
    options = [f"--node-locations={args.zone}", "--workload-metadata=GKE_METADATA"]
    options += ["--spot"] if args.spot else []
    if args.type:
        tpu = slices.parse(args.type)
        options += [f"--machine-type={tpu.machine_type}", f"--num-nodes={tpu.hosts}"]
        if tpu.hosts > 1 and tpu.generation == "tpu7x":
            region = args.zone.rpartition("-")[0]
            commands.run([
                "gcloud", "compute", "resource-policies", "create", "workload-policy", args.name,
                "--type=HIGH_THROUGHPUT", f"--accelerator-topology={tpu.topology}",
                f"--region={region}", *project,
            ])  # fmt: skip
            options.append(f"--placement-policy={args.name}")
        elif tpu.hosts > 1:
            options.append(f"--tpu-topology={tpu.topology}")
    else:
        if not args.machine_type:
            raise UsageError("nodes with --gpu needs --machine-type, as a3-highgpu-8g")
        gpu = f"type={args.gpu},count={args.gpus_per_node},gpu-driver-version=default"
        options += [
            f"--machine-type={args.machine_type}",
            f"--num-nodes={args.nodes}",
            f"--accelerator={gpu}",
        ]
    commands.run(["gcloud", "container", "node-pools", "create", args.name,
                  *place, *options, *project])  # fmt: skip
    fleet.say(
        "the nodes cost money until they are deleted: "
        f"python -m launch.gke delete {args.name} --nodes-too {' '.join(place)} --zone={args.zone}"
    )


def delete_nodes(commands: Commands, args: argparse.Namespace) -> None:
    """Deletes a pool of nodes, and the placement policy of a TPU7x slice."""
    if not (args.cluster and args.zone):
        raise UsageError("delete --nodes-too needs --cluster and --zone")
    project = [f"--project={args.project}"] if args.project else []
    place = [f"--cluster={args.cluster}", f"--location={args.location or args.zone}"]
    pool = args.pool or args.name
    commands.ask(["gcloud", "container", "node-pools", "delete", pool, "--quiet",
                  *place, *project])  # fmt: skip
    region = args.zone.rpartition("-")[0]
    commands.ask(["gcloud", "compute", "resource-policies", "delete", pool, "--quiet",
                  f"--region={region}", *project])  # fmt: skip


def build_image(commands: Commands, args: argparse.Namespace) -> None:
    """Builds the image of the checkout and pushes it; its tag is the code's digest."""
    if not args.image:
        raise UsageError(
            "image needs --image, as us-docker.pkg.dev/PROJECT/REPOSITORY/xception_jax"
        )
    code = source.pack()
    image = args.image if ":" in args.image.rpartition("/")[2] else f"{args.image}:{code.digest}"
    extra = args.extra or ("cuda" if args.gpu else "tpu")
    context = str(cache.folder() / "launch" / f"image-{code.digest}")
    fleet.say(f"{code}, as {image}")
    if not commands.dry_run:
        code.write()
    commands.run(["mkdir", "-p", context])
    commands.run(["tar", "-xzf", str(code.archive), "-C", context])
    commands.run(["docker", "build", f"--tag={image}", f"--build-arg=EXTRA={extra}",
                  f"--file={context}/launch/Dockerfile", context])  # fmt: skip
    commands.run(["docker", "push", image])


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__ or "", prog="python -m launch.gke")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="; ".join(
        f"{verb}: {text}" for verb, text in VERBS.items()))  # fmt: skip
    parser.add_argument("name", nargs="?", default="", help="of the run, or of the pool of nodes")
    parser.add_argument("--type", help="TPUs: v5litepod-16, v6e-8, or a shape, tpu7x:2x2x2")
    parser.add_argument(
        "--gpu", help="GPUs: value of the node label cloud.google.com/gke-accelerator"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=1, help="with --gpu: their number")
    parser.add_argument("--image", help="container image; image gives it a tag unless it has one")
    parser.add_argument("--extra", choices=("tpu", "cuda"), help="image: what for")
    parser.add_argument("--bucket", help=f"Cloud Storage bucket, mounted as {fleet.MOUNT}")
    parser.add_argument("--workdir", help="of the run, inside the bucket, as runs/imagenet")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--context", help="of kubectl; unless given, the current one")
    parser.add_argument(
        "--service-account", default="default", help="of Kubernetes, that may write to the bucket"
    )
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken back")
    parser.add_argument("--max-restarts", type=int, default=10, help="after failures of the run")
    parser.add_argument(
        "--termination-grace", type=int, default=120, help="seconds to save in, before the end"
    )
    parser.add_argument("--cluster", help="nodes: the GKE cluster")
    parser.add_argument("--zone", help="nodes: where the machines are")
    parser.add_argument("--location", help="nodes: of the cluster, if that is a region")
    parser.add_argument("--project", help="Google Cloud project; unless given, gcloud's own")
    parser.add_argument("--machine-type", help="nodes: with --gpu, as a3-highgpu-8g")
    parser.add_argument(
        "--nodes-too", action="store_true", help="delete: the pool of nodes as well"
    )
    parser.add_argument("--pool", help="delete --nodes-too: the pool, unless named as the run")
    parser.add_argument("--delete-after", action="store_true", help="run: delete it at its end")
    parser.add_argument("--to", default=".", help="fetch: local folder")
    parser.add_argument("--checkpoints", action="store_true", help="fetch: the checkpoints too")
    parser.add_argument("--poll", type=float, default=10, help="seconds between two looks")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command, quoted; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def check(args: argparse.Namespace, arguments: list[str]) -> None:
    """Raises `UsageError` for flags that do not go together."""
    verb = args.verb
    if verb != "image":
        check_name(args.name, most=40)  # names of pods are made of it
    if verb in ("render", "run", "nodes") and bool(args.type) == bool(args.gpu):
        raise UsageError(f"{verb} needs --type=tpu7x:2x2x2 for TPUs, or --gpu for GPUs")
    if args.nodes < 1 or args.gpus_per_node < 1:
        raise UsageError("--nodes and --gpus-per-node are at least 1")
    if args.type:
        slices.parse(args.type)
    if verb in ("render", "run", "fetch"):
        for flag in ("bucket", "workdir", *(["image"] if verb != "fetch" else [])):
            if not getattr(args, flag):
                raise UsageError(f"{verb} needs --{flag}")
    if args.bucket:
        args.bucket = args.bucket.removeprefix("gs://").rstrip("/")
    if args.workdir:
        args.workdir = check_workdir(args.workdir)
    if verb in ("render", "run"):
        training_arguments(arguments, fleet.MOUNT, 1)


def command(argv: list[str]) -> dict[str, object] | None:
    """Does what a command line says; returns what `--json` prints.

    Raises:
      UsageError: the command line will not do.
      RunError: a command or the run failed.
    """
    own, arguments = split_arguments(argv)
    args = parser().parse_args(own)
    check(args, arguments)
    commands = Commands(args.dry_run)
    job = Run(commands, args)
    result: dict[str, object] = {"name": args.name}
    if args.verb == "image":
        build_image(commands, args)
    elif args.verb == "nodes":
        create_nodes(commands, args)
    elif args.verb == "render":
        print(render(args, arguments), end="")
        return None
    elif args.verb == "fetch":
        machines.fetch(commands, args.bucket, args.workdir, args.to, args.checkpoints)
    elif args.verb == "status":
        result["state"] = job.state()
        fleet.say(str(result["state"]))
    elif args.verb == "delete":
        job.delete()
        if args.nodes_too:
            delete_nodes(commands, args)
    else:
        if args.verb == "run":
            job.apply(render(args, arguments))
        result["state"] = job.follow()
        if args.delete_after:
            job.delete()
        if result["state"] != "Completed":
            raise RunError(f"the run is {result['state']}; above is its log")
    if args.dry_run:
        result["commands"] = commands.printed
    return result if args.json else None


if __name__ == "__main__":
    main(command)
