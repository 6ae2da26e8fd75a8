r"""Trains on a Cloud TPU VM or a slice of them, from creation to results.

    python -m launch.tpu_vm run pod1 --zone=us-west4-a --type=v5litepod-16 --bucket=my-bucket \
        --workdir=runs/imagenet --delete-after -- \
        --config=configs/imagenet.py --config.data.data_dir=/mnt/bucket/data

Arguments after -- go to `python -m xception_jax.main` unchanged. Running the same command again
continues: it replaces preempted machines, and the run resumes from its newest checkpoint. The
request waits in Google's queue without a time limit; --direct asks once.

Google no longer develops the Cloud TPU API that this uses, and it has no TPU7x: see
launch.compute_engine and launch.gke.
"""

import argparse
import json

from launch import fleet, machines, slices
from launch.commands import Commands, Parser, main
from xception_jax.errors import UsageError

# Flags: cloud.google.com/sdk/gcloud/reference/compute/tpus/{tpu-vm,queued-resources}. States:
# docs.cloud.google.com/tpu/docs/queued-resources, .../reference/rest/v2/projects.locations.nodes.
_READY = {"READY", "ACTIVE"}
_GONE = {"FAILED", "SUSPENDED", "PREEMPTED", "TERMINATED", "STOPPED"}


class TpuVm:
    """A slice of the Cloud TPU API, as a queued resource or, with --direct, as a node."""

    extra = "tpu"

    def __init__(self, commands: Commands, args: argparse.Namespace):
        if not args.type:
            raise UsageError("--type is needed, as --type=v5litepod-16")
        self.slice = slices.parse(args.type)
        if self.slice.kind.runtime is None:
            raise UsageError(
                f"the Cloud TPU API has no {self.slice.generation}; use launch.compute_engine or "
                f"launch.gke"
            )
        self.made = False
        self.delete_flags = [f"--type={args.type}", *(["--direct"] if args.direct else [])]
        self._commands, self._args = commands, args

    @property
    def workers(self) -> int:
        """Number of hosts of the slice."""
        return self.slice.hosts

    def _gcloud(self, *words: str) -> list[str]:
        project = [f"--project={self._args.project}"] if self._args.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self._args.zone}", *project]

    @property
    def _group(self) -> str:
        return "tpu-vm" if self._args.direct else "queued-resources"

    def _shape(self) -> list[str]:
        if self.slice.is_default_shape:
            return [f"--accelerator-type={self.slice.accelerator_type}"]
        return [f"--type={self.slice.generation}", f"--topology={self.slice.topology}"]

    def create(self) -> None:
        """Creates the TPU if it is missing; first deletes one that was preempted or failed."""
        args, state = self._args, self.state()
        if state == "gone":
            fleet.say("the TPU was preempted or failed; creating it again")
            self.delete()
        self.made = True
        if state not in ("absent", "gone"):
            return
        version = "--version" if args.direct else "--runtime-version"
        options = [*self._shape(), f"{version}={self.slice.kind.runtime}"]
        # Without this scope the machines can read the bucket, but not write to it.
        options.append("--scopes=https://www.googleapis.com/auth/cloud-platform")
        for flag in ("network", "subnetwork", "service_account"):
            if getattr(args, flag):
                options.append(f"--{flag.replace('_', '-')}={getattr(args, flag)}")
        if args.internal_ip:
            options.append("--internal-ips")
        if args.spot:
            options.append("--spot")
        if not args.direct:
            options.append(f"--node-id={args.name}")
            if args.wait:
                options.append(f"--valid-until-duration={args.wait}")
        self._commands.run(self._gcloud(self._group, "create", args.name, *options))

    def state(self) -> str:
        """See `fleet.Fleet`."""
        described = self._commands.ask(
            self._gcloud(self._group, "describe", self._args.name, "--format=json")
        )
        if described is None:
            return "absent"
        state = json.loads(described)["state"]
        # A node's state is a word, a queued resource's an object.
        word = state["state"] if isinstance(state, dict) else state
        return "ready" if word in _READY else "gone" if word in _GONE else word

    def delete(self) -> None:
        """Deletes the node, and the queued resource that holds it."""
        force = [] if self._args.direct else ["--force"]
        self._commands.ask(self._gcloud(self._group, "delete", self._args.name, "--quiet", *force))
        self.made = False

    def ssh(self, worker: int, remote: str) -> list[str]:
        """See `fleet.Fleet`."""
        return self._gcloud(
            "tpu-vm", "ssh", self._args.name, f"--worker={worker}", f"--command={remote}",
            *self._internal(),
        )  # fmt: skip

    def scp(self, worker: int, *files: str) -> list[str]:
        """See `fleet.Fleet`."""
        return self._gcloud(
            "tpu-vm", "scp", *files, f"{self._args.name}:{fleet.HOME}/", f"--worker={worker}",
            *self._internal(),
        )  # fmt: skip

    def _internal(self) -> list[str]:
        return ["--internal-ip"] if self._args.internal_ip else []


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__ or "", prog="python -m launch.tpu_vm")
    machines.add_arguments(parser)
    parser.add_argument("--type", help="v5litepod-16, v6e-8, or a shape, v5p:4x4x4")
    parser.add_argument("--direct", action="store_true", help="ask once; do not wait in the queue")
    parser.add_argument("--wait", help="longest wait in the queue, as 6h; by default no limit")
    return parser


def command(argv: list[str]) -> dict[str, object] | None:
    """Runs a command line; see `machines.command`."""
    return machines.command(argv, parser(), TpuVm)


if __name__ == "__main__":
    main(command)
