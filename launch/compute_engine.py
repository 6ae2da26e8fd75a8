r"""Trains on Compute Engine: TPU v5p, v6e, TPU7x, one machine or a slice; or one with GPUs.

    python -m launch.compute_engine run pod1 --zone=us-central1-c --type=tpu7x:2x2x2 \
        --bucket=my-bucket --workdir=runs/imagenet --delete-after --max-run-duration=12h -- \
        --config=configs/imagenet.py --config.data.data_dir=/mnt/bucket/data
    python -m launch.compute_engine run box1 --zone=us-central1-a --machine-type=a3-highgpu-8g \
        --image-project=deeplearning-platform-release --image-family=FAMILY \
        --bucket=my-bucket --workdir=runs/imagenet -- --config=configs/imagenet.py

Arguments after -- go to `python -m xception_jax.main` unchanged. Running the same command again
continues: it replaces preempted machines, and the run resumes from its newest checkpoint. For
several machines with GPUs use launch.gke or launch.slurm, where processes can find each other.
"""

import argparse
import json

from launch import fleet, machines, slices
from launch.commands import Commands, Parser, main
from xception_jax.errors import UsageError

# One machine: docs.cloud.google.com/compute/docs/tpus/create-tpu-vm-instance. Several, as a managed
# instance group (MIG) with a workload policy: .../tpus/create-tpu-mig-multi-host-slice. Images:
# .../tpu/docs/tpu-os-images. Preempted ones must be deleted and created again: .../spot-compute.
_IMAGE_PROJECT = "ubuntu-os-accelerator-images"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_GONE = {"TERMINATED", "STOPPED", "SUSPENDED"}


