r"""Trains on Google Kubernetes Engine, as a JobSet, on TPUs or on GPUs.

    python -m launch.gke image --image=us-docker.pkg.dev/PROJECT/REPOSITORY/xception_jax --extra=tpu
    python -m launch.gke nodes pool1 --type=tpu7x:2x2x2 --cluster=CLUSTER --zone=us-central1-c
    python -m launch.gke run run1 --type=tpu7x:2x2x2 --image=IMAGE --bucket=my-bucket \
        --workdir=runs/imagenet -- --config=configs/imagenet.py \
        --config.data.data_dir=/mnt/bucket/data
    python -m launch.gke render run1 --gpu=nvidia-h100-80gb --gpus-per-node=8 --nodes=2 ...

Arguments after -- go to `python -m xception_jax.main` unchanged. If a node is preempted or a
process fails, the JobSet restarts the run, which resumes from its newest checkpoint.
"""

import argparse

from launch import fleet, machines, slices
from launch.commands import (
    Commands,
    Parser,
    check_name,
    check_workdir,
    main,
    split_arguments,
    training_arguments,
)
from launch.gke.jobset import Run
from launch.gke.manifest import render
from launch.gke.nodes import build_image, create_nodes, delete_nodes
from xception_jax.errors import RunError, UsageError

VERBS = {
    "image": "build the checkout's image and push it",
    "nodes": "create a node pool for the run",
    "render": "print the manifest",
    "run": "apply the manifest and follow the run to its end",
    "follow": "show the log until the run ends",
    "status": "print the state of the run",
    "fetch": "copy the run's results from the bucket to --to",
    "delete": "delete the run; with --nodes-too also its node pool, which costs money",
}


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__ or "", prog="python -m launch.gke")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="; ".join(
        f"{verb}: {text}" for verb, text in VERBS.items()))  # fmt: skip
    parser.add_argument("name", nargs="?", default="", help="name of the run or the node pool")
    parser.add_argument("--type", help="TPUs: v5litepod-16, v6e-8, or a shape, tpu7x:2x2x2")
    parser.add_argument(
        "--gpu", help="GPUs: value of the node label cloud.google.com/gke-accelerator"
    )
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=1, help="with --gpu: number of nodes")
    parser.add_argument(
        "--image", help="container image; the verb image adds a tag if there is none"
    )
    parser.add_argument(
        "--extra", choices=("tpu", "cuda"), help="image: the accelerators of the image"
    )
    parser.add_argument("--bucket", help=f"Cloud Storage bucket, mounted as {fleet.MOUNT}")
    parser.add_argument("--workdir", help="folder of the run in the bucket, as runs/imagenet")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--context", help="kubectl's context; by default the current one")
    parser.add_argument(
        "--service-account",
        default="default",
        help="Kubernetes service account with write access to the bucket",
    )
    parser.add_argument("--spot", action="store_true", help="spot nodes, which may be preempted")
    parser.add_argument(
        "--max-restarts", type=int, default=10, help="limit of restarts after failures of the run"
    )
    parser.add_argument(
        "--termination-grace", type=int, default=120, help="seconds to save before the end"
    )
    parser.add_argument("--cluster", help="nodes: the GKE cluster")
    parser.add_argument("--zone", help="nodes: zone of the machines")
    parser.add_argument("--location", help="nodes: location of the cluster, if it is a region")
    parser.add_argument("--project", help="Google Cloud project; by default gcloud's own")
    parser.add_argument("--machine-type", help="nodes with --gpu: machine type, as a3-highgpu-8g")
    parser.add_argument("--nodes-too", action="store_true", help="delete: also the node pool")
    parser.add_argument("--pool", help="delete --nodes-too: the pool, if not named as the run")
    parser.add_argument("--delete-after", action="store_true", help="run: delete it at its end")
    parser.add_argument("--to", default=".", help="fetch: local folder")
    parser.add_argument("--checkpoints", action="store_true", help="fetch: also the checkpoints")
    parser.add_argument("--poll", type=float, default=10, help="seconds between two status checks")
    parser.add_argument(
        "--dry-run", action="store_true", help="print every command, quoted; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def check(args: argparse.Namespace, arguments: list[str]) -> None:
    """Raises `UsageError` for flags that contradict each other."""
    verb = args.verb
    if verb != "image":
        check_name(args.name, most=40)  # pod names contain it
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
    """Runs a command line; returns the output for `--json`.

    Raises:
      UsageError: the command line is invalid.
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
