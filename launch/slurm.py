r"""Trains on a SLURM cluster; after its time limit or a preemption the job is queued again.

    python -m launch.slurm --nodes=2 --gpus-per-node=8 --time=4:00:00 --partition=gpu \
        --workdir=/shared/runs/imagenet -- \
        --config=configs/imagenet.py --config.data.data_dir=/shared/data

Arguments after -- go to `python -m xception_jax.main` unchanged. All nodes must share the file
system of the workdir and the data. Before its time limit the run saves and ends, and its job is
queued again. The restarted run resumes, until it is done.
"""

import os
import sys
from pathlib import Path

from launch.commands import Commands, Parser, main, split_arguments, training_arguments
from launch.source import ROOT
from xception_jax.errors import UsageError
from xception_jax.utils import paths
from xception_jax.utils.text import printable, quoted

# sbatch's flags: slurm.schedmd.com/sbatch.html. JAX' rule for the devices of a process:
# github.com/jax-ml/jax, jax/_src/clusters/slurm_cluster.py and distributed.py.
SCRIPT = ROOT / "launch" / "train.sbatch"


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__ or "", prog="python -m launch.slurm")
    parser.add_argument(
        "--workdir", required=True, help="folder of the run, on a shared file system"
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=0, help="0: train on CPUs")
    parser.add_argument(
        "--processes",
        choices=("node", "gpu"),
        default="node",
        help="node: one process a node, with all its GPUs; gpu: one for each GPU",
    )
    parser.add_argument(
        "--cpus-per-process", type=int, help="cores to decode images, about 8 for each GPU"
    )
    parser.add_argument("--time", help="time limit, as 4:00:00; by default the partition's")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument("--job-name", default="xception_jax")
    parser.add_argument(
        "--warning", type=int, default=180, help="seconds before the time limit to save and stop"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="the Python in which the package is installed"
    )
    parser.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="FLAG",
        help="an additional flag of sbatch, as --sbatch=--qos=x",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands, quoted; run nothing"
    )
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser


def command(argv: list[str]) -> dict[str, object] | None:
    """Submits the job and prints how to follow and end it; returns the output for `--json`.

    Raises:
      UsageError: the flags are invalid.
      CommandError: sbatch refused.
    """
    own, arguments = split_arguments(argv)
    args = parser().parse_args(own)
    if args.nodes < 1 or args.gpus_per_node < 0 or args.warning < 1:
        raise UsageError("--nodes and --warning are at least 1, --gpus-per-node at least 0")
    if args.processes == "gpu" and not args.gpus_per_node:
        raise UsageError("--processes=gpu needs --gpus-per-node")
    workdir = os.path.abspath(paths.local("--workdir", args.workdir))
    if "\n" in workdir or "\\" in workdir:
        raise UsageError("--workdir: sbatch takes no line break and no \\ in the path of its log")
    per_node = args.gpus_per_node if args.processes == "gpu" else 1
    arguments = training_arguments(arguments, workdir, args.nodes * per_node)
    train = [args.python, "-m", "xception_jax.main", *arguments]
    devices = ",".join(map(str, range(args.gpus_per_node))) or "own"
    options = [
        "--parsable",
        f"--job-name={args.job_name}",
        f"--chdir={ROOT}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={per_node}",
        f"--output={workdir.replace('%', '%%')}/slurm-%j.out",
        # A requeued job appends to the same log.
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{args.warning}",
    ]
    if args.gpus_per_node:
        options.append(f"--gpus-per-node={args.gpus_per_node}")
    if args.cpus_per_process:
        options.append(f"--cpus-per-task={args.cpus_per_process}")
    options += [f"--{flag}={getattr(args, flag)}" for flag in ("time", "partition", "account")
                if getattr(args, flag)]  # fmt: skip
    commands = Commands(args.dry_run)
    # sbatch does not make the folder of the log; without it a job fails without a message.
    commands.run(["mkdir", "-p", workdir])
    own_device = "own" if args.processes == "gpu" else devices
    text = commands.run(["sbatch", *options, *args.sbatch, str(SCRIPT), own_device, *train])
    if args.dry_run:
        return {"commands": commands.printed} if args.json else None
    job = text.strip().split(";")[0]  # the name of the cluster follows if there are several
    path = Path(workdir) / f"slurm-{job}.out"
    print(
        printable(f"job {job}; its log: tail -F {quoted(path)}; to save and end it: scancel {job}"),
        file=sys.stderr,
    )
    return {"job": job, "log": str(path)} if args.json else None


if __name__ == "__main__":
    main(command)
