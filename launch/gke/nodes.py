"""Node pools for a run, and the container image."""

import argparse

from launch import fleet, slices, source
from launch.commands import (
    Commands,
)
from xception_jax.errors import UsageError
from xception_jax.runtime import cache


def create_nodes(commands: Commands, args: argparse.Namespace) -> None:
    """Creates a node pool for the slice or the GPUs.

    Source: docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus; for TPU7x, where a placement
    policy sets the topology, .../docs/concepts/tpu-ironwood.
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
    """Deletes a node pool, and the placement policy of a TPU7x slice."""
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