class ComputeEngine:
    """An instance, or a group of them that forms a TPU slice."""

    def __init__(self, commands: Commands, args: argparse.Namespace):
        if bool(args.type) == bool(args.machine_type):
            raise UsageError("give --type=tpu7x:2x2x1 for TPUs, or --machine-type for GPUs")
        self.slice = slices.parse(args.type) if args.type else None
        if self.slice and not self.slice.kind.image:
            have = [name for name, kind in slices.GENERATIONS.items() if kind.image]
            raise UsageError(
                f"Compute Engine has no {self.slice.generation}, but {', '.join(have)}; use "
                f"launch.tpu_vm or launch.gke"
            )
        if args.machine_type and not (args.image_family and args.image_project):
            raise UsageError(
                "--machine-type needs --image-family and --image-project of an image with the "
                "GPU's driver; gcloud compute images list --project=deeplearning-platform-release "
                "--no-standard-images shows some"
            )
        self.extra = "tpu" if self.slice else "cuda"
        self.made = False
        kind = f"--type={args.type}" if args.type else f"--machine-type={args.machine_type}"
        images = [f"--image-family={args.image_family}", f"--image-project={args.image_project}"]
        self.delete_flags = [kind, *(images if args.machine_type else [])]
        self._commands, self._args = commands, args
        self._found: list[str] = []

    @property
    def workers(self) -> int:
        """Number of machines."""
        return self.slice.hosts if self.slice else 1

    @property
    def _region(self) -> str:
        return str(self._args.zone.rpartition("-")[0])

    def _gcloud(self, *words: str, where: str = "zone") -> list[str]:
        args = self._args
        place = {"zone": [f"--zone={args.zone}"], "region": [f"--region={self._region}"], "": []}
        project = [f"--project={args.project}"] if args.project else []
        return ["gcloud", "compute", *words, *place[where], *project]

    def create(self) -> None:
        """Creates missing machines; first deletes preempted ones."""
        state = self.state()
        if state == "gone":
            fleet.say("the machines were preempted or stopped; creating them again")
            self.delete()
        self.made = True
        if state not in ("absent", "gone"):
            return
        if self.workers > 1:
            self._create_group()
        else:
            self._commands.run(
                self._gcloud("instances", "create", self._args.name, *self._machine())
            )

    def _machine(self) -> list[str]:
        """Flags for one machine, for `instances create` and `instance-templates`."""
        args = self._args
        kind = self.slice.machine_type if self.slice else args.machine_type
        family = args.image_family or (self.slice.kind.image if self.slice else None)
        options = [
            f"--machine-type={kind}",
            f"--image-family={family}",
            f"--image-project={args.image_project or _IMAGE_PROJECT}",
            f"--boot-disk-size={args.boot_disk_size}",
            "--maintenance-policy=TERMINATE",
            f"--scopes={_SCOPE}",
        ]
        for flag in ("network", "subnetwork", "service_account", "max_run_duration"):
            if getattr(args, flag):
                options.append(f"--{'subnet' if flag == 'subnetwork' else flag.replace('_', '-')}="
                               f"{getattr(args, flag)}")  # fmt: skip
        if args.spot:
            options.append("--provisioning-model=SPOT")
        if args.max_run_duration or args.spot:
            # A machine is deleted at the end of its time. A preempted one stays, so that its state
            # shows the preemption.
            options.append(
                f"--instance-termination-action={'DELETE' if args.max_run_duration else 'STOP'}"
            )
        if args.internal_ip:
            options.append("--no-address")
        return options

    def _create_group(self) -> None:
        name, region = self._args.name, self._region
        assert self.slice is not None
        # Each of the three may exist from an earlier, incomplete attempt.
        if not self._there("resource-policies", name, where="region"):
            self._commands.run(self._gcloud(
                "resource-policies", "create", "workload-policy", name, "--type=HIGH_THROUGHPUT",
                f"--accelerator-topology={self.slice.topology}", where="region",
            ))  # fmt: skip
        if not self._there("instance-templates", name, where=""):
            template = [option for option in self._machine() if not option.startswith("--subnet=")]
            if self._args.subnetwork:
                template += [f"--subnet={self._args.subnetwork}", f"--region={region}"]
            self._commands.run(self._gcloud(
                "instance-templates", "create", name, *template, where=""
            ))  # fmt: skip
        # Bulk: all machines or none, since half a slice is useless.
        self._commands.run(self._gcloud(
            "instance-groups", "managed", "create", name, f"--size={self.workers}",
            f"--template={name}", "--target-size-policy-mode=bulk",
            "--default-action-on-vm-failure=do-nothing", f"--workload-policy={self._policy()}",
        ))  # fmt: skip

    def _policy(self) -> str:
        project = f"projects/{self._args.project}/" if self._args.project else ""
        return f"{project}regions/{self._region}/resourcePolicies/{self._args.name}"

    def _there(self, group: str, name: str, where: str) -> bool:
        answer = self._commands.ask(
            self._gcloud(group, "describe", name, "--format=json", where=where)
        )
        return answer is not None

    def state(self) -> str:
        """See `fleet.Fleet`."""
        if self.workers == 1:
            described = self._commands.ask(
                self._gcloud("instances", "describe", self._args.name, "--format=json")
            )
            if described is None:
                return "absent"
            states = [json.loads(described)["status"]]
        else:
            listed = self._list()
            if listed is None:
                return "absent"
            states = [one.get("instanceStatus") or "CREATING" for one in listed]
        if any(state in _GONE for state in states):
            return "gone"
        ready = states.count("RUNNING")
        return "ready" if ready == self.workers else f"{ready} OF {self.workers} RUNNING"

    def _list(self) -> list[dict[str, str]] | None:
        """The group's machines, `{"instance": URL, "instanceStatus": ...}`; None without group."""
        text = self._commands.ask(
            self._gcloud(
                "instance-groups", "managed", "list-instances", self._args.name, "--format=json"
            )
        )
        return None if text is None else json.loads(text)

    def delete(self) -> None:
        """Deletes the machines, and the template and policy of the group."""
        name, ask = self._args.name, self._commands.ask
        if self.workers == 1:
            ask(self._gcloud("instances", "delete", name, "--quiet"))
        else:
            ask(self._gcloud("instance-groups", "managed", "delete", name, "--quiet"))
            ask(self._gcloud("instance-templates", "delete", name, "--quiet", where=""))
            ask(self._gcloud("resource-policies", "delete", name, "--quiet", where="region"))
        self.made, self._found = False, []

    def _instance(self, worker: int) -> str:
        """The name of a machine. In a group, Compute Engine chooses it; a dry run makes one up."""
        if self.workers == 1:
            return str(self._args.name)
        if self._commands.dry_run:
            return f"{self._args.name}-{worker:04}"
        if not self._found:
            self._found = sorted(one["instance"].rpartition("/")[2] for one in self._list() or [])
        if len(self._found) != self.workers:
            raise UsageError(
                f"{self._args.name} has {len(self._found)} machines, not {self.workers}; create it "
                f"first, with the same --type"
            )
        return self._found[worker]

    def ssh(self, worker: int, remote: str) -> list[str]:
        """See `fleet.Fleet`."""
        return self._gcloud("ssh", self._instance(worker), f"--command={remote}", *self._internal())

    def scp(self, worker: int, *files: str) -> list[str]:
        """See `fleet.Fleet`."""
        to = f"{self._instance(worker)}:{fleet.HOME}/"
        return self._gcloud("scp", *files, to, *self._internal())

    def _internal(self) -> list[str]:
        return ["--internal-ip"] if self._args.internal_ip else []


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__ or "", prog="python -m launch.compute_engine")
    machines.add_arguments(parser)
    parser.add_argument("--type", help="TPUs: v6e-8, v5p-16, or a shape, tpu7x:2x2x2")
    parser.add_argument("--machine-type", help="GPUs: one machine, as a3-highgpu-8g")
    parser.add_argument("--image-family", help="image family; by default that of the TPU")
    parser.add_argument("--image-project", help=f"project of the image; default {_IMAGE_PROJECT}")
    parser.add_argument("--boot-disk-size", default="200GB")
    parser.add_argument(
        "--max-run-duration", help="delete the machines after this time in any case, as 12h"
    )
    return parser


def command(argv: list[str]) -> dict[str, object] | None:
    """Runs a command line; see `machines.command`."""
    return machines.command(argv, parser(), ComputeEngine)


if __name__ == "__main__":
    main(command)
